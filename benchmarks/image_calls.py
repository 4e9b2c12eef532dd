"""Calls of the ops of images, a sixteenth of those of a batch: 64."""

import torch

from .inputs import Call, Source
from .shapes import Shape


def _images(s: Shape) -> int:
    return max(1, s.batch * s.length // 16)


def _depth(s: Shape) -> int:
    """What the channels of all convolutions are multiples of."""
    return max(1, s.units // 16)


def conv_pool(s: Shape) -> Call:
    """The encoder's second convolution."""
    r, depth, images = Source(), _depth(s), _images(s)
    inp, out = 2 * depth, 3 * depth
    x, weight, bias = r.normal(images, 32, 32, inp), r.normal(out, inp, 5, 5), r.normal(out)
    return Call((x, weight, bias, r.normal(out), None), 2 * images * 32**2 * weight.numel())


def conv_spread(s: Shape) -> Call:
    """The decoder's last convolution but one."""
    r, depth, images = Source(), _depth(s), _images(s)
    inp, out = 3 * depth, 2 * depth
    x, weight, bias = r.normal(images, 16, 16, inp), r.normal(4, out, inp, 3, 3), r.normal(out)
    return Call((x, weight, bias, r.normal(out), None), 2 * images * 16**2 * weight.numel())


def image_loss(s: Shape) -> Call:
    """RGB of 64 x 64."""
    r, dims = Source(), (_images(s), 64, 64, 3)
    return Call((r.normal(*dims), torch.randint(256, dims, generator=r.generator).to(torch.uint8)))
