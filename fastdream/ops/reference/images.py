"""Norm and activation at every pixel of an image, together with what halves or doubles the image."""

import torch.nn.functional as F
from torch import Tensor

from fastdream.ops.params import Act, Norm
from fastdream.ops.reference.layers import norm_act


def pool_norm_act(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm = "rms",
    act: Act = "silu",
    eps: float = 1e-4,
) -> Tensor:
    """2x2 max-pool, then `norm_act` over the channels of each pixel.

    x [B, H, W, N], the rest as in `norm_act`. A last odd row or column is left out. Of equal maxima the first one,
    row by row, gets the gradient.
    Returns [B, H // 2, W // 2, N] in x.dtype. Source: DreamerV3 `rssm.Encoder`.
    """
    top = F.max_pool2d(x.permute(0, 3, 1, 2), 2)
    return norm_act(top.permute(0, 2, 3, 1), scale, shift, norm, act, eps)


def spread_norm_act(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    norm: Norm = "rms",
    act: Act = "silu",
    eps: float = 1e-4,
) -> Tensor:
    """`norm_act` over each quarter of a pixel's channels, which becomes one of 2x2 pixels, row by row.

    x [B, H, W, 4 * N], the rest as in `norm_act`. It follows a convolution that computes an image of twice the size.
    Returns [B, 2 * H, 2 * W, N] in x.dtype.
    """
    batch, height, width, channels = x.shape
    y = norm_act(x.reshape(batch, height, width, 4, channels // 4), scale, shift, norm, act, eps)
    y = y.reshape(batch, height, width, 2, channels // 2).transpose(2, 3)
    return y.reshape(batch, 2 * height, 2 * width, channels // 4)
