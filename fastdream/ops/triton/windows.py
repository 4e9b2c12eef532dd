"""A convolution of images of few channels with its 2x2 max-pool, norm and activation, in one launch each way.

cuDNN would give all four images that are pooled for one, and read all four gradients, of which three are zeros.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, Self

import torch
import triton
from torch import Tensor

from fastdream.ops.triton.config import Tile, power_of_two
from fastdream.ops.triton.dense_kernels import add_rows
from fastdream.ops.triton.library import capability, launch
from fastdream.ops.triton.window_kernels import (
    surround_kernel,
    window_d_weight_kernel,
    window_filters_kernel,
    window_pool_bwd_kernel,
    window_pool_fwd_kernel,
)

DEEPEST = 128  # numbers of a window
BROADEST = 64  # channels of the pooled image
REGISTERS = 128  # a thread, at the most, of the forward pass: else one program has an SM to itself
PROGRAMS = 132  # of the backward pass, each with an SM to itself: it adds up the gradient of all weights
LINE = 8  # numbers, which lines of a surrounded image have a multiple of

Optional = Tensor | None


def forward_tile(cols: int) -> Tile:
    """Pixels that a program pools, each from four times `cols` products."""
    return Tile(min(128, 2048 // cols), cols, 4)


def backward_tile(cols: int, capability: int) -> Tile:
    """Those whose gradients it multiplies with at a time. Its sums for all weights are in registers."""
    if cols == BROADEST:
        return Tile(32 if capability >= 90 else 16, cols, 8)
    return Tile(64, cols, 16) if capability >= 90 else Tile(32, cols, 8)


class Windows(NamedTuple):
    """Of a convolution that is computed so: sizes of its kernels."""

    batch: int
    height: int  # of the images
    width: int
    inp: int
    out: int
    kernel: int

    @classmethod
    def of(cls, shape: Sequence[int], weight: Tensor, itemsize: int) -> Self | None:
        """Of images [..., H, W, in], or None where these kernels do not serve them."""
        (*batch, height, width, inp), (out, _, kernel, _) = shape, weight.shape
        found = cls(prod(batch), height, width, inp, out, kernel)
        even = height, width, (kernel + 1) * inp
        serves = itemsize == 2 and found.depth <= DEEPEST and found.cols <= BROADEST
        serves = serves and max(prod(found.image), found.pixels * out) < 2**30  # offsets have 32 bits
        return found if serves and not any(n % 2 for n in even) else None

    @property
    def depth(self) -> int:
        return max(16, power_of_two((self.kernel + 1) ** 2 * self.inp))

    @property
    def cols(self) -> int:
        return max(16, power_of_two(self.out))

    @property
    def pixels(self) -> int:
        """Of all pooled images."""
        return self.batch * (self.height // 2) * (self.width // 2)

    @property
    def image(self) -> tuple[int, int, int]:
        """Shape of the images with zeros around them."""
        line = (self.width + self.kernel - 1) * self.inp
        return self.batch, self.height + self.kernel - 1, -(-line // LINE) * LINE

    def surround(self, x: Tensor, image: Tensor) -> None:
        """Fill `image` with x [..., H, W, in] and zeros around it; uint8 become values from -0.5 to 0.5."""
        if x.dim() != 5 or not len(x) or not x[0].is_contiguous():
            x = x.contiguous().view(1, self.batch, *x.shape[-3:])
        (batch, lines, line), rows = image.shape, 8
        launch(
            surround_kernel,
            (triton.cdiv(batch * lines, rows),),
            x,
            image,
            batch * lines,
            x.shape[1],
            x.stride(0),
            H=self.height,
            W=self.width,
            N=self.inp,
            K=self.kernel,
            P=line,
            SCALED=x.dtype == torch.uint8,
            BM=rows,
            BN=power_of_two(line),
            num_warps=8,
        )

    def forward(self, image: Tensor, weight: Tensor, tensors: Sequence[Optional], **options: Any) -> None:
        """tensors: bias, scale, shift; then y, maxima and places, to be filled."""
        filters = image.new_empty(self.depth, 4, self.cols)
        launch(window_filters_kernel, (self.depth,), weight, filters, self.out, **self._sizes, num_warps=1)
        tile = forward_tile(self.cols)
        grid = (triton.cdiv(self.pixels, tile.rows),)
        options |= {"maxnreg": REGISTERS}
        self._launch(window_pool_fwd_kernel, grid, tile, (image, filters, *tensors), options)

    def backward(
        self, image: Tensor, weight: Tensor, kept: Sequence[Optional], **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Gradients of weight, and of bias, scale and shift [3 * out] float32.

        kept: maxima, places, bias, scale, shift, gradient of y.
        """
        tile, size = backward_tile(self.cols, capability(image.device)), self.depth * 4 * self.cols
        programs = min(PROGRAMS, triton.cdiv(self.pixels, tile.rows))
        partial = weight.new_empty(programs, 3 * self.out + size, dtype=torch.float32)
        self._launch(window_pool_bwd_kernel, (programs,), tile, (image, *kept, partial), options)
        d_vectors, sums = add_rows(partial).split([3 * self.out, size])
        d_weight = torch.empty_like(weight)
        grid = (self.kernel**2 * self.inp,)
        launch(window_d_weight_kernel, grid, sums, d_weight, self.out, **self._sizes, num_warps=1)
        return d_weight, d_vectors

    @property
    def _sizes(self) -> dict[str, int]:
        return {"N": self.inp, "K": self.kernel, "BN": self.cols}

    def _launch(
        self,
        kernel: Any,
        grid: tuple[int],
        tile: Tile,
        tensors: Sequence[Optional],
        options: dict[str, Any],
    ) -> None:
        height, width = self.height // 2, self.width // 2
        launch(
            kernel,
            grid,
            *tensors,
            options.pop("eps"),
            self.pixels,
            H=height,
            W=width,
            N=self.out,
            LINE=(self.kernel + 1) * self.inp,
            LINES=self.kernel + 1,
            P=self.image[-1],
            EVEN=height * width % tile.rows == min(width % tile.rows, tile.rows % width) == 0,
            BM=tile.rows,
            BN=tile.cols,
            BK=self.depth,
            num_warps=tile.warps,
            **options,
        )
