"""Parameters flattened for the kernels, in the order in which csrc/cpu/params.h reads them.

A kernel gets three lists: tensors, sizes and scalars. `Flat` collects them; what torch.library needs, a list without
gaps, is made of it by `present`, and undone by `with_gaps`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from fastdream.ops.params import (
    GRU,
    Act,
    BlockGRU,
    Categorical,
    Core,
    Latent,
    Layer,
    LayerNormGRU,
    Layers,
    Norm,
    StdForm,
)

NORMS: tuple[str, ...] = get_args(Norm)  # enum Norm and enum Act of csrc/cpu/norm_act.h
ACTS: tuple[str, ...] = get_args(Act)
STD_FORMS: tuple[str, ...] = get_args(StdForm)  # enum StdForm of csrc/cpu/gaussian.h
CORES = "block_gru", "layernorm_gru", "gru", "gru_block_cell"  # enum CoreKind of csrc/cpu/params.h
MAX_LAYERS = 8  # kMaxLayers there


def code(known: Sequence[str], name: str, kind: str) -> int:
    """The number of a choice, of what kind it is; ValueError names one that does not exist."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; choose {', '.join(known[:-1])} or {known[-1]}")
    return known.index(name)


class Flat(NamedTuple):
    """What a kernel reads of parameters."""

    tensors: list[Tensor | None]
    sizes: list[int]
    scalars: list[float]

    def present(self) -> tuple[list[Tensor], list[int]]:
        """The tensors that are there, vectors without gaps in memory, and for every place whether it is filled."""
        there = [x if x.dim() > 1 else x.contiguous() for x in self.tensors if x is not None]
        return there, [int(x is not None) for x in self.tensors]


def with_gaps(tensors: Sequence[Tensor | None], filled: Sequence[int]) -> list[Tensor | None]:
    """The tensors, in their order, at the places that are filled: the inverse of `Flat.present`."""
    rest = iter(tensors)
    return [next(rest) if there else None for there in filled]


def add_layer(flat: Flat, op: str, name: str, layer: Layer, widths: tuple[int, int] | None = None) -> None:
    """Append one layer. widths: its inputs and outputs, where weights alone do not tell."""
    for what, value, known in (("norm", layer.norm, NORMS), ("act", layer.act, ACTS)):
        if value not in known:
            raise ValueError(f"{op}: {name} has {what} {value!r}; choose {', '.join(known)}")
    shape = layer.weight.shape
    if len(shape) == 2:
        blocks, out, inp = 0, *shape
    elif len(shape) == 3:
        blocks, inp, out = shape[0], shape[0] * shape[1], shape[0] * shape[2]
    else:
        raise ValueError(
            f"{op}: {name}.weight has shape {list(shape)}, expected [out, in] or [blocks, in, out]"
        )
    if widths is not None and (inp, out) != widths:
        raise ValueError(f"{op}: {name} maps {inp} to {out}, expected {widths[0]} to {widths[1]}")
    vectors = {"bias": layer.bias, "scale": layer.scale, "shift": layer.shift}
    for what, vector in vectors.items():
        if vector is not None and vector.shape != (out,):
            raise ValueError(f"{op}: {name}.{what} has shape {list(vector.shape)}, expected [{out}]")
    scale, shift = (None, None) if layer.norm == "none" else (layer.scale, layer.shift)
    flat.tensors.extend([layer.weight, layer.bias, scale, shift])
    flat.sizes.extend([inp, out, blocks, NORMS.index(layer.norm), ACTS.index(layer.act)])
    flat.scalars.append(layer.eps)


def add_layers(flat: Flat, op: str, name: str, layers: Layers) -> None:
    """Append their number and each of them."""
    if len(layers) > MAX_LAYERS:
        raise ValueError(
            f"{op}: {name} has {len(layers)} layers, native takes up to {MAX_LAYERS}; use the reference"
        )
    flat.sizes.append(len(layers))
    for i, layer in enumerate(layers):
        add_layer(flat, op, f"{name}[{i}]", layer)


def add_core(flat: Flat, op: str, core: Core, stoch: int, action: int) -> int:
    """Append a core for flat stoch [S * C] or [S] and action [A]. Returns the width of deter."""
    if isinstance(core, BlockGRU):
        return _add_block_gru(flat, op, core, stoch, action)
    if isinstance(core, LayerNormGRU):
        return _add_layernorm_gru(flat, op, core, stoch, action)
    return _add_gru(flat, op, core, stoch, action)


def _add_block_gru(flat: Flat, op: str, core: BlockGRU, stoch: int, action: int) -> int:
    flat.sizes.append(CORES.index("block_gru"))
    units, width = core.deter.weight.shape
    blocks = core.gates.weight.shape[0]
    add_layer(flat, op, "core.deter", core.deter, (width, units))
    add_layer(flat, op, "core.stoch", core.stoch, (stoch, units))
    add_layer(flat, op, "core.action", core.action, (action, units))
    add_layer(flat, op, "core.gates", core.gates, (width, 3 * width))
    add_layers(flat, op, "core.hidden", core.hidden)
    if not core.hidden:
        raise ValueError(f"{op}: core.hidden has no layers")
    expected = width + 3 * units * blocks
    for i, layer in enumerate(core.hidden):
        if layer.weight.dim() != 3 or layer.weight.shape[0] != blocks:
            shape = list(layer.weight.shape)
            raise ValueError(f"{op}: core.hidden[{i}].weight has shape {shape}, expected {blocks} blocks")
        if layer.weight.shape[1:] != (expected // blocks, width // blocks):
            shape, wanted = list(layer.weight.shape[1:]), [expected // blocks, width // blocks]
            raise ValueError(f"{op}: core.hidden[{i}].weight has blocks {shape}, expected {wanted}")
        expected = width
    return width


def _add_layernorm_gru(flat: Flat, op: str, core: LayerNormGRU, stoch: int, action: int) -> int:
    flat.sizes.append(CORES.index("layernorm_gru"))
    units, width = core.inputs.weight.shape[0], core.gates.weight.shape[0] // 3
    add_layer(flat, op, "core.inputs", core.inputs, (stoch + action, units))
    add_layer(flat, op, "core.gates", core.gates, (units + width, 3 * width))
    return width


def _add_gru(flat: Flat, op: str, core: GRU, stoch: int, action: int) -> int:
    flat.sizes.append(CORES.index("gru" if core.reset_after else "gru_block_cell"))
    units, width = core.inputs.weight.shape[0], core.weight_hh.shape[-1]
    recurrent, of_input = Layer(core.weight_hh, core.bias_hh), Layer(core.weight_ih, core.bias_ih)
    add_layer(flat, op, "core.weight_hh", recurrent, (width, 3 * width))
    add_layer(flat, op, "core.inputs", core.inputs, (stoch + action, units))
    add_layer(flat, op, "core.weight_ih", of_input, (units, 3 * width))
    return width


class LatentShape(NamedTuple):
    """What a kernel reads of a latent: `Latent` of csrc/cpu/latent.h."""

    stoch: int
    classes: int  # of each variable, 0: normals
    form: int  # of their std
    unimix: float
    min_std: float

    @property
    def state(self) -> tuple[int, ...]:
        """Shape of one state."""
        return (self.stoch, self.classes) if self.classes else (self.stoch,)

    @property
    def width(self) -> int:
        """How many numbers one state is."""
        return self.stoch * max(1, self.classes)

    @property
    def logit(self) -> tuple[int, ...]:
        """Shape of what one state is drawn from."""
        return self.state if self.classes else (2 * self.stoch,)

    @property
    def factors(self) -> tuple[int, int]:
        """Of how many numbers that is."""
        return (self.stoch, self.classes) if self.classes else (2, self.stoch)

    @property
    def logits(self) -> int:
        """How many numbers that is."""
        return math.prod(self.factors)

    def draws(
        self, op: str, noise: Tensor | None, index: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """What draws a state, the other None: an index of classes is replayed. ValueError if nothing does."""
        if noise is None and not self.classes:
            raise ValueError(f"{op}: a Gaussian latent needs noise: it has no index that could be replayed")
        if noise is None and index is None:
            raise ValueError(f"{op} needs noise to draw with, or the index of an earlier draw")
        return (noise, None) if index is None or not self.classes else (None, index)


def latent_shape(op: str, latent: Latent) -> LatentShape:
    """That of either family."""
    if isinstance(latent, Categorical):
        return LatentShape(latent.stoch, latent.classes, 0, latent.unimix, 0.0)
    if latent.std not in STD_FORMS:
        raise ValueError(f"{op}: the latent's std is {latent.std!r}; choose {', '.join(STD_FORMS)}")
    return LatentShape(latent.stoch, 0, STD_FORMS.index(latent.std), 0.0, latent.min_std)


def check_params(op: str, tensors: list[Tensor], like: Tensor, name: str) -> None:
    """ValueError unless all parameters have the dtype and device of `like`, which is called `name`."""
    if like.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: {name} is {like.dtype}, expected torch.float32 or torch.float64")
    for x in tensors:
        if x.dtype != like.dtype or x.device != like.device:
            expected = f"{like.dtype} on {like.device} like {name}"
            raise ValueError(f"{op}: a parameter is {x.dtype} on {x.device}, expected {expected}")


def padded(width: int) -> int:
    """Stride of workspace rows: `padded` of csrc/cpu/product.h."""
    return width + 16 if width >= 512 and width % 256 == 0 else width
