"""How a convolution reaches cuDNN, whose fast kernels want pixels of many channels, in whole vectors of 16 bytes.

Channels are filled up with zeros. Neighbouring pixels become channels of one place, of the image that is convolved and
of the one that this gives, alike. Between 2 columns of 5 taps it takes 1.2 times the multiplications, of which a tile
of the tensor cores may then waste fewer, and both images stay as they are in memory. Where an image of few channels is
pooled after its convolution, 2x2 pixels become a place: 12 of 16 channels are then used of RGB, in place of 3 of 8, and
the four pixels that are pooled lie side by side.
"""

from math import prod
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from fastdream.ops.triton.config import Tile, row_tile
from fastdream.ops.triton.folding_kernels import d_weight_kernel, filters_kernel, fold_kernel
from fastdream.ops.triton.library import capability, launch

VECTOR = 16  # bytes
HALF_TILE = 64  # channels: half of what a tile has at the most in cuDNN's kernels for Hopper


class Axis(NamedTuple):
    """Of the places of an image along one axis, and of the convolution from them to as many."""

    fold: int  # pixels that are channels of a place, and outputs
    before: int  # places around the image, filled with zeros
    after: int
    first: int  # of the pixels in reach, where the kernel of a place's first output begins

    @classmethod
    def of(cls, kernel: int, fold: int) -> Self:
        """For a kernel of SAME padding."""
        before, after = (-(-reach // fold) for reach in ((kernel - 1) // 2, kernel // 2))
        return cls(fold, before, after, before * fold - (kernel - 1) // 2)

    @property
    def taps(self) -> int:
        return self.before + self.after + 1

    @property
    def padding(self) -> int:
        """Zeros that the convolution itself adds: it treats both ends alike."""
        return self.before if self.before == self.after else 0

    @property
    def around(self) -> tuple[int, int]:
        """Zeros that it does not."""
        return (0, 0) if self.before == self.after else (self.before, self.after)


class Folding(NamedTuple):
    """A convolution of stride 1 with SAME padding from `inp` to `out` channels, folded along rows and columns."""

    inp: int
    out: int
    kernel: int
    rows: Axis
    columns: Axis
    channels: int  # of a place, with those that fill up vectors

    @classmethod
    def of(cls, inp: int, out: int, kernel: int, itemsize: int, rows: int = 1, columns: int = 1) -> Self:
        """With so many rows and columns in a place."""
        channels, vector = rows * columns * inp, VECTOR // itemsize
        axes = Axis.of(kernel, rows), Axis.of(kernel, columns)
        return cls(inp, out, kernel, *axes, -(-channels // vector) * vector)

    @property
    def paired(self) -> bool:
        """Whether the four outputs that are pooled are channels of a place."""
        return self.rows.fold == self.columns.fold == 2

    @property
    def work(self) -> float:
        """Multiplications for each of the outputs that one channel has."""
        return self.rows.taps * self.columns.taps * self.channels

    def fits(self, height: int, width: int) -> bool:
        return height % self.rows.fold == width % self.columns.fold == 0

    def forward(self, image: Tensor, weight: Tensor) -> Tensor:
        """The convolution without bias of `image`: [B, H, W, out], or [B, H / 2, W / 2, 4 * out] where paired."""
        filters = self.filters(weight, image.dtype)
        y = torch.ops.aten.convolution(image, filters, None, *self._options).permute(0, 2, 3, 1).contiguous()
        return y if self.paired else y.unflatten(-1, (-1, self.out)).flatten(2, 3)

    def d_weight(self, image: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        """Gradient of weight, from `grad` as `forward` gives it; sums in float32."""
        outputs = self.rows.fold * self.columns.fold * self.out
        like = image.new_empty(outputs, self.rows.taps, self.columns.taps, self.channels).permute(0, 3, 1, 2)
        d_filters = self._gradients(image, like, grad, [False, True, False])[1].permute(0, 2, 3, 1)
        d_weight = torch.empty_like(weight, memory_format=torch.contiguous_format)
        tile = self._tile(self.inp, weight)
        grid = (triton.cdiv(self.out * self.kernel**2, tile.rows),)
        launch(d_weight_kernel, grid, d_filters.contiguous(), d_weight, self.out, **self._constants(tile))
        return d_weight

    def d_x(self, weight: Tensor, grad: Tensor) -> Tensor:
        """Gradient of an image [B, H, W, in], from `grad` as `forward` gives it."""
        rows, columns, image = self.rows, self.columns, self._places(grad)
        height, width = (
            n + sum(axis.around) for n, axis in zip(image.shape[1:3], (rows, columns), strict=True)
        )
        like = grad.new_empty(len(grad), height, width, self.channels).permute(0, 3, 1, 2)
        d_image = self._gradients(like, self.filters(weight, grad.dtype), grad, [True, False, False])[0]
        d_image = d_image.permute(0, 2, 3, 1)
        for axis, (before, after) in ((1, rows.around), (2, columns.around)):
            d_image = d_image.narrow(axis, before, d_image.shape[axis] - before - after)
        d_image = d_image[..., : rows.fold * columns.fold * self.inp]
        d_image = d_image.unflatten(-1, (rows.fold, columns.fold, self.inp)).transpose(2, 3)
        return d_image.flatten(3, 4).flatten(1, 2).contiguous()

    def image(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What is convolved, channels last, of x [..., H, W, in], whose uint8 become values from -0.5 to 0.5."""
        *batch, height, width, _ = x.shape
        places = prod(batch), height // self.rows.fold, width // self.columns.fold, self.channels
        if self.rows.fold > 1 or self.channels != self.columns.fold * self.inp or x.dtype != dtype:
            x = self._gather(x, x.new_empty(places, dtype=dtype))
        x = x.contiguous().view(places)
        around = *self.columns.around, *self.rows.around
        return (F.pad(x, (0, 0, *around)) if any(around) else x).permute(0, 3, 1, 2)

    def filters(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight that is convolved with, channels last."""
        outputs = self.rows.fold * self.columns.fold * self.out
        y = weight.new_empty(outputs, self.rows.taps, self.columns.taps, self.channels, dtype=dtype)
        tile = self._tile(self.channels, weight)
        grid = (triton.cdiv(y.numel() // self.channels, tile.rows),)
        launch(filters_kernel, grid, weight, y, self.out, **self._constants(tile))
        return y.permute(0, 3, 1, 2)

    @property
    def _options(self) -> tuple[Any, ...]:
        """Stride, padding, dilation, whether transposed, its padding, groups."""
        return [1, 1], [self.rows.padding, self.columns.padding], [1, 1], False, [0, 0], 1

    def _places(self, grad: Tensor) -> Tensor:
        return grad if self.paired else grad.unflatten(2, (-1, self.columns.fold)).flatten(3)

    def _gradients(self, image: Tensor, filters: Tensor, grad: Tensor, wanted: list[bool]) -> Any:
        """Gradients of image and filters, as far as they are wanted; what is not read is there for its shape."""
        grad = self._places(grad).permute(0, 3, 1, 2)
        return torch.ops.aten.convolution_backward(grad, image, filters, None, *self._options, wanted)

    def _gather(self, x: Tensor, y: Tensor) -> Tensor:
        if x.dim() != 5 or not len(x) or not x[0].is_contiguous():
            x = x.contiguous().view(1, -1, *x.shape[-3:])
        places, tile = y.numel() // self.channels, row_tile(self.channels, capability(x.device), tensors=2)
        launch(
            fold_kernel,
            (triton.cdiv(places, tile.rows),),
            x,
            y,
            places,
            x.shape[1],
            x.stride(0),
            *x.shape[2:4],
            N=self.inp,
            C=self.channels,
            FOLD_R=self.rows.fold,
            FOLD_C=self.columns.fold,
            SCALED=x.dtype == torch.uint8,
            BM=tile.rows,
            BN=tile.cols,
            num_warps=tile.warps,
        )
        return y

    def _tile(self, width: int, weight: Tensor) -> Tile:
        """Of the kernels on weights: few elements a thread, for all that it computes of each."""
        return row_tile(width, capability(weight.device), tensors=4)

    def _constants(self, tile: Tile) -> dict[str, Any]:
        """Of the kernels on weights."""
        return {
            "N": self.inp,
            "K": self.kernel,
            "C": self.channels,
            "FOLD_R": self.rows.fold,
            "TAPS_R": self.rows.taps,
            "FIRST_R": self.rows.first,
            "FOLD_C": self.columns.fold,
            "TAPS_C": self.columns.taps,
            "FIRST_C": self.columns.first,
            "BM": tile.rows,
            "BN": tile.cols,
            "num_warps": tile.warps,
        }


class Foldings(NamedTuple):
    """How a convolution is computed, and its two gradients."""

    y: Folding
    weight: Folding
    x: Folding

    @classmethod
    def of(cls, shape: tuple[int, ...], weight: Tensor, itemsize: int) -> Self:
        """Of images [..., H, W, in] and weight [out, in, k, k].

        Pairs of rows and columns where that takes no more multiplications. Pairs of columns in half precision where
        channels that come out fill no more than half of a tile: of two to three times as many it did not pay.
        """
        (height, width, inp), (out, _, kernel, _) = shape[-3:], weight.shape
        plain = Folding.of(inp, out, kernel, itemsize)
        pairs = Folding.of(inp, out, kernel, itemsize, 2, 2)
        if pairs.work <= plain.work and pairs.fits(height, width):
            return cls(pairs, pairs, pairs)
        columns = Folding.of(inp, out, kernel, itemsize, 1, 2)
        if itemsize != 2 or kernel < 5 or not columns.fits(height, width):
            return cls(plain, plain, plain)
        gradients = columns if inp <= HALF_TILE else plain
        return cls(columns if out <= HALF_TILE else plain, gradients, gradients)

    def forward(self, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The convolution without bias, as `Folding.forward` gives it."""
        return self.y.forward(self.y.image(x, dtype), weight)

    def d_weight(self, x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        """Gradient of weight."""
        return self.weight.d_weight(self.weight.image(x, grad.dtype), weight, grad)

    def d_x(self, weight: Tensor, grad: Tensor) -> Tensor:
        """Gradient of x."""
        return self.x.d_x(weight, grad)
