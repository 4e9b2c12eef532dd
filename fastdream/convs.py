"""Convolutions of images, with the norm and activation that follow each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdream.nets import NormAct, trunc_normal_in_
from fastdream.ops import Ops
from fastdream.ops.params import Act, Norm
from fastdream.ops.reference.images import filters, phase_taps, phase_weight, pixels


class Conv(NormAct):
    """Convolution with SAME padding, optional 2x2 max-pool, norm over channels at each pixel, activation.

    weight is [out, inp, kernel, kernel]. stride 2 halves the resolution; transposed with stride 2 doubles it,
    in the official code's alignment (each input pixel sits at the odd output position). upsample doubles it by
    repeating every pixel before the convolution.
    """

    def __init__(
        self,
        ops: Ops,
        inp: int,
        out: int,
        kernel: int,
        *,
        stride: int = 1,
        transposed: bool = False,
        upsample: bool = False,
        pool: bool = False,
        norm: Norm = "none",
        act: Act = "none",
        outscale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if transposed and (stride != 2 or kernel < 2):
            raise ValueError(
                f"a transposed convolution needs stride 2 and kernel >= 2, got {stride} and {kernel}"
            )
        if pool and (stride != 1 or upsample) or upsample and stride != 1:
            raise ValueError(
                f"choose one of stride 2, pool and upsample, got {stride=}, {pool=}, {upsample=}"
            )
        super().__init__(ops, out, norm, act)
        self.kernel, self.stride, self.transposed = kernel, stride, transposed
        self.upsample, self.pool = upsample, pool
        self.weight = nn.Parameter(torch.empty(out, inp, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out))
        if upsample:
            self.taps: Tensor
            self.register_buffer("taps", phase_taps(kernel), persistent=False)
        trunc_normal_in_(self.weight, kernel * kernel * inp, outscale, generator)

    def forward(self, x: Tensor, stored: torch.dtype | None = None) -> Tensor:
        """x [N, inp, H, W] -> [N, out, H', W'] in the dtype of x; channels-last memory stays so.

        With `stored`, x is images as they are stored, uint8 [..., H, W, inp], as values from -0.5 to 0.5 in that type.
        """
        affine = self.scale, self.shift, self.norm, self.act, self.eps
        if stored and not self.pool:
            x, stored = pixels(x, stored).permute(0, 3, 1, 2), None
        if self.pool:
            x = x if stored else x.permute(0, 2, 3, 1)
            x = self.ops.conv_pool(x, self.weight, self.bias, *affine, dtype=stored)
        elif self.upsample:
            weight = phase_weight(self.weight, self.taps)
            x = self.ops.conv_spread(x.permute(0, 2, 3, 1), weight, self.bias, *affine)
        else:
            x = self._double(x) if self.transposed else self._same(x)
            x = self.normalize(x.permute(0, 2, 3, 1))
        return x.permute(0, 3, 1, 2)

    def _same(self, x: Tensor) -> Tensor:
        weight, bias = filters(self.weight, x.dtype), self.bias.to(x.dtype)
        x, padding = pad(x, *(same_padding(n, self.kernel, self.stride) for n in x.shape[2:]))
        return F.conv2d(x, weight, bias, self.stride, padding)

    def _double(self, x: Tensor) -> Tensor:
        # The official code repeats x twice along both axes, zeroes the even positions and convolves. That is
        # this transposed convolution with the kernel flipped, cut to twice the input.
        height, width = 2 * x.shape[2], 2 * x.shape[3]
        padding = self.kernel - 2 - (self.kernel - 1) // 2
        weight = filters(self.weight.transpose(0, 1).flip(2, 3), x.dtype)
        x = F.conv_transpose2d(x, weight, self.bias.to(x.dtype), 2, padding)
        # Cut pixel by pixel: the gradient of a cut is made in the order of what is cut.
        return x.permute(0, 2, 3, 1)[:, :height, :width].permute(0, 3, 1, 2)


class Valid(NormAct):
    """Convolution of stride 2 without padding, or its transpose; norm over channels at each pixel; activation.

    weight is [out, inp, kernel, kernel] in both.
    """

    def __init__(
        self,
        ops: Ops,
        inp: int,
        out: int,
        kernel: int,
        *,
        transposed: bool = False,
        norm: Norm = "none",
        act: Act = "none",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(ops, out, norm, act)
        self.transposed = transposed
        self.weight = nn.Parameter(torch.empty(out, inp, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out))
        trunc_normal_in_(self.weight, kernel * kernel * inp, 1.0, generator)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inp, H, W] -> [N, out, H', W'] in the dtype of x, H' = (H - k) // 2 + 1 or (H - 1) * 2 + k."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        convolve, weight = (
            (F.conv_transpose2d, weight.transpose(0, 1)) if self.transposed else (F.conv2d, weight)
        )
        x = convolve(x, weight, bias, 2)
        return self.normalize(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis under XLA's SAME padding, which gives ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def pad(x: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """x [N, C, H, W] and what is left for the convolution to pad, which treats both ends alike."""
    if rows[0] == rows[1] and columns[0] == columns[1]:
        return x, (rows[0], columns[0])
    return F.pad(x, (*columns, *rows)), (0, 0)
