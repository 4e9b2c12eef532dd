"""Images lie in memory as GPUs want them, pixel by pixel, all the way through encoder and decoder and back.

In float32 and in bfloat16, with the reference ops, which is what serves a GPU where no kernel does.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdream import ops as fd
from fastdream.agents.dreamer_v3 import Config, size, variant
from fastdream.convs import Conv
from fastdream.decoder import Decoder
from fastdream.encoder import Encoder
from fastdream.spaces import Space, Spaces

OPS = fd.load("reference")
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strided": dict(stride=2),
    "transposed": dict(stride=2, transposed=True),
    "pooled": dict(pool=True),
    "doubled": dict(upsample=True),
    "even": dict(pool=True, kernel=4),
}
IMAGES: dict[str, Spaces] = {
    "one": {"image": Space("image", (64, 64, 3))},
    "two": {"left": Space("image", (64, 64, 3)), "right": Space("image", (64, 64, 4))},
}


def by_pixel(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


class Convolutions(TorchDispatchMode):
    """Notes every image and every weight that a convolution reads or writes, by name, where it lies otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.otherwise = 0, set[str]()

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        named = {
            "aten::convolution": lambda: {"input": args[0], "weight": args[1], "output": out},
            "aten::convolution_backward": lambda: {
                "grad": args[0], "input": args[1], "weight": args[2], "d_input": out[0]
            },
        }.get(op._schema.name)  # fmt: skip
        for name, x in named().items() if named else ():
            self.count += 1
            if x is not None and not by_pixel(x):
                self.otherwise.add(name)
        return out


def conv(kind: str) -> Conv:
    options = {"kernel": 5} | KINDS[kind]
    return Conv(OPS, 8, 16, norm="rms", act="silu", generator=torch.Generator().manual_seed(0), **options)


def run(layer: Conv, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the image and of all parameters."""
    x = x.detach().requires_grad_()
    y = layer(x)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_memory_by_pixel_changes_no_number(kind: str, dtype: torch.dtype):
    """Error against float64 at most twice (gradients: three times) that of images that lie channel by channel."""
    layer, x = conv(kind), torch.randn(3, 8, 12, 10, generator=torch.Generator().manual_seed(2))
    wide = conv(kind).double()
    truth = run(wide, x.double())
    planes = run(layer, x.to(dtype))
    pixels = run(layer, x.to(dtype, memory_format=torch.channels_last))
    assert by_pixel(pixels[0]) and pixels[0].dtype == dtype
    floor = 4 * torch.finfo(dtype).eps
    for i, (ours, theirs, true) in enumerate(zip(pixels, planes, truth, strict=True)):
        error, other = ((y.double() - true).abs().max() for y in (ours, theirs))
        assert error <= (3 if i else 2) * other + floor * true.abs().max(), (i, error, other)


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("name", ["current", "nature2024"])
def test_no_convolution_has_to_reorder_an_image(name: Any, images: str):
    config, spaces = variant(size(Config(), "1m"), name), IMAGES[images]
    enc = Encoder(OPS, spaces, config.enc, dtype=torch.bfloat16)
    dec = Decoder(OPS, spaces, 64, 32, config.dec)
    obs = {k: torch.randint(0, 256, (2, 1, *s.shape), dtype=torch.uint8) for k, s in spaces.items()}
    deter, stoch = torch.randn(2, 1, 64).bfloat16(), torch.randn(2, 1, 32).bfloat16()
    with Convolutions() as watch:
        embed, pictures = enc(obs), dec(deter, stoch)
        (embed.square().sum() + sum(x.square().sum() for x in pictures.values())).backward()
    assert watch.count >= 4 * (len(config.enc.mults) + len(config.dec.mults)) + 3

    assert not watch.otherwise
    assert all(x.dtype == torch.bfloat16 for x in (embed, *pictures.values()))
    assert all(p.grad is not None and p.grad.is_contiguous() for p in (*enc.parameters(), *dec.parameters()))
