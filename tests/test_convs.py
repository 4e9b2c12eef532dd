"""Convolutions: padding, pooling, transposition."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fastdream import ops as fd
from fastdream.convs import Conv, same_padding

OPS = fd.load("reference")


def test_initial_weights_count_the_whole_input() -> None:
    conv = Conv(OPS, 32, 64, 5, generator=torch.Generator().manual_seed(0))
    assert float(conv.weight.detach().std()) == pytest.approx(1 / math.sqrt(25 * 32), rel=0.05)


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 3))
def test_same_padding_keeps_the_rounded_up_size(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    outputs = (size + before + after - kernel) // stride + 1
    assert 0 <= after - before <= 1
    assert outputs == math.ceil(size / stride) or kernel < stride  # wide strides skip the end without padding


def official_double(x: Tensor, weight: Tensor) -> Tensor:
    """Fractionally strided convolution as the official code writes it: repeat, zero the even positions, convolve."""
    x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    rows, columns = ((torch.arange(n) - 1) % 2 == 0 for n in x.shape[2:])
    x = x * (rows[:, None] & columns[None, :])
    before, after = same_padding(4, weight.shape[-1], 1)
    return F.conv2d(F.pad(x, (before, after, before, after)), weight)


@pytest.mark.parametrize("kernel", [2, 3, 4, 5, 6])
def test_transposed_convolution_is_the_official_one(kernel: int) -> None:
    conv = Conv(OPS, 2, 3, kernel, stride=2, transposed=True).double()
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    out = conv(x)
    assert out.shape == (2, 3, 6, 8)
    torch.testing.assert_close(out, official_double(x, conv.weight))


@pytest.mark.parametrize("kernel, size", [(5, 8), (4, 8), (4, 7), (3, 6)])
def test_strided_convolution_pads_the_end_more(kernel: int, size: int) -> None:
    conv = Conv(OPS, 1, 1, kernel, stride=2).double()
    x = torch.randn(1, 1, size, size, dtype=torch.float64)
    # SAME padding by hand: every second window of the stride-1 convolution, from the first one that fits.
    total = (math.ceil(size / 2) - 1) * 2 + kernel - size
    before, after = total // 2, total - total // 2
    every = F.conv2d(F.pad(x, (before, after, before, after)), conv.weight)
    torch.testing.assert_close(conv(x), every[:, :, ::2, ::2])


def test_pooling_takes_the_maximum_before_the_norm() -> None:
    conv = Conv(OPS, 1, 2, 3, pool=True, norm="rms", act="silu")
    plain = Conv(OPS, 1, 2, 3)
    plain.load_state_dict({k: v for k, v in conv.state_dict().items() if k in ("weight", "bias")})
    x = torch.randn(2, 1, 4, 6)
    pooled = plain(x).unflatten(3, (3, 2)).unflatten(2, (2, 2)).amax((3, 5))
    expected = OPS.norm_act(pooled.permute(0, 2, 3, 1), conv.scale, None, "rms", "silu", 1e-4).permute(
        0, 3, 1, 2
    )
    torch.testing.assert_close(conv(x), expected)


def test_transposed_convolution_needs_stride_two() -> None:
    with pytest.raises(ValueError, match="stride 2 and kernel >= 2, got 1 and 5"):
        Conv(OPS, 1, 1, 5, transposed=True)
