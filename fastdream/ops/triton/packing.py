"""Parameters of many layers, packed for a few kernels: two flat tensors, and where in them each layer lies.

Kernels on whole rows take the descriptions as constants: plain tuples, importable without Triton.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import GRU, Act, Layer, Norm
from fastdream.ops.triton.config import TailCut, power_of_two

ALIGNED = 64  # elements: every packed tensor begins at a cache line
COLS = (
    32  # of a tile of outputs: more than rows, or else Triton gives every warp all columns of every product
)
WIDE = 256  # columns above which a program, which has their sums in registers, takes half as many weights at a time


class Row(NamedTuple):
    """A layer on whole rows. Places are offsets in the packed tensors, -1 for what is not there."""

    weight: int  # [out, inp], or [inp, out] if gathered; -1 where another kernel multiplies
    bias: int
    scale: int
    shift: int
    inp: int
    out: int
    gathered: bool  # the inputs are one-hots
    cols: int  # of its tile of outputs: a power of two
    depth: int  # inputs that are multiplied at a time; `inp` or more if all of them are
    norm: Norm
    act: Act
    eps: float


class Flat:
    """Tensors to be copied into one."""

    def __init__(self) -> None:
        self._pairs: list[tuple[int, Tensor]] = []
        self._size = 0

    def add(self, *tensors: Tensor) -> int:
        """Where these tensors will lie, one directly after the other."""
        place = end = self._size
        for x in tensors:
            self._pairs.append((end, x.detach()))
            end += x.numel()
        self._size = -(-end // ALIGNED) * ALIGNED
        return place

    def pack(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """All of them in one tensor: in a launch for each precision, but for those with gaps in memory."""
        flat = torch.empty(self._size, dtype=dtype, device=device)
        pairs = [(part(flat, place, *x.shape), x) for place, x in self._pairs]
        for of_one in {x.dtype: None for _, x in pairs}:  # or else each would be a launch
            dense = [(y, x) for y, x in pairs if x.dtype == of_one and x.is_contiguous()]
            if dense:
                torch._foreach_copy_([y for y, _ in dense], [x for _, x in dense])
        for y, x in pairs:
            if not x.is_contiguous():
                y.copy_(x)
        return flat


def part(flat: Tensor, place: int, *shape: int) -> Tensor:
    """The tensor of this shape that lies at a place."""
    return flat[place : place + torch.Size(shape).numel()].view(shape)


class Place(NamedTuple):
    """Where a whole layer lies."""

    layer: Layer
    weight: int
    vectors: tuple[int, int, int]  # bias, scale, shift; -1 for None

    def layer_in(self, weights: Tensor, vectors: Tensor) -> Layer:
        """The layer as it lies there."""
        out = len(self.layer.weight) if self.layer.weight.dim() == 2 else self.layer.weight[:, 0].numel()
        bias, scale, shift = (None if at < 0 else part(vectors, at, out) for at in self.vectors)
        weight = part(weights, self.weight, *self.layer.weight.shape)
        return self.layer._replace(weight=weight, bias=bias, scale=scale, shift=shift)


class Packer:
    """Collects parameters: weights to be copied in the dtype of products, vectors in float32."""

    def __init__(self, cut: TailCut, itemsize: int) -> None:
        """itemsize: of the dtype of products."""
        self.weights, self.vectors = Flat(), Flat()
        self.cut, self._itemsize = cut, itemsize

    def row(self, layer: Layer, weight: Tensor | None = None, *, gathered: bool = False) -> Row:
        """Describe a layer that multiplies rows by `weight`, all or some columns of its own [out, inp].

        None: another kernel multiplies, and adds the bias.
        """
        out, inp = layer.weight.shape if weight is None else weight.shape
        place = -1 if weight is None else self.weights.add(weight.t() if gathered else weight)
        layer = layer if weight is not None else layer._replace(bias=None)
        return self._row(place, self._vectors(layer), inp, out, gathered, layer)

    def tiled(self, layer: Layer) -> Row:
        """Describe a layer whose outputs are as many as a stage's weights make, of all inputs, at a time."""
        row = self.row(layer, layer.weight)
        inputs = max(16, power_of_two(row.inp)) if self.cut.whole else self.cut.depth
        cols = max(16, min(row.cols, self.cut.stage // (inputs * self._itemsize)))
        return row._replace(cols=cols, depth=self._depth(row.inp, cols))

    def _vectors(self, layer: Layer) -> tuple[int, int, int]:
        """Places of bias, scale and shift; those of a norm that is none are not there."""
        normed = layer if layer.norm != "none" else layer._replace(scale=None, shift=None)
        bias, scale, shift = (-1 if x is None else self.vectors.add(x) for x in normed[1:4])
        return bias, scale, shift

    def place(self, layer: Layer) -> Place:
        """Collect a whole layer."""
        return Place(layer, self.weights.add(layer.weight), self._vectors(layer))

    def plain(self, core: GRU) -> tuple[Place, Place]:
        """Collect both maps of a plain GRU as `gru` wants them: the first with the candidate's rows in front."""
        gates = len(core.weight_ih) // 3
        reset_update, cand = core.weight_ih.split([2 * gates, gates])
        weight = self.weights.add(cand, reset_update)
        of_x = Place(Layer(core.weight_ih), weight, (self.vectors.add(core.bias_ih), -1, -1))
        return of_x, self.place(Layer(core.weight_hh, core.bias_hh))

    def joined(self, layers: list[Layer]) -> Row:
        """Describe layers that multiply the same rows, and are linear, as one with all their outputs."""
        weights = [layer.weight for layer in layers]
        bias = self.vectors.add(*biases(layers))
        out, inp = sum(map(len, weights)), weights[0].shape[1]
        return self._row(self.weights.add(*weights), (bias, -1, -1), inp, out, False, layers[0])

    def _row(
        self, weight: int, vectors: tuple[int, int, int], inp: int, out: int, gathered: bool, layer: Layer
    ) -> Row:
        cols = max(COLS, power_of_two(out))
        depth = self._depth(inp, cols)
        return Row(weight, *vectors, inp, out, gathered, cols, depth, layer.norm, layer.act, layer.eps)

    def _depth(self, inp: int, cols: int) -> int:
        """Inputs that are multiplied at a time, of a tile of so many outputs."""
        all_of_them, bytes_of_one = max(16, power_of_two(inp)), cols * self._itemsize
        if all_of_them * bytes_of_one <= self.cut.whole:
            return all_of_them
        stage = self.cut.stage // (2 if cols > WIDE else 1)
        return min(all_of_them, max(16, min(self.cut.depth, stage // bytes_of_one)))

    def pack(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Weights in `dtype`, and vectors."""
        return self.weights.pack(dtype, device), self.vectors.pack(torch.float32, device)


def biases(layers: list[Layer]) -> list[Tensor]:
    """The bias of each, zeros for none."""
    return [x.weight.new_zeros(len(x.weight)) if x.bias is None else x.bias for x in layers]
