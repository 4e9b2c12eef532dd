"""How a convolution reaches cuDNN, whose fast kernels want pixels of whole vectors of 16 bytes.

Channels are filled up with zeros. Where an image of few channels is pooled after its convolution, its 2x2 pixels become
channels of one first: 12 of 16 are then used of RGB, in place of 3 of 8, and the convolution gives all four pixels that
are pooled, side by side, as one of 4 * out channels. With a kernel of 5 it has 3x3 taps, of which the four outputs use
25 of 36 places each.
"""

from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from fastdream.ops.triton.config import row_tile
from fastdream.ops.triton.library import capability, launch
from fastdream.ops.triton.pool_kernels import fold_kernel

VECTOR = 16  # bytes


class Folding(NamedTuple):
    """Of a convolution with SAME padding: the image that it reads, and its zeros around it along each axis."""

    inp: int
    kernel: int
    channels: int
    before: int
    after: int
    folded: bool

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> Self:
        """x [B, H, W, in], weight [out, in, k, k]. Folded where that takes no more multiplications."""
        _, height, width, inp = x.shape
        kernel, vector = weight.shape[-1], VECTOR // x.element_size()
        before, after = (kernel - 1) // 2, kernel // 2
        plain = cls(inp, kernel, -(-inp // vector) * vector, before, after, False)
        fold = cls(inp, kernel, -(-4 * inp // vector) * vector, (before + 1) // 2, (after + 1) // 2, True)
        cheaper = fold.taps**2 * fold.channels <= kernel**2 * plain.channels
        return fold if cheaper and height % 2 == width % 2 == 0 else plain

    @property
    def taps(self) -> int:
        """Of the kernel of the convolution that is computed."""
        return self.before + self.after + 1

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution without bias: [B, H, W, out], or folded [B, H / 2, W / 2, 4 * out]."""
        y = torch.ops.aten.convolution(self._image(x), self._filters(weight, x), None, *self._options)
        return y.permute(0, 2, 3, 1).contiguous()

    def backward(self, x: Tensor, weight: Tensor, grad: Tensor, want_x: bool) -> tuple[Tensor | None, Tensor]:
        """Gradients of x, where it is wanted, and of weight."""
        image, filters, grad = self._image(x), self._filters(weight, x), grad.permute(0, 3, 1, 2)
        wanted = [want_x, True, False]
        d_image, d_filters, _ = torch.ops.aten.convolution_backward(
            grad, image, filters, None, *self._options, wanted
        )
        return self._d_x(d_image.permute(0, 2, 3, 1), x) if want_x else None, self._d_weight(d_filters)

    @property
    def _options(self) -> tuple:
        """Stride, padding, dilation, whether transposed, its padding, groups."""
        padding = self.before if self.before == self.after else 0
        return [1, 1], [padding, padding], [1, 1], False, [0, 0], 1

    @property
    def _around(self) -> tuple[int, ...]:
        """Zeros around an image that the convolution itself does not add, as it treats both ends alike."""
        return () if self.before == self.after else (self.before, self.after) * 2

    def _image(self, x: Tensor) -> Tensor:
        if self.folded:
            x, padding = self._fold(x.contiguous()), (0, 0, *self._around)
        else:
            padding = 0, self.channels - self.inp, *self._around
        x = F.pad(x, padding) if any(padding) else x
        return x.contiguous().permute(0, 3, 1, 2)

    def _fold(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        y = x.new_empty(batch, height // 2, width // 2, self.channels)
        rows, tile = y.numel() // self.channels, row_tile(self.channels, capability(x.device), tensors=2)
        launch(
            fold_kernel,
            (triton.cdiv(rows, tile.rows),),
            x,
            y,
            rows,
            height,
            width,
            N=self.inp,
            C=self.channels,
            BM=tile.rows,
            BN=tile.cols,
            num_warps=tile.warps,
        )
        return y

    def _d_x(self, d_image: Tensor, x: Tensor) -> Tensor:
        if self._around:
            d_image = d_image[:, self.before : -self.after, self.before : -self.after]
        if self.folded:
            d_image = d_image[..., : 4 * self.inp].unflatten(-1, (2, 2, self.inp)).transpose(2, 3)
        return d_image[..., : self.inp].reshape(x.shape).contiguous()

    def _filters(self, weight: Tensor, x: Tensor) -> Tensor:
        """The weight that is computed with, in x's dtype, its channels filled up and next to each other in memory."""
        out, inp, taps = len(weight), self.inp, self.taps
        filters = x.new_zeros(4 * out if self.folded else out, taps, taps, self.channels)
        if self.folded:
            # Windows of a field that is one longer than what an output's taps reach; the last is the first output's.
            reach, first = 2 * taps, self._windows[0].start
            field = F.pad(weight, (first + 1, reach - first - self.kernel) * 2)
            windows = field.unfold(2, reach, 1).unfold(3, reach, 1).flip(2, 3)
            windows = windows.unflatten(5, (taps, 2)).unflatten(4, (taps, 2))
            places = filters[..., : 4 * inp].unflatten(3, (2, 2, inp)).unflatten(0, (2, 2, out))
            places.copy_(windows.permute(2, 3, 0, 4, 6, 5, 7, 1))
        else:
            filters[..., :inp] = weight.permute(0, 2, 3, 1)
        return filters.permute(0, 3, 1, 2)

    def _d_weight(self, d_filters: Tensor) -> Tensor:
        """The gradient of weight from that of what was computed with; sums in float32."""
        inp = self.inp
        if not self.folded:
            return d_filters[:, :inp]
        places = (
            d_filters.permute(0, 2, 3, 1)[..., : 4 * inp].unflatten(3, (2, 2, inp)).unflatten(0, (2, 2, -1))
        )
        windows = places.permute(2, 7, 0, 1, 3, 5, 4, 6).float().flatten(6).flatten(4, 5)
        parts = [
            windows[:, :, i, j, a, b]
            for i, a in enumerate(self._windows)
            for j, b in enumerate(self._windows)
        ]
        return parts[0] + parts[1] + (parts[2] + parts[3])

    @property
    def _windows(self) -> tuple[slice, slice]:
        """Where the kernel is among the 2 * taps pixels, along an axis, that both outputs of a folded one reach."""
        first = 2 * self.before - (self.kernel - 1) // 2
        return slice(first, first + self.kernel), slice(first + 1, first + 1 + self.kernel)
