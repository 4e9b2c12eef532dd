"""The compiled KL losses against the reference: both of them, their gradients, free nats, edges, bad input."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference

from .loss_tools import assert_as_good, value_and_gradients
from .ops_tools import Maker

DTYPES = (torch.float32, torch.float64)
CLAMPS = ("step", "mean", "none")
FREE = {"step": 1.0, "mean": 0.5, "none": 1.0}
OPS = ("categorical_kl", "gaussian_kl")


def categorical_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits of posteriors, and of priors of which every third is like its posterior."""
    make = Maker(0, dtype)
    post, prior = (make.normal(*shape, scale=1.5) for _ in range(2))
    near = torch.where(make.uniform(*shape[:-2], 1, 1) < 0.3, post + 0.1 * prior, prior)
    return post, near.detach().requires_grad_()


def gaussian_inputs(*shape: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """mean, std, prior mean, prior std."""
    make = Maker(0, dtype)
    means = [make.normal(*shape) for _ in range(2)]
    stds = [(0.1 + make.uniform(*shape)).to(dtype).requires_grad_() for _ in range(2)]
    return [means[0], stds[0], means[1], stds[1]]


def flat(op: Callable) -> Callable:
    """gaussian_kl of four tensors."""
    return lambda mean, std, *prior, **options: op((mean, std), prior[:2], *prior[2:], **options)


@pytest.mark.parametrize("unimix", [0.0, 0.01])
@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 4, 5, 16, 33])
def test_categorical_agrees(
    native: ModuleType,
    isa: str,
    poison: list[str],
    classes: int,
    dtype: torch.dtype,
    clamp: str,
    unimix: float,
):
    for lead in ((1,), (3, 17)):
        for stoch in (1, 5, 32):
            args = *categorical_inputs(*lead, stoch, classes, dtype=dtype), unimix, FREE[clamp], clamp
            assert_as_good(native.categorical_kl, reference.categorical_kl, args)
    assert "new_empty" in poison


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gaussian_agrees(native: ModuleType, isa: str, poison: list[str], dtype: torch.dtype, clamp: str):
    for shape in ((1,), (3, 5), (17, 30), (2, 3, 33), (700, 32)):
        args = *gaussian_inputs(*shape, dtype=dtype), FREE[clamp], clamp
        assert_as_good(flat(native.gaussian_kl), flat(reference.gaussian_kl), args)
    assert "new_empty" in poison


@pytest.mark.parametrize("clamp", ["step", "none"])
def test_no_rows_give_no_losses(native: ModuleType, clamp: str):
    post, prior = categorical_inputs(0, 3, 4)
    dyn, rep = native.categorical_kl(post, prior, 0.01, 1.0, clamp)
    assert dyn.shape == rep.shape == (0,)
    assert torch.autograd.grad((dyn + rep).sum(), post)[0].shape == (0, 3, 4)
    assert native.gaussian_kl(*[(torch.zeros(0, 5), torch.ones(0, 5))] * 2, 1.0, clamp)[0].shape == (0,)


def test_each_loss_trains_its_own_side(native: ModuleType):
    post, prior = categorical_inputs(7, 3, 4)
    dyn, rep = native.categorical_kl(post, prior, 0.01, 0.0)
    assert torch.equal(dyn, rep)
    of_dyn = torch.autograd.grad(dyn.sum(), (post, prior), retain_graph=True)
    of_rep = torch.autograd.grad(rep.sum(), (post, prior))
    assert not of_dyn[0].any() and of_dyn[1].any()
    assert of_rep[0].any() and not of_rep[1].any()


@pytest.mark.parametrize("clamp", ["step", "mean"])
@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_below_free_nats_nothing_is_learned(native: ModuleType, unimix: float, clamp: str):
    post, prior = categorical_inputs(7, 3, 4)
    dyn, rep = native.categorical_kl(post, prior, unimix, 100.0, clamp)
    assert (dyn == 100).all() and (rep == 100).all()
    assert not any(g.any() for g in torch.autograd.grad((dyn + rep).sum(), (post, prior)))


def test_equal_distributions_have_no_kl(native: ModuleType, isa: str):
    for unimix in (0.0, 0.01):
        logit = 50 * torch.randn(20, 32, 4)
        assert (native.categorical_kl(logit, logit + 0, unimix, 0.0, "none")[0].abs() < 1e-6).all()


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_certain_classes_stay_finite(native: ModuleType, isa: str, unimix: float):
    """Probabilities that underflow; -infinity only where mixing lifts it."""
    least = -torch.inf if unimix else -200.0
    post, prior = torch.full((3, 17, 5), least), torch.full((3, 17, 5), least)
    post[..., 1] = prior[..., 1] = 0.0
    prior[1, ..., 1], prior[1, ..., 2] = least, 0.0
    args = post.requires_grad_(), prior.requires_grad_(), unimix, 0.0, "none"
    values, gradients = value_and_gradients(native.categorical_kl, args)
    expected = value_and_gradients(reference.categorical_kl, args)
    for our, their in zip((*values, *gradients), (*expected[0], *expected[1]), strict=True):
        assert our.isfinite().all()
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


def test_not_a_number_shows(native: ModuleType):
    post, prior = (x.detach().clone() for x in categorical_inputs(5, 3, 4))
    post[2, 1, 3] = torch.nan
    for clamp in CLAMPS:
        dyn, rep = native.categorical_kl(post, prior, 0.01, 1.0, clamp)
        assert dyn.isnan().any() and rep.isnan().any()


def test_takes_any_strides(native: ModuleType):
    base = Maker(0).normal(4, 7, 2, 3)
    post, prior = base.permute(1, 2, 3, 0).unbind(1)
    for ours, theirs in zip(
        native.categorical_kl(post, prior), reference.categorical_kl(post, prior), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(
            *(torch.autograd.grad(x.sum(), base, retain_graph=True) for x in (ours, theirs))
        )


def test_gradcheck(native: ModuleType):
    post, prior = categorical_inputs(3, 2, 5, dtype=torch.float64)
    options = 0.01, 0.0, "none"
    assert torch.autograd.gradcheck(lambda x: native.categorical_kl(x, prior.detach(), *options)[1], post)
    assert torch.autograd.gradcheck(lambda x: native.categorical_kl(post.detach(), x, *options)[0], prior)


def test_opcheck(native: ModuleType):
    post, prior = categorical_inputs(3, 2, 5)
    options = 0.01, 1.0, 0
    checks = torch.library.opcheck(torch.ops.fastdream.categorical_kl.default, (post, prior, *options))
    kl = torch.rand(3)
    plain = torch.rand(3), torch.rand(3), kl, post.detach(), prior.detach(), *options
    checks |= torch.library.opcheck(torch.ops.fastdream.categorical_kl_backward.default, plain)
    gaussian = gaussian_inputs(3, 5)
    checks |= torch.library.opcheck(torch.ops.fastdream.gaussian_kl.default, (*gaussian, 1.0, 1))
    plain = torch.rand(()), torch.rand(()), kl, *(x.detach() for x in gaussian), 1.0, 1
    checks |= torch.library.opcheck(torch.ops.fastdream.gaussian_kl_backward.default, plain)
    assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", OPS)
def test_compiles_as_one_graph(native: ModuleType, op: str):
    args = categorical_inputs(3, 2, 5) if op == "categorical_kl" else gaussian_inputs(3, 5)

    def loss(*args: Tensor) -> Tensor:
        kl = getattr(native, op)(*args) if op == "categorical_kl" else native.gaussian_kl(args[:2], args[2:])
        return kl[0].sum() + 0.1 * kl[1].sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(*(torch.autograd.grad(f(*args), args) for f in (compiled, loss)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("clamp", CLAMPS)
def test_threads_change_nothing(native: ModuleType, clamp: str):
    args = *categorical_inputs(300, 32, 4), 0.01, 0.1, clamp
    one = value_and_gradients(native.categorical_kl, args)
    torch.set_num_threads(2)
    try:
        two = value_and_gradients(native.categorical_kl, args)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))


def test_second_gradient_is_refused(native: ModuleType):
    post, prior = categorical_inputs(3, 2, 5)
    (first,) = torch.autograd.grad(
        native.categorical_kl(post, prior, 0.0, 0.0)[1].sum(), post, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiable once.*reference"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)), r"prior has shape \[2, 3, 5\], expected \[2, 3, 4\]"),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4).double()),
            "prior has dtype torch.float64, expected torch.float32",
        ),
        ((torch.zeros(4), torch.zeros(4)), r"post has shape \[4\], expected 2 or more axes"),
        ((torch.zeros(2, 3, 0), torch.zeros(2, 3, 0)), "expected classes"),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), 0.0, 1.0, "steps"),
            "unknown clamp 'steps'; choose step, mean",
        ),
    ],
)
def test_bad_input_is_named(native: ModuleType, args: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        native.categorical_kl(*args)


def test_bad_gaussians_are_named(native: ModuleType):
    mean, std, prior_mean, prior_std = gaussian_inputs(3, 5)
    with pytest.raises(ValueError, match=r"prior std has shape \[3, 4\], expected \[3, 5\]"):
        native.gaussian_kl((mean, std), (prior_mean, prior_std[:, :4]))
