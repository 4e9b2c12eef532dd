"""observe in one launch: all steps by CTAs that keep their weights on chip. csrc/common/resident says how.

It serves the block GRU with categorical latents at the sizes of `SHAPES`. On CUDA devices that is the compiled
backend's `observe`; on the CPU the same program can be played, for tests.
"""

import torch
from torch import Tensor

from fastdream.ops import triton
from fastdream.ops.native.library import C
from fastdream.ops.native.resident_op import ROWS, numbered
from fastdream.ops.native.resident_pack import Params, Shape
from fastdream.ops.params import RSSM, BlockGRU, Categorical, Layer, Step, any_gradient
from fastdream.ops.reference.cells import BlockCell
from fastdream.ops.reference.layers import dense, linear, match
from fastdream.ops.reference.state import Posterior

# The presets of DreamerV3 that fit on chip, and one for tests; those of `Shape` in csrc/common/resident/plan.h. Of one
# size, what comes first is tried first.
SHAPES = {
    "tiny": Shape(2, 64, 32, 4, 8, 2),
    "1m": Shape(8, 512, 64, 32, 4, 1),
    "12m": Shape(8, 2048, 256, 32, 16, 16),
    "12m by 8": Shape(8, 2048, 256, 32, 16, 8),
    "25m": Shape(8, 3072, 384, 32, 24, 16),
}


def unavailable(device: torch.device) -> str | None:
    """Why no observing in one launch can serve a CUDA device, with the remedy; None if it can."""
    assert C is not None
    if not C.resident:
        return "compiled without code for compute capability 9.0; FASTDREAM_ARCHITECTURES must have 90a-real"
    if (capability := torch.cuda.get_device_capability(device)) != (9, 0):
        return f"it needs compute capability 9.0, {device} has {capability[0]}.{capability[1]}"
    for shape in SHAPES.values():
        _teams(shape, numbered(device))
    return None


# What devices have answered, so that a compiler, which cannot ask them, finds the answers of `ops.load`.
_TEAMS: dict[tuple[Shape, int | None], tuple[int, str]] = {}


def _teams(shape: Shape, device: torch.device) -> tuple[int, str]:
    """How many tiles of a batch the device takes at once; or 0 and an error's words if it cannot be asked."""
    if (shape, device.index) not in _TEAMS:
        assert C is not None
        with torch.cuda.device(device):
            count = C.cuda_resident_teams(shape)
        _TEAMS[shape, device.index] = (count, "") if count >= 0 else (0, C.error_string(-count))
    return _TEAMS[shape, device.index]


def _choose(rssm: RSSM, device: torch.device) -> tuple[Shape | None, str]:
    """The first shape of the model's sizes that the device can run, or why there is none."""
    shapes = [shape for shape in SHAPES.values() if tuple(shape[:5]) == _sizes(rssm)]
    if not shapes:
        known = ", ".join(f"{name} {tuple(shape[:5])}" for name, shape in SHAPES.items())
        return None, f"sizes (blocks, D, H, S, C) = {_sizes(rssm)}; compiled are {known}"
    words: list[str] = []
    for shape in shapes:
        count, error = (1, "") if device.type == "cpu" else _teams(shape, device)
        if count > 0:
            return shape, ""
        words += [f": {error}"] if error else []
    clusters = " or ".join(f"{shape.blocks} clusters of {shape.ranks} CTAs" for shape in shapes)
    return None, f"{device}, which cannot run {clusters} at once{''.join(words)}"


def size_of(rssm: RSSM) -> str | None:
    """The name of the model's sizes among `SHAPES`."""
    if not isinstance(rssm.core, BlockGRU) or not isinstance(rssm.latent, Categorical):
        return None
    sizes = _sizes(rssm)
    return next((name for name, shape in SHAPES.items() if tuple(shape[:5]) == sizes), None)


def why_not(rssm: RSSM, dtype: torch.dtype, batch: int, device: torch.device, length: int = 1) -> str:
    """Why this model, or this batch of it, is not served on the device; empty if it is."""
    core, latent = rssm.core, rssm.latent
    if not isinstance(core, BlockGRU) or not isinstance(latent, Categorical):
        return f"{type(core).__name__} with {type(latent).__name__} latents, not BlockGRU with Categorical"
    if len(core.hidden) != 1 or len(rssm.post) != 2 or rssm.absolute:
        return "another depth than one hidden layer in core and posterior, or a posterior without deter"
    normed = core.deter, core.stoch, core.hidden[0], rssm.post[0]
    if any((layer.norm, layer.act) != ("rms", "silu") for layer in normed):
        return "hidden layers with another norm than rms or another activation than silu"
    if any((layer.norm, layer.act) != ("none", "none") for layer in (core.gates, rssm.post[1])):
        return "gates or logits that are not linear"
    if core.deter.eps != core.stoch.eps:
        return f"norms of deter and stoch with different eps: {core.deter.eps} and {core.stoch.eps}"
    if dtype != torch.bfloat16 and not (device.type == "cpu" and dtype == torch.float32):
        return f"products in {dtype}, not torch.bfloat16"
    shape, reason = _choose(rssm, device)
    if batch * length * 3 * _sizes(rssm)[1] >= 2**31:
        return f"{batch} x {length} rows, whose gates are 2^31 numbers or more"
    if shape and shape.ranks > 1 and batch > ROWS:
        return f"a batch of {batch}: at this size the whole chip takes {ROWS} rows"
    return reason


def _sizes(rssm: RSSM) -> tuple[int, ...]:
    core, latent = rssm.core, rssm.latent
    assert isinstance(core, BlockGRU) and isinstance(latent, Categorical)
    units, width = core.deter.weight.shape
    return core.gates.weight.shape[0], width, units, latent.stoch, latent.classes


def _bound(model: Posterior) -> Params:
    """The recurrent part of a bound model; what it leaves out of a layer counts as bias 0 and scale 1."""
    cell = model.cell
    assert isinstance(cell, BlockCell) and model.of_deter is not None
    logits = model.later[0]
    return Params(
        cell.deter.weight,
        _bias(cell.deter),
        _scale(cell.deter),
        cell.stoch.weight,
        _bias(cell.stoch),
        _scale(cell.stoch),
        cell.of_deter,
        cell.of_state,
        _filled(cell.hidden.scale, cell.of_state, 1.0),
        cell.gates.weight,
        _bias(cell.gates, 3 * cell.of_state.shape[0]),
        model.of_deter,
        _filled(model.first.scale, model.of_deter, 1.0),
        logits.weight,
        _bias(logits),
    )


def _filled(vector: Tensor | None, weight: Tensor, value: float, width: int = 0) -> Tensor:
    return weight.new_full((width or weight.shape[0],), value) if vector is None else vector


def _bias(layer: Layer, width: int = 0) -> Tensor:
    return _filled(layer.bias, layer.weight, 0.0, width)


def _scale(layer: Layer) -> Tensor:
    return _filled(layer.scale, layer.weight, 1.0)


TRITON = triton.missing() is None  # asked once: the answer is read from files


def _fused(device: torch.device) -> bool:
    """Whether Triton's kernels run there, where these do."""
    return device.type == "cuda" and TRITON


def _dense(x: Tensor, layer: Layer) -> Tensor:
    """`reference.dense`, on a GPU with norm and activation in one kernel there and two back, if Triton is installed."""
    if not _fused(x.device):
        return dense(x, layer)
    y = linear(x, layer.weight, layer.bias)
    normed: Tensor = triton.norm_act(y, layer.scale, layer.shift, layer.norm, layer.act, layer.eps)
    return normed


def observe(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None = None,
) -> Step:
    """As `fastdream.ops.reference.observe`, in bfloat16 (played on the CPU: or float32), for what `why_not` lets pass.

    What depends on no step before runs outside, as flat products: the actions' and the embeddings' parts.
    Differentiable once, with respect to parameters, deter, stoch, action and embed. An index that is no class counts as
    the nearest.
    Raises ValueError naming what it does not compute.
    """
    dtype, batch = deter.dtype, deter.shape[0]
    if reason := why_not(rssm, dtype, batch, deter.device, action.shape[1]):
        raise ValueError(f"observe: not compiled for {reason}; use the reference")
    if noise is None and index is None:
        raise ValueError("observe needs noise to draw with, or the index of an earlier draw")
    core = rssm.core
    assert isinstance(core, BlockGRU) and isinstance(rssm.latent, Categorical)
    model = Posterior.bind(rssm, dtype, deter.shape[-1], action.shape[-1])
    action = match(action, dtype).masked_fill(reset.unsqueeze(-1), 0.0)
    assert isinstance(model.cell, BlockCell)
    entered = model.cell.enter(action, _dense), model.enter(match(embed, dtype))
    noise = None if noise is None or index is not None else match(noise.detach(), torch.float32)
    index = None if index is None else match(index, torch.int64)
    scalars = [core.deter.eps, core.hidden[0].eps, rssm.post[0].eps, rssm.latent.unimix]
    shape, _ = _choose(rssm, deter.device)
    assert shape is not None
    params, state = list(_bound(model)), (deter, match(stoch, dtype))
    learns = torch.is_grad_enabled() and any_gradient(*params, *state, *entered)
    draws = noise, index
    out = torch.ops.fastdream.resident_observe(
        params, *state, *entered, reset, *draws, scalars, list(shape), learns
    )
    return Step(*out[:4])
