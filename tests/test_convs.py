"""Convolutions: padding, pooling, transposition, upsampling."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

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


def check_same(conv: Conv, x: Tensor, forward: Callable[[Tensor], Tensor]) -> None:
    """`conv(x)` and all gradients are those of `forward`."""
    found = []
    for function in (conv, forward):
        conv.zero_grad()
        leaf = x.clone().requires_grad_()
        out = function(leaf)
        (out * torch.linspace(-1, 1, out.numel(), dtype=x.dtype).view(out.shape)).sum().backward()
        found.append({"out": out, "x": leaf.grad} | {name: p.grad for name, p in conv.named_parameters()})
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-11)


def wake(conv: Conv) -> Conv:
    """In float64, with parameters that are not 0 or 1."""
    with torch.no_grad():
        for param in conv.parameters():
            param.add_(torch.rand(param.shape))
    return conv.double()


@pytest.mark.parametrize("norm", ["none", "rms"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (8, 8)])
@pytest.mark.parametrize("kernel", range(1, 9))
def test_upsampling_is_repeating_before_the_convolution(
    kernel: int, size: tuple[int, int], norm: fd.Norm
) -> None:
    conv = wake(Conv(OPS, 3, 2, kernel, upsample=True, norm=norm, act="silu"))

    def doubled(x: Tensor) -> Tensor:
        before, after = same_padding(1, kernel, 1)
        x = F.pad(F.interpolate(x, scale_factor=2, mode="nearest"), (before, after, before, after))
        y = F.conv2d(x, conv.weight, conv.bias).permute(0, 2, 3, 1)
        return conv.normalize(y).permute(0, 3, 1, 2)

    check_same(conv, torch.randn(2, 3, *size, dtype=torch.float64), doubled)


def test_upsampling_needs_36_of_100_multiplications() -> None:
    conv, x = Conv(OPS, 2, 3, 5, upsample=True), torch.randn(1, 2, 8, 6)
    with FlopCounterMode(display=False) as count:
        conv(x)
    assert count.get_flop_counts()["Global"][torch.ops.aten.convolution] == 2 * (2 * 3) * 36 * 8 * 6


@pytest.mark.parametrize("kernel, size", [(5, (6, 8)), (4, (6, 6)), (3, (7, 5))])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_is_that_of_torch(kernel: int, size: tuple[int, int], layout: torch.memory_format) -> None:
    conv = wake(Conv(OPS, 3, 2, kernel, pool=True, norm="layer"))

    def pooled(x: Tensor) -> Tensor:
        before, after = same_padding(1, kernel, 1)
        y = F.max_pool2d(F.conv2d(F.pad(x, (before, after, before, after)), conv.weight, conv.bias), 2)
        return conv.normalize(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    x = torch.randn(7, 3, *size, dtype=torch.float64)
    x[0] = 0.5  # equal maxima
    check_same(conv, x.contiguous(memory_format=layout), pooled)


def test_pooled_images_need_no_gradient() -> None:
    conv, x = Conv(OPS, 3, 2, 3, pool=True), torch.randn(2, 3, 4, 4)
    conv.bias.requires_grad_(False)
    with FlopCounterMode(display=False) as count:
        conv(x).sum().backward()
    assert count.get_total_flops() == 2 * 2 * (2 * 3 * 9 * 2 * 4 * 4)  # forward and weight, not input
    assert x.grad is None and conv.bias.grad is None and conv.weight.grad is not None


@pytest.mark.parametrize("options", [{}, {"pool": True}, {"upsample": True}, {"stride": 2}])
def test_channels_last_memory_stays_so(options: dict[str, Any]) -> None:
    conv = Conv(OPS, 3, 4, 5, norm="rms", act="silu", **options)
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    assert conv(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [{"stride": 2}, {"pool": True}])
def test_resolution_goes_one_way(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="choose one of stride 2, pool and upsample"):
        Conv(OPS, 1, 1, 5, upsample=True, **options)
