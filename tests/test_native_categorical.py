"""The compiled categorical samples against the reference: draws, gradients, edges, bad input."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference

from .loss_tools import assert_as_good, value_and_gradients
from .ops_tools import Maker

DTYPES = (torch.float32, torch.float64)
CLASSES = (1, 2, 3, 4, 8, 16, 18, 33, 100)
SHAPES = ((), (1,), (5,), (3, 7), (2, 16), (0, 4))
OPS = ("categorical_sample", "gumbel_sample")


def draw_inputs(
    shape: tuple[int, ...], classes: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Logits with gradient [*shape, classes], and one uniform number a draw."""
    make = Maker(seed, dtype)
    return make.normal(*shape, classes, scale=2.0), make.uniform(*shape)


def near_tie(logit: Tensor, noise: Tensor, unimix: float) -> Tensor:
    """Draws whose noise lies within rounding of a border between classes, [...] bool."""
    cdf = reference.unimix_log_probs(logit.detach().double(), unimix).exp().cumsum(-1)
    return ((cdf - noise[..., None]).abs() < 1e-6).any(-1)


@pytest.mark.parametrize("unimix", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_draws_agree(
    native: ModuleType, isa: str, poison: list[str], classes: int, dtype: torch.dtype, unimix: float
):
    for shape in SHAPES:
        logit, noise = draw_inputs(shape, classes, dtype)
        onehot, index = native.categorical_sample(logit, noise, unimix)
        expected = reference.categorical_sample(logit, noise, unimix)[1]
        assert onehot.dtype == dtype and index.dtype == torch.int64
        assert ((index == expected) | near_tie(logit, noise, unimix)).all()
        assert torch.equal(onehot.detach(), torch.nn.functional.one_hot(index, classes).to(dtype))
    assert "empty_like" in poison


@pytest.mark.parametrize("unimix", [0.0, 0.01])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", CLASSES)
def test_gradients_agree(
    native: ModuleType, isa: str, poison: list[str], classes: int, dtype: torch.dtype, unimix: float
):
    for shape in SHAPES:
        logit, _ = draw_inputs(shape, classes, dtype)
        index = Maker(1).index(*shape, high=classes)
        args = logit, None, unimix, index
        assert_as_good(native.categorical_sample, reference.categorical_sample, args)
        noise = Maker(2).uniform(*shape, classes).to(dtype)
        for tau in (1.0, 0.3):
            assert_as_good(native.gumbel_sample, reference.gumbel_sample, (logit, noise, unimix, index, tau))


@pytest.mark.parametrize("unimix", [0.0, 0.01])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gumbel_draws_agree(
    native: ModuleType, isa: str, poison: list[str], dtype: torch.dtype, unimix: float
):
    for classes in CLASSES:
        logit, noise = draw_inputs((7, 33), classes, dtype)[0], Maker(1).uniform(7, 33, classes)
        onehot, index = native.gumbel_sample(logit, noise, unimix)
        score = reference.unimix_log_probs(logit.detach().double(), unimix) - (-noise.double().log()).log()
        best = score.max(-1).values
        assert (score.gather(-1, index[..., None])[..., 0] >= best - 1e-5).all()
        assert torch.equal(onehot.detach(), torch.nn.functional.one_hot(index, classes).to(dtype))
        assert onehot.requires_grad


def test_draws_follow_the_probabilities(native: ModuleType):
    logit = torch.tensor([0.0, 1.0, -1.0, 2.0]).expand(20000, 4)
    index = native.categorical_sample(logit, torch.rand(20000), 0.1)[1]
    share = torch.bincount(index, minlength=4) / 20000
    torch.testing.assert_close(share, reference.unimix_log_probs(logit[0], 0.1).exp(), atol=0.02, rtol=0)


@pytest.mark.parametrize("noise", [0.0, 0.5, 1 - 2**-24])
@pytest.mark.parametrize("classes", [2, 4, 16, 33])
def test_classes_of_zero_probability_are_never_drawn(
    native: ModuleType, isa: str, classes: int, noise: float
):
    for allowed in range(classes):
        logit = torch.full((17, classes), -torch.inf)
        logit[:, allowed] = 0.3
        logit[1::2, 0] = logit[1::2, -1] = -1e4  # underflows to zero
        logit[:, allowed] = 0.3
        index = native.categorical_sample(logit, torch.full((17,), noise))[1]
        assert (index == allowed).all()
        assert (native.gumbel_sample(logit, torch.full((17, classes), noise))[1] == allowed).all()


def test_noise_at_both_ends_draws_the_ends(native: ModuleType, isa: str):
    for classes in CLASSES:
        logit = draw_inputs((40,), classes)[0]
        for noise, end in ((0.0, 0), (1 - 2**-24, classes - 1)):
            index = native.categorical_sample(logit, torch.full((40,), noise), 0.01)[1]
            assert (index == end).all()


def test_an_index_is_replayed(native: ModuleType):
    logit, noise = draw_inputs((3, 5), 4)
    index = native.categorical_sample(logit, noise)[1]
    for replayed in (index, index.int(), index.t().contiguous().t()):
        onehot, again = native.categorical_sample(logit, None, index=replayed)
        assert torch.equal(again, index) and again.dtype == torch.int64
        assert torch.equal(onehot.argmax(-1), index)
    assert again.data_ptr() != index.data_ptr()


@pytest.mark.parametrize("op", OPS)
def test_takes_any_strides(native: ModuleType, op: str):
    make = Maker(0)
    base = make.normal(4, 20, 3)
    noise = make.uniform(20, 3) if op == "categorical_sample" else make.uniform(20, 3, 4)
    ours = getattr(native, op)(base.permute(1, 2, 0), noise)
    theirs = getattr(reference, op)(base.permute(1, 2, 0), noise)
    assert torch.equal(ours[1], theirs[1])
    grads = [torch.autograd.grad((x[0] * torch.arange(4)).sum(), base)[0] for x in (ours, theirs)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("op", OPS)
def test_opcheck(native: ModuleType, op: str):
    logit, noise = draw_inputs((3, 5), 4)
    args = (
        (logit, noise, None, 0.01)
        if op == "categorical_sample"
        else (logit, torch.rand(3, 5, 4), None, 0.01, 1.0)
    )
    checks = torch.library.opcheck(getattr(torch.ops.fastdream, op).default, args)
    backward = getattr(torch.ops.fastdream, f"{op}_backward").default
    plain = (
        torch.rand(3, 5, 4),
        logit.detach(),
        *([] if op == "categorical_sample" else [args[1]]),
        *args[3:],
    )
    checks |= torch.library.opcheck(backward, plain)
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", OPS)
def test_compiles_as_one_graph(native: ModuleType, op: str):
    logit = draw_inputs((3, 5), 4)[0]
    noise = Maker(1).uniform(3, 5) if op == "categorical_sample" else Maker(1).uniform(3, 5, 4)

    def loss(logit: Tensor) -> Tensor:
        return (getattr(native, op)(logit, noise, 0.01)[0] * torch.arange(4)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(f(logit), logit) for f in (compiled, loss)))


@pytest.mark.parametrize("op", OPS)
def test_threads_change_nothing(native: ModuleType, op: str):
    logit = draw_inputs((700, 3), 33)[0]
    noise = Maker(1).uniform(700, 3) if op == "categorical_sample" else Maker(1).uniform(700, 3, 33)
    index = getattr(native, op)(logit, noise, 0.01)[1]
    one = value_and_gradients(getattr(native, op), (logit, noise, 0.01, index))
    torch.set_num_threads(2)
    try:
        assert torch.equal(getattr(native, op)(logit, noise, 0.01)[1], index)
        two = value_and_gradients(getattr(native, op), (logit, noise, 0.01, index))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(3, 4).bfloat16(), torch.zeros(3)), "logit is torch.bfloat16, expected torch.float32"),
        ((torch.zeros(3, 4), torch.zeros(4)), r"noise has shape \[4\], expected \[3\]"),
        ((torch.zeros(3, 4), None, 0.0, torch.zeros(4)), r"index has shape \[4\], expected \[3\]"),
        (
            (torch.zeros(3, 0), torch.zeros(3)),
            r"logit has shape \[3, 0\], expected \[..., C\] with C at least 1",
        ),
        ((torch.zeros(()), torch.zeros(())), r"logit has shape \[\]"),
        (
            (torch.zeros(3, 4), torch.zeros(3, device="meta")),
            "noise has device meta, expected cpu like logit",
        ),
        ((torch.zeros(3, 4), None), "needs noise to draw with, or the index"),
    ],
)
def test_bad_input_is_named(native: ModuleType, args: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        native.categorical_sample(*args)


@pytest.mark.parametrize("index", [-1, 4])
@pytest.mark.parametrize("op", OPS)
def test_an_index_that_is_no_class_is_refused(native: ModuleType, op: str, index: int):
    with pytest.raises(RuntimeError, match="the index of an earlier draw is no class"):
        getattr(native, op)(torch.zeros(3, 4), torch.zeros(3, 4), 0.0, torch.tensor([0, 1, index]))
