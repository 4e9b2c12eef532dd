"""Convolutions that halve an image or double it, with norm and activation at every pixel; the loss of an image."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdream.ops.params import Act, Norm
from fastdream.ops.reference.layers import match, norm_act, upcast


def filters(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """weight [out, in, k, k] in `dtype`; where that takes a copy, in the memory format of the images."""
    return weight if weight.dtype == dtype else weight.to(dtype, memory_format=torch.channels_last)


def conv_same(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution of x [B, in, H, W] with SAME padding. weight [out, in, k, k], bias [out], all of one dtype."""
    kernel, padding = weight.shape[-1], weight.shape[-1] // 2
    if kernel % 2 == 0:
        x, padding = F.pad(x, (kernel // 2 - 1, kernel // 2) * 2), 0
    return match(F.conv2d(x, weight, bias, padding=padding), x.dtype)


def check_stored(x: Tensor) -> None:
    """ValueError for images that are not as they are stored: floats from 0 to 1 would be taken for black."""
    if x.dtype != torch.uint8:
        raise ValueError(
            f"an image is {x.dtype} {list(x.shape)}, expected torch.uint8 [..., H, W, C] from 0 to 255"
        )


def pixels(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Images, uint8 [..., H, W, C], as values from -0.5 to 0.5 [N, H, W, C] in `dtype`."""
    check_stored(x)
    return x.reshape(-1, *x.shape[-3:]).to(dtype).div_(255).sub_(0.5)


def conv_pool(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm = "rms",
    act: Act = "silu",
    eps: float = 1e-4,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Convolution with SAME padding, 2x2 max-pool, then `norm_act` over the channels of each pixel.

    x [B, H, W, in], weight [out, in, k, k], bias [out], the rest as in `norm_act`. weight and bias are cast to
    x.dtype. A last odd row or column is not pooled. Of equal maxima the first one, row by row, gets the gradient.
    With `dtype`, x is images as they are stored, uint8 [..., H, W, in], and B is how many: `pixels` in that type.
    Returns [B, H // 2, W // 2, out] in x.dtype. Source: DreamerV3 `rssm.Encoder`.
    """
    x = x if dtype is None else pixels(x, dtype)
    y = conv_same(x.permute(0, 3, 1, 2), filters(weight, x.dtype), match(bias, x.dtype))
    return norm_act(F.max_pool2d(y, 2).permute(0, 2, 3, 1), scale, shift, norm, act, eps)


def spread_norm_act(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm = "rms",
    act: Act = "silu",
    eps: float = 1e-4,
) -> Tensor:
    """`norm_act` over each quarter of a pixel's channels, which becomes one of 2x2 pixels, row by row.

    x [B, H, W, 4 * N], the rest as in `norm_act`.
    Returns [B, 2 * H, 2 * W, N] in x.dtype.
    """
    batch, height, width, channels = x.shape
    y = norm_act(x.reshape(batch, height, width, 4, channels // 4), scale, shift, norm, act, eps)
    y = y.reshape(batch, height, width, 2, channels // 2).transpose(2, 3)
    return y.reshape(batch, 2 * height, 2 * width, channels // 4)


def conv_spread(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm = "rms",
    act: Act = "silu",
    eps: float = 1e-4,
) -> Tensor:
    """Convolution with SAME padding to each of 2x2 pixels for one, row by row, then `norm_act` over their channels.

    x [B, H, W, in], weight [4, out, in, k, k], bias [out], the rest as in `norm_act`. weight and bias are cast to
    x.dtype. Returns [B, 2 * H, 2 * W, out] in x.dtype.
    """
    weight, bias = filters(weight.flatten(0, 1), x.dtype), match(bias, x.dtype).repeat(4)
    y = conv_same(x.permute(0, 3, 1, 2), weight, bias).permute(0, 2, 3, 1)
    return spread_norm_act(y, scale, shift, norm, act, eps)


def phase_taps(kernel: int) -> Tensor:
    """Which taps of a kernel meet which pixels of an image that is doubled under it.

    [k * k, 4, t * t] of 0 and 1, for outputs at even-even, even-odd, odd-even and odd-odd rows and columns. Along
    an axis t pixels are in reach, 3 for k = 5. SAME padding of the image is that of the doubled one.
    """
    before = (kernel - 1) // 2
    ahead, behind = (before + 1) // 2, (kernel - before) // 2
    taps = ahead + behind + 1
    met = (torch.arange(2)[:, None] + torch.arange(kernel) - before) // 2 + ahead
    one = F.one_hot(met, taps).float()
    return torch.einsum("akt, blu -> klabtu", one, one).reshape(kernel**2, 4, taps**2).contiguous()


def phase_weight(weight: Tensor, taps: Tensor) -> Tensor:
    """Weight of the convolution on an image that gives what `weight` gives on the image doubled.

    weight [out, inp, k, k], `phase_taps` -> [4, out, inp, t, t], a view that `conv_spread` takes. Taps that meet one
    pixel are added up: with k = 5 remain 36 of 100 multiplications.
    """
    out, inp, kernel, _ = weight.shape
    reach = math.isqrt(taps.shape[-1])
    phases = weight.reshape(out * inp, kernel**2) @ taps.flatten(1)
    return phases.view(out, inp, 4, reach, reach).permute(2, 0, 1, 3, 4)


def image_loss(x: Tensor, target: Tensor) -> Tensor:
    """Squared error of an image with values in [0, 1], summed over its pixels and colours.

    x [..., H, W, C] before the sigmoid, target of the same shape as images are stored, uint8 from 0 to 255. Returns
    [...] in float32, or float64 where x is. Raises ValueError for a target of another type.
    """
    check_stored(target)
    # The target is read as it is: a copy in float32 would be four times as large.
    return torch.sub(upcast(x).sigmoid(), target, alpha=1 / 255).square().sum((-3, -2, -1))
