"""The compiled two-hot loss and mean against the reference: values, gradients, several targets, edges, bad input."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference

from .loss_tools import assert_as_good, value_and_gradients
from .ops_tools import Maker

DTYPES = (torch.float32, torch.float64)
FORMS = ("symexp", "symlog")
BINS = (2, 3, 16, 17, 31, 32, 33, 40, 41, 63, 64, 255)
SHAPES = ((), (1,), (3, 5), (0, 2), (33,))


def inputs(shape: tuple[int, ...], bins: int, form: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits with gradient, targets of all sizes, some of them bins or beyond all bins, and bins."""
    make, values = Maker(0, dtype), reference.twohot_bins(bins, form, dtype=dtype)
    target = reference.symexp(make.normal(*shape, scale=8.0)).detach()
    if target.numel() > 3:
        edges = torch.tensor([0.0, 1e12, -1e12], dtype=dtype)
        target.view(-1)[:3] = edges
        target.view(-1)[3] = values[bins // 3] if form == "symexp" else reference.symexp(values[bins // 3])
    return make.normal(*shape, bins, scale=3.0), target, values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", BINS)
def test_loss_agrees(
    native: ModuleType, isa: str, poison: list[str], bins: int, dtype: torch.dtype, form: str
):
    for shape in SHAPES:
        logit, target, values = inputs(shape, bins, form, dtype)
        assert_as_good(native.twohot_loss, reference.twohot_loss, (logit, target, values, form))
    assert "empty_like" in poison


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bins", BINS)
def test_mean_agrees(
    native: ModuleType, isa: str, poison: list[str], bins: int, dtype: torch.dtype, form: str
):
    # symexp of 20 would make one unit in the last place of the mean hundreds in that of the result.
    values = reference.twohot_bins(bins, form, *((-2.0, 2.0) if form == "symlog" else ()), dtype=dtype)
    for shape in SHAPES:
        logit = inputs(shape, bins, form, dtype)[0]
        assert_as_good(native.twohot_mean, reference.twohot_mean, (logit, values, form))
    assert "new_empty" in poison


@pytest.mark.parametrize("form", FORMS)
def test_several_targets_share_their_logits(native: ModuleType, poison: list[str], form: str):
    logit, target, values = inputs((3, 5), 41, form, torch.float32)
    targets = torch.stack([target, -target, target / 3])
    both = native.twohot_loss(logit, targets, values, form)
    for one, alone in zip(both, targets, strict=True):
        assert torch.equal(one, native.twohot_loss(logit, alone, values, form))
    for more in (targets, targets[None], targets[:0]):
        assert_as_good(native.twohot_loss, reference.twohot_loss, (logit, more, values, form))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bins", BINS)
def test_symmetric_distributions_decode_to_exactly_zero(native: ModuleType, isa: str, bins: int, form: str):
    values = reference.twohot_bins(bins, form)
    equal = torch.linspace(-50, 50, 9)[:, None].expand(9, bins)
    logit = torch.randn(9, bins)
    for symmetric in (equal, logit + logit.flip(-1)):
        assert (native.twohot_mean(symmetric, values, form) == 0).all()


def test_bins_need_not_be_symmetric(native: ModuleType, isa: str):
    values = torch.tensor([-3.0, 0.0, 0.5, 2.0, 7.0])
    logit = Maker(0, torch.float32).normal(6, 5)
    assert_as_good(native.twohot_mean, reference.twohot_mean, (logit, values))
    assert_as_good(native.twohot_loss, reference.twohot_loss, (logit, torch.linspace(-4, 8, 6), values))


@pytest.mark.parametrize("form", FORMS)
def test_infinite_and_missing_targets(native: ModuleType, form: str):
    logit, values = Maker(0, torch.float32).normal(3, 41), reference.twohot_bins(41, form)
    target = torch.tensor([torch.inf, -torch.inf, torch.nan])
    loss = native.twohot_loss(logit, target, values, form)
    torch.testing.assert_close(loss, reference.twohot_loss(logit, target, values, form), equal_nan=True)
    assert loss[2].isnan() and loss[:2].isfinite().all()


def test_symexp_overflows_where_its_result_does(native: ModuleType, isa: str):
    """Between 88.376 and 88.722 its power of two is infinite, and it is not."""
    x = torch.cat([torch.linspace(88, 89, 200), torch.linspace(-89, -88, 200), torch.linspace(-1, 1, 41)])
    torch.testing.assert_close(native.symexp(x), reference.symexp(x), rtol=1e-6, atol=0)


def test_large_logits_do_not_overflow(native: ModuleType, isa: str):
    values = reference.twohot_bins(255)
    logit = torch.zeros(2, 255)
    logit[0, 7], logit[1, 200] = 1e4, -1e4
    logit.requires_grad_()
    target = values[torch.tensor([7, 100])]
    for ours, theirs in zip(
        value_and_gradients(native.twohot_loss, (logit, target, values)),
        value_and_gradients(reference.twohot_loss, (logit, target, values)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(native.twohot_mean(logit, values), reference.twohot_mean(logit, values))


def test_takes_any_strides(native: ModuleType):
    base, values = Maker(0).normal(9, 3, 4), reference.twohot_bins(9, dtype=torch.float64)
    logit, target = base.permute(1, 2, 0), Maker(1).normal(4, 3).detach().t()
    pairs = [
        [m.twohot_loss(logit, target, values) for m in (native, reference)],
        [m.twohot_mean(logit, values) for m in (native, reference)],
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(*(torch.autograd.grad(x.sum(), base)[0] for x in (ours, theirs)))


@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(native: ModuleType, form: str):
    logit, target, values = inputs((3, 2), 9, form, torch.float64)
    assert torch.autograd.gradcheck(lambda x: native.twohot_loss(x, target, values, form), logit)
    values = values / values.max()  # or the differences drown
    assert torch.autograd.gradcheck(lambda x: native.twohot_mean(x, values, form), logit)


def test_opcheck(native: ModuleType):
    logit, values = Maker(0, torch.float32).normal(3, 9), reference.twohot_bins(9)
    target, plain = torch.randn(3), logit.detach()
    fast, norm = torch.ops.fastdream, plain.logsumexp(-1)
    calls = [
        (fast.twohot_loss, (logit, torch.stack([target, -target]), values, False)),
        (fast.twohot_loss_backward, (target, plain, target, values, norm, True)),
        (fast.twohot_mean, (logit, values / values.max(), True)),
        (fast.twohot_mean_backward, (target, plain, values, False)),
    ]
    checks = [torch.library.opcheck(op.default, args) for op, args in calls]
    assert {result for check in checks for result in check.values()} == {"SUCCESS"}


def test_compiles_as_one_graph(native: ModuleType):
    logit, target, values = inputs((3, 5), 9, "symexp", torch.float32)

    def loss(logit: Tensor) -> Tensor:
        return native.twohot_loss(logit, target, values).sum() + native.twohot_mean(logit, values).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(*(torch.autograd.grad(f(logit), logit) for f in (compiled, loss)))


def test_threads_change_nothing(native: ModuleType):
    logit, target, values = inputs((300,), 255, "symexp", torch.float32)

    def results() -> list[list[Tensor]]:
        loss = value_and_gradients(native.twohot_loss, (logit, target, values))
        return [*loss, *value_and_gradients(native.twohot_mean, (logit, values))]

    one = results()
    torch.set_num_threads(2)
    try:
        two = results()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((torch.zeros(3, 9).half(), torch.zeros(3), torch.arange(9.0)), "logit is torch.float16, expected"),
        (
            (torch.zeros(3, 9), torch.zeros(3), torch.arange(8.0)),
            r"logit has shape \[3, 9\], expected \[..., 8\]",
        ),
        (
            (torch.zeros(3, 9), torch.zeros(4), torch.arange(9.0)),
            r"target has shape \[4\], expected \[..., \*\[3\]\]",
        ),
        ((torch.zeros(2, 3, 9), torch.zeros(3), torch.arange(9.0)), r"target has shape \[3\], expected"),
        (
            (torch.zeros(3, 1), torch.zeros(3), torch.zeros(1)),
            r"bins has shape \[1\], expected \[K\] with K at least 2",
        ),
        ((torch.zeros(3, 9), torch.zeros(3), torch.arange(9.0), "log"), "unknown form 'log' of two-hot bins"),
        (
            (torch.zeros(3, 9).double(), torch.zeros(3), torch.arange(9.0)),
            "bins has dtype torch.float32, expected",
        ),
    ],
)
def test_bad_input_is_named(native: ModuleType, args: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        native.twohot_loss(*args)
