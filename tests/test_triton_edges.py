"""Where Triton's kernels could go wrong though they agree at random inputs: draws, edges, long rows, bad input."""

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from triton.runtime.errors import OutOfResources

from fastdream.ops import reference, twohot_bins
from fastdream.ops import triton as backend
from fastdream.ops.triton import library
from fastdream.ops.triton.pointwise import pointwise_fwd_kernel

from .ops_tools import Maker
from .parity_tools import changed, results
from .test_triton import DEVICE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
C = 19


def logits(rows: int, scale: float = 2.0) -> torch.Tensor:
    return Maker(0, torch.float32).normal(rows, C, scale=scale).detach().to(DEVICE)


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_draws_are_the_reference_s_but_for_near_ties(unimix: float):
    logit, noise = logits(500), torch.rand(500, device=DEVICE)
    onehot, index = backend.categorical_sample(logit, noise, unimix)
    cdf = reference.unimix_log_probs(logit.double(), unimix).exp().cumsum(-1)
    tie = (cdf - noise[:, None]).abs().min(-1).values < 1e-6
    expected = reference.categorical_sample(logit, noise, unimix)[1]
    assert torch.equal(index[~tie], expected[~tie]) and tie.sum() < 5
    assert torch.equal(onehot.argmax(-1), index) and (onehot.sum(-1) == 1).all()


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_gumbel_draws_are_the_reference_s_but_for_near_ties(unimix: float):
    logit, noise = logits(500), torch.rand(500, C, device=DEVICE)
    noise[0] = 0.0  # whose logarithm is taken of the least normal number
    onehot, index = backend.gumbel_sample(logit, noise, unimix)
    expected = reference.gumbel_sample(logit.double(), noise.double(), unimix)[1]
    assert (index[1:] != expected[1:]).sum() < 5
    assert index[0] == reference.gumbel_sample(logit, noise, unimix)[1][0]
    assert torch.equal(onehot.argmax(-1), index)


def test_classes_of_no_probability_are_never_drawn():
    logit = logits(300)
    logit[:, ::2] = -torch.inf
    for value in (0.0, 0.5, 1 - 2**-24):
        index = backend.categorical_sample(logit, torch.full((300,), value, device=DEVICE))[1]
        assert (index % 2 == 1).all()
    index = backend.categorical_sample(logit, torch.full((300,), 1.0, device=DEVICE))[1]
    assert (index == C - 2).all(), "noise above the sum draws the last class that can be drawn"


def test_samples_without_noise_are_refused():
    with pytest.raises(ValueError, match="needs noise to draw with"):
        backend.categorical_sample(logits(3), None)


def test_equal_logits_have_no_mean():
    for count in (41, 254, 255):
        bins = twohot_bins(count, device=DEVICE)
        for value in (0.0, -3.7, 11.1):
            logit = torch.full((5, count), value, device=DEVICE)
            assert (backend.twohot_mean(logit, bins) == 0).all()


def test_several_targets_share_their_logits():
    make, bins = Maker(0, torch.float32), twohot_bins(41, lo=-5, hi=5).to(DEVICE)
    logit = make.normal(7, 41).detach().to(DEVICE).requires_grad_()
    target = make.normal(3, 7, scale=40.0).detach().to(DEVICE)
    target[0, 0], target[1, 1] = 1e9, bins[17]
    both = backend.twohot_loss(logit, target, bins)
    for one, t in zip(both, target, strict=True):
        assert torch.equal(one, backend.twohot_loss(logit, t, bins))
    expected = reference.twohot_loss(logit, target, bins)
    torch.testing.assert_close(both, expected, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(x.sum(), logit)[0] for x in (both, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clamp", ["step", "mean"])
def test_below_free_nats_nothing_is_learned(clamp: str):
    post, prior = (
        Maker(s, torch.float32).normal(4, 3, 5).detach().to(DEVICE).requires_grad_() for s in (0, 1)
    )
    dyn, rep = backend.categorical_kl(post, prior, 0.01, 100.0, clamp)
    assert (dyn == 100).all() and (rep == 100).all()
    assert not any(g.any() for g in torch.autograd.grad((dyn + rep).sum(), (post, prior)))


def test_each_loss_trains_its_own_side():
    post, prior = (
        Maker(s, torch.float32).normal(4, 3, 5).detach().to(DEVICE).requires_grad_() for s in (0, 1)
    )
    dyn, rep = backend.categorical_kl(post, prior, 0.01, 0.0)
    of_dyn = torch.autograd.grad(dyn.sum(), (post, prior), retain_graph=True)
    of_rep = torch.autograd.grad(rep.sum(), (post, prior))
    assert torch.equal(dyn, rep)
    assert not of_dyn[0].any() and of_dyn[1].any() and of_rep[0].any() and not of_rep[1].any()


@pytest.mark.parametrize("unimix", [0.0, 0.01])
def test_certain_classes_stay_finite(unimix: float):
    """Probabilities that underflow; -infinity only where mixing lifts it."""
    least = -torch.inf if unimix else -200.0
    post, prior = torch.full((3, 4, 5), least), torch.full((3, 4, 5), least)
    post[..., 1] = prior[..., 1] = 0.0
    prior[1, ..., 1], prior[1, ..., 2] = least, 0.0
    args = post.to(DEVICE).requires_grad_(), prior.to(DEVICE).requires_grad_(), unimix, 0.0, "none"
    ours, theirs = (results(f.categorical_kl, changed(lambda x: x, args), True) for f in (backend, reference))
    for our, their in zip(ours, theirs, strict=True):
        assert our.isfinite().all()
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [backend, reference])
def test_not_a_number_shows(module: ModuleType):
    x = logits(4)
    x[2, 3] = torch.nan
    nan = torch.tensor([False, False, True, False], device=DEVICE)
    for act in ("relu", "silu", "elu", "tanh", "gelu"):
        y = module.norm_act(x, None, None, "none", act)
        assert torch.equal(y.isnan(), x.isnan())
        assert torch.equal(module.norm_act(x, None, None, "rms", act).isnan().all(-1), nan)
    dyn, rep = module.categorical_kl(x[:, None], logits(4)[:, None])
    assert torch.equal(dyn.isnan(), nan) and torch.equal(rep.isnan(), nan)
    bins = twohot_bins(C, device=DEVICE)
    assert torch.equal(module.twohot_mean(x, bins).isnan(), nan)
    assert torch.equal(module.twohot_loss(logits(4), x[:, 3], bins).isnan(), nan)
    once, zero = torch.ones_like(x), torch.zeros_like(x)
    assert torch.equal(module.lambda_return(x, once, once, zero).isnan()[2].cpu(), torch.arange(C) <= 3)


@pytest.mark.parametrize("steps", [1, 64, 65, 150])
def test_returns_of_long_rows(steps: int):
    make = Maker(0, torch.float32)
    live, mix = (make.normal(5, steps).detach().sigmoid().to(DEVICE).requires_grad_() for _ in range(2))
    reward, value = (make.normal(5, steps).detach().to(DEVICE).requires_grad_() for _ in range(2))
    args = reward, live, mix, value
    ours, theirs = (results(f.lambda_return, changed(lambda x: x, args), True) for f in (backend, reference))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-5)


def test_pointwise_functions_are_precise_near_0_and_far_from_it():
    x = torch.tensor([0.0, 1e-30, -1e-8, 3e-4, -0.1, 0.3, 1.0, -19.9, 20.0], device=DEVICE)
    for op in ("symlog", "symexp"):
        ours, true = getattr(backend, op)(x).double(), getattr(reference, op)(x.double())
        assert ((ours - true).abs() <= 5e-7 * true.abs()).all(), op
    y = backend.norm_act(x, None, None, "none", "tanh").double()
    assert ((y - x.double().tanh()).abs() <= 5e-7 * x.double().tanh().abs()).all()


@pytest.fixture
def denormals() -> Iterator[None]:
    """Numbers below the least normal one, which the processor otherwise takes for 0."""
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(True)


def test_tiny_gradients_make_small_updates(denormals: None):
    """Their squares are below the least normal number, where a root that is flushed to 0 leaves only eps below them."""
    for size in (1e-18, 1e-21):
        states = []
        for module in (backend, reference):
            params, nu, mu = ([torch.zeros(3, device=DEVICE)] for _ in range(3))
            grads = [torch.full((3,), size, device=DEVICE)]
            step = torch.tensor(1, device=DEVICE)
            module.laprop_(params, grads, nu, mu, step, 1.0, agc=0.0)
            states.append(params[0])
        assert (states[0].abs() <= 1.5).all()
        torch.testing.assert_close(*states, rtol=0.5, atol=0)


def test_updates_pieces_and_their_tails():
    """Tensors of several pieces, of one element, of none, and one that lies in memory with gaps."""
    shapes = (20000,), (1,), (0,), (3, 1025), (8192,), (40, 30)
    outcomes = []
    for module in (backend, reference):
        draw = torch.Generator().manual_seed(0)

        def made(scale: float, draw: torch.Generator = draw) -> list[torch.Tensor]:
            tensors = [torch.randn(*s, generator=draw) * scale for s in shapes]
            tensors[-1] = tensors[-1].t()
            return [x.to(DEVICE) for x in tensors]

        params, grads, mu, nu = made(1.0), made(0.3), made(0.1), [x.square() for x in made(0.1)]
        step = torch.tensor(7, device=DEVICE)
        norms = module.laprop_(params, grads, nu, mu, step, 1e-2, decay=0.1)
        outcomes.append([*params, *nu, *mu, *norms])
    for ours, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_gathers_rows_of_any_size_and_negative_starts():
    for shape, dtype in (
        ((9, 5), torch.uint8),
        ((9, 3), torch.int16),
        ((9,), torch.float64),
        ((9, 0), torch.int32),
    ):
        storage = torch.arange(9 * (shape[1] if len(shape) > 1 else 1)).reshape(shape).to(dtype).to(DEVICE)
        start = torch.tensor([7, 0, -2], device=DEVICE)
        assert torch.equal(
            backend.gather_sequences(storage, start, 4), reference.gather_sequences(storage, start, 4)
        )


def test_second_gradient_is_refused():
    x = logits(3).requires_grad_()
    (first,) = torch.autograd.grad(backend.symlog(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="triton symlog is differentiable once.*reference"):
        first.sum().backward()


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, device=DEVICE)


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("norm_act", (zeros(2, 3), zeros(4), None), r"scale has shape \[4\], expected \[3\]"),
        ("norm_act", (zeros(2, 3), None, None, "batch"), "unknown norm 'batch'; choose none, rms or layer"),
        ("norm_act", (zeros(2, 20000), None, None), "expected .* N from 1 to 16384"),
        ("norm_act", (zeros(2, 3), zeros(3).to("meta"), None), "scale has device meta"),
        ("categorical_sample", (zeros(2, 3), zeros(3)), r"noise has shape \[3\], expected \[2\]"),
        (
            "categorical_kl",
            (zeros(2, 3, 4), zeros(2, 3, 5)),
            r"prior has shape \[2, 3, 5\], expected \[2, 3, 4\]",
        ),
        ("categorical_kl", (zeros(2, 3, 4), zeros(2, 3, 4), 0.0, 1.0, "steps"), "unknown clamp 'steps'"),
        ("twohot_loss", (zeros(2, 3), zeros(3), zeros(3)), r"target has shape \[3\], expected"),
        ("twohot_mean", (zeros(2, 3), zeros(4)), r"logit has shape \[2, 3\], expected \[..., 4\]"),
        ("lambda_return", (zeros(2, 3), zeros(2, 3), zeros(2, 3), zeros(3)), r"value has shape \[3\]"),
        ("symlog", (zeros(3).int(),), "x is torch.int32, expected torch.float32"),
        ("laprop_", ([], [], [], [], zeros(()).long(), 0.1), "params is empty"),
    ],
)
def test_bad_input_is_named(op: str, args: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        getattr(backend, op)(*args)


def test_single_vectors_are_compared_too():
    """Without any axis before that of their elements."""
    outs, targets = ([torch.randn(n, device=DEVICE) for n in (5, 1)] for _ in range(2))
    found = []
    for ops in (backend, reference):
        leaves = [x.clone().requires_grad_() for x in outs]
        losses = ops.vector_losses(leaves, targets, True)
        found.append((*losses, *torch.autograd.grad(sum(losses), leaves)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("room", [2, 0])
def test_a_kernel_runs_in_as_many_stages_as_the_gpu_has_memory_for(
    room: int, monkeypatch: pytest.MonkeyPatch
):
    """Those of RTX, L4 and L40 have 99 KiB for a program, where a product of many rows takes 128 in five stages."""
    asked: list[int] = []

    def run(kernel: Any, grid: Any, args: Any, constants: dict[str, Any]) -> None:
        asked.append(constants["num_stages"])
        if asked[-1] > room:
            raise OutOfResources(131072, 101376, "shared memory")

    monkeypatch.setattr(library, "run", run)
    monkeypatch.setattr(library, "FEWER", {})
    launch = library.launch, pointwise_fwd_kernel, (1,), torch.ones(2), torch.empty(2), 2
    if not room:
        with pytest.raises(OutOfResources):
            launch[0](*launch[1:], BN=2, num_stages=4)
        assert asked == [4, 3, 2, 1]
        return
    for columns in (2, 2, 4):
        launch[0](*launch[1:], BN=columns, num_stages=4)
    assert asked == [4, 3, 2, 2, 4, 3, 2]
