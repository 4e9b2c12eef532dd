"""Convolutions of images, with the norm and activation that follow each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdream.nets import NormAct, trunc_normal_in_
from fastdream.ops import Ops
from fastdream.ops.params import Act, Norm


class Conv(NormAct):
    """Convolution with SAME padding, optional 2x2 max-pool, norm over channels at each pixel, activation.

    weight is [out, inp, kernel, kernel]. stride 2 halves the resolution; transposed with stride 2 doubles it,
    in the official code's alignment (each input pixel sits at the odd output position).
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
        super().__init__(ops, out, norm, act)
        self.kernel, self.stride, self.transposed, self.pool = kernel, stride, transposed, pool
        self.weight = nn.Parameter(torch.empty(out, inp, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out))
        trunc_normal_in_(self.weight, kernel * kernel * inp, outscale, generator)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, inp, H, W] -> [N, out, H', W'] in the dtype of x; channels-last memory stays so."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        x = self._double(x, weight, bias) if self.transposed else self._same(x, weight, bias)
        if self.pool:
            x = F.max_pool2d(x, 2)
        return self.normalize(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def _same(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        (top, bottom), (left, right) = (same_padding(n, self.kernel, self.stride) for n in x.shape[2:])
        if top == bottom and left == right:
            return F.conv2d(x, weight, bias, self.stride, (top, left))
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, self.stride)

    def _double(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # The official code repeats x twice along both axes, zeroes the even positions and convolves. That is
        # this transposed convolution with the kernel flipped, cut to twice the input.
        height, width = 2 * x.shape[2], 2 * x.shape[3]
        padding = self.kernel - 2 - (self.kernel - 1) // 2
        x = F.conv_transpose2d(x, weight.transpose(0, 1).flip(2, 3), bias, 2, padding)
        return x[:, :, :height, :width]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis under XLA's SAME padding, which gives ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2
