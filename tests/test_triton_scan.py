"""Triton's scan of posterior steps: draws, launches, what it refuses. The parity matrix compares its values."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.params import RSSM, Gaussian
from fastdream.ops.triton import (
    block_product,
    layers,
    posterior,
    scan_backward,
    scan_forward,
    scan_model,
    wide_rows,
)

from . import triton_cases
from .launch_tools import Launches
from .ops_tools import SMALL, A, Maker, Sizes
from .parity_tools import changed, results
from .triton_cases import PRESETS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = Sizes(deter=64, hidden=24, stoch=6, classes=5, embed=20, blocks=8)
MANY = SIZES._replace(hidden=40, stoch=3, classes=67)  # classes, whose products are those of several warps
CORES = "block", "layernorm", "gru", "gru_block_cell"
NORMALS = Gaussian(SMALL.stoch)
BATCH, STEPS = 5, 3


def arguments(
    core: Any = "block",
    batch: int = BATCH,
    steps: int = STEPS,
    sizes: Sizes = SIZES,
    latent: Gaussian | None = None,
) -> tuple:
    """A model as the agents have, resets in the middle, noise to draw with."""
    m = Maker(3, torch.float32, sizes)
    rssm = m.rssm(core, latent)
    rssm = rssm._replace(post=(rssm.post[0], rssm.post[-1]), prior=())
    inputs = m.normal(batch, steps, A, scale=2.0), m.normal(batch, steps, sizes.embed)
    noise, reset = m.uniform(batch, steps, sizes.stoch), m.uniform(batch, steps) < 0.3
    return changed(lambda x: x.to(DEVICE), (rssm, *m.state(batch, latent), *inputs, reset, noise))


def model_of(rssm: RSSM) -> scan_model.Model:
    return scan_model.Model(rssm.core, rssm.post, rssm.latent, rssm.absolute)  # type: ignore[arg-type]


def count_launches(
    core: str, steps: int, dtype: torch.dtype, latent: Gaussian | None = None
) -> tuple[int, int]:
    """Of the forward scan with all that surrounds it, and of the backward scan alone."""
    rssm, deter, stoch, *inputs, reset, noise = changed(
        lambda x: x.detach(), arguments(core, 2, steps, SMALL, latent)
    )
    deter, stoch, *inputs = (x.detach().to(dtype) for x in (deter, stoch, *inputs))
    model = model_of(rssm)
    with torch.no_grad():
        with Launches() as forward:
            outputs, saved = scan_forward.forward_scan(model, deter, stoch, *inputs, reset, noise, None)
        sizes = scan_model.sizes_of(model, len(deter), deter.itemsize)
        weights = scan_model.packed(model, sizes, dtype)
        given = [torch.ones_like(x) for x in outputs[:3]]
        with Launches() as backward:
            scan_backward.backward_scan(model, sizes, weights, deter, reset, outputs, saved, noise, *given)
    return forward.count, backward.count


@pytest.mark.parametrize("latent", [None, NORMALS])
@pytest.mark.parametrize(
    ("core", "there", "before", "back"),
    [("block", 4, 10, 5), ("layernorm", 4, 10, 4), ("gru", 3, 14, 4), ("gru_block_cell", 4, 14, 5)],
)
def test_launches(core: str, there: int, before: int, back: int, latent: Gaussian | None):
    """So many a step and before it, weights to be cast included; and so many back, and one that zeroes."""
    for steps in (1, 2):
        forward, backward = count_launches(core, steps, torch.float16, latent)
        assert there * steps < forward <= there * steps + before
        assert backward == back * steps + 1


@pytest.mark.parametrize(("core", "sizes"), [*product(CORES, [SIZES]), ("block", MANY)])
def test_draws_as_reference(core: str, sizes: Sizes, poison: list[str]):
    """By the same noise, and all that follows from the draws."""
    args = arguments(core, sizes=sizes)
    ours, theirs = results(backend.observe, args, True), results(reference.observe, args, True)
    assert torch.equal(ours[3], theirs[3])
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)
    assert poison


@pytest.mark.parametrize("core", CORES)
def test_products_in_pieces_of_which_the_last_is_cut(core: str, monkeypatch: pytest.MonkeyPatch):
    """As at the agents' sizes, whose layers no program takes at once; pieces are as small as they may be."""
    monkeypatch.setattr(block_product, "PIECE", 0)
    monkeypatch.setattr(posterior, "GATHERED", 1)
    args = arguments(core, 2, 2, Sizes(deter=72, hidden=70, stoch=2, classes=3, embed=5, blocks=1))
    ours, theirs = (results(op, args, True) for op in (backend.observe, reference.observe))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_gates_that_are_wider_than_a_program(norm: str, monkeypatch: pytest.MonkeyPatch):
    """DreamerV2's core at sizes from 25m: the gradient through the norm of all gates, if any, goes by pieces."""
    rssm, *args = arguments("layernorm")
    gates = rssm.core.gates
    if norm == "none":
        gates = gates._replace(scale=None, shift=None)
    rssm = rssm._replace(core=rssm.core._replace(gates=gates._replace(norm=norm)))
    monkeypatch.setattr(layers, "WHOLE", 3 * SIZES.deter - 1)
    called: list[Any] = []
    wide = wide_rows.wide_gradients
    monkeypatch.setattr(wide_rows, "wide_gradients", lambda *args: called.append(1) or wide(*args))
    ours, theirs = (results(op, (rssm, *args), True) for op in (backend.observe, reference.observe))
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-4)
    assert bool(called) == (norm != "none")


def test_step_is_a_scan_of_one():
    rssm, deter, stoch, action, embed, reset, noise = arguments(steps=1)
    with torch.no_grad():
        scanned = backend.observe(rssm, deter, stoch, action, embed, reset, noise)
        first = (x[:, 0] for x in (action, embed, reset, noise))
        step = backend.observe_step(rssm, deter, stoch, *first)
    assert all(torch.equal(a[:, 0], b) for a, b in zip(scanned, step, strict=True))


def test_half_precision_draws_like_full_precision():
    """The weights stay float32 parameters; states and results have the precision of deter."""
    args = arguments()
    half = (args[0], *(x.to(torch.float16) if x.is_floating_point() else x for x in args[1:-1]), args[-1])
    with torch.no_grad():
        ours, full = backend.observe(*half), reference.observe(*args)
    assert {x.dtype for x in ours[:3]} == {torch.float16}
    torch.testing.assert_close(ours.logit[:, 0].float(), full.logit[:, 0], rtol=2e-2, atol=2e-2)
    assert (ours.index[:, 0] == full.index[:, 0]).float().mean() > 0.9


def test_an_index_out_of_range_draws_no_class():
    *args, _ = arguments(steps=2)
    index = torch.full((BATCH, 2, SIZES.stoch), SIZES.classes, device=DEVICE)
    with torch.no_grad():
        step = backend.observe(*args, None, index)
        below = backend.observe(*args, None, index - SIZES.classes - 1)
    assert not step.stoch.any() and step.deter.isfinite().all()
    assert torch.equal(step.deter, below.deter), "it is not the next variable's"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r._replace(post=r.post[-1:]), "a posterior without a hidden layer"),
        (lambda r: r._replace(core=r.core._replace(hidden=9 * r.core.hidden)), "nets deeper than 8"),
        (lambda r: r._replace(latent=r.latent._replace(classes=300)), "300 classes, only 256"),
    ],
)
def test_refuses_with_a_reason(change: Callable[[RSSM], RSSM], why: str):
    rssm, *args = arguments()
    with pytest.raises(ValueError, match=f"triton does not compute {why}; use the reference"):
        backend.observe(change(rssm), *args)


def test_refuses_what_does_not_fit():
    rssm, deter, stoch, action, embed, reset, noise = arguments()
    with pytest.raises(ValueError, match="needs noise to draw with, or the index"):
        backend.observe(rssm, deter, stoch, action, embed, reset, None)
    normals = rssm._replace(latent=Gaussian(SIZES.stoch))
    with pytest.raises(ValueError, match="a Gaussian latent needs noise"):
        backend.observe(normals, deter, stoch, action, embed, reset, None)
    with pytest.raises(ValueError, match=r"embed has shape \[4, 3, 20\], expected \[5, 3, 20\]"):
        backend.observe(rssm, deter, stoch, action, embed[:4], reset, noise)
    with pytest.raises(ValueError, match="reset is torch.float32 on"):
        backend.observe(rssm, deter, stoch, action, embed, reset.float(), noise)


def test_opcheck():
    """Schema, fake and autograd of both ops, from the arguments of a call."""
    called: dict[str, tuple] = {}

    class Caught(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "triton_observe" in func._schema.name:
                called[func._schema.name] = args
            return func(*args, **(kwargs or {}))

    args = arguments(batch=1, steps=1, sizes=SMALL)
    with Caught():
        results(backend.observe, args, True)
    forward, backward = called["fastdream::triton_observe"], called["fastdream::triton_observe_backward"]
    ops = torch.ops.fastdream
    tests = "test_schema", "test_autograd_registration", "test_faketensor"
    for op, given in ((ops.triton_observe, forward), (ops.triton_observe_backward, backward)):
        plain = tuple(changed(lambda x: x.detach(), x) if isinstance(x, (Tensor, list)) else x for x in given)
        checks = torch.library.opcheck(op.default, plain, test_utils=tests)
        assert set(checks.values()) == {"SUCCESS"}


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS)
def test_a_long_scan_has_the_same_bits_at_every_run(preset: str):
    """Programs that wait for one another, or read what another has not written yet, would show here."""
    made = triton_cases.made("observe", "block", preset, torch.bfloat16)
    long = made[:3] + tuple(x.repeat_interleave(16, 1) if isinstance(x, Tensor) else x for x in made[3:])
    long = changed(lambda x: x.cuda(), long)
    first, second = (results(backend.observe, long, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
