"""Strided convolutions without padding, and what Keras gives layers to begin with."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdream import ops as fd
from fastdream.convs import Valid
from fastdream.keras import keras_defaults
from fastdream.nets import Dense
from fastdream.spaces import Space
from fastdream.strided import StridedDecoder, StridedDecoderConfig, StridedEncoder, StridedEncoderConfig

OPS = fd.load("reference")
IMAGE = {"image": Space("image", (64, 64, 3))}
VECTOR = {"position": Space("vector", (3,)), "kind": Space("discrete", (2,), 4)}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameter_counts_of_the_first_dreamer() -> None:
    enc = StridedEncoder(OPS, IMAGE, StridedEncoderConfig(depth=32))
    dec = StridedDecoder(OPS, IMAGE, 200, 30, StridedDecoderConfig(depth=32))
    assert (count(enc), count(dec), enc.embed_width) == (690_144, 3_795_555, 1024)


def test_sizes_on_the_way_down_and_up() -> None:
    x, sizes = torch.zeros(1, 3, 64, 64), []
    for conv in StridedEncoder(OPS, IMAGE, StridedEncoderConfig(depth=2)).convs:
        x = conv(x)
        sizes.append(x.shape[-1])
    assert sizes == [31, 14, 6, 2]
    dec, sizes = StridedDecoder(OPS, IMAGE, 4, 4, StridedDecoderConfig(depth=2)), []
    x = torch.zeros(1, dec.seed, 1, 1)
    for conv in dec.convs:
        x = conv(x)
        sizes.append(x.shape[-1])
    assert sizes == [5, 13, 30, 64] and dec.seed == 64


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_convolution_and_its_transpose(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 9, 8, generator=generator)
    for transposed in (False, True):
        conv = Valid(OPS, 3, 5, 4, transposed=transposed, norm=norm, act="elu", generator=generator)  # type: ignore[arg-type]
        nn.init.normal_(conv.bias)
        plain = (
            F.conv_transpose2d(x, conv.weight.transpose(0, 1), conv.bias, 2)
            if transposed
            else F.conv2d(x, conv.weight, conv.bias, 2)
        )
        assert plain.shape[2:] == ((20, 18) if transposed else (3, 3))
        if norm == "layer":
            plain = F.layer_norm(plain.permute(0, 2, 3, 1), (5,), eps=1e-4).permute(0, 3, 1, 2)
        torch.testing.assert_close(conv(x), F.elu(plain))


def test_encodes_and_decodes_images_and_vectors_together() -> None:
    obs = IMAGE | VECTOR
    enc = StridedEncoder(OPS, obs, StridedEncoderConfig(depth=2, units=7, layers=2))
    dec = StridedDecoder(OPS, obs, 6, 5, StridedDecoderConfig(depth=2, units=7, layers=2))
    data = {
        "image": torch.randint(0, 256, (2, 3, 64, 64, 3), dtype=torch.uint8),
        "position": torch.randn(2, 3, 3),
        "kind": torch.randint(0, 4, (2, 3, 2)),
    }
    embed = enc(data)
    assert embed.shape == (2, 3, enc.embed_width) and enc.embed_width == 7 + 2 * 2 * 16
    flat = torch.cat([F.one_hot(data["kind"], 4).flatten(-2).float(), data["position"]], -1)
    torch.testing.assert_close(embed[..., :7], enc.mlp(flat))
    outs = dec(torch.randn(2, 3, 6), torch.randn(2, 3, 5))
    assert list(outs) == list(obs) and outs["kind"].shape == (2, 3, 2, 4)
    losses, preds = dec.loss(outs, data), dec.pred(outs)
    target = data["image"] / 255 - 0.5
    log = torch.distributions.Normal(outs["image"], 1.0).log_prob(target)
    torch.testing.assert_close(losses["image"], -log.sum((-3, -2, -1)))
    log = torch.distributions.Normal(outs["position"], 1.0).log_prob(data["position"])
    torch.testing.assert_close(losses["position"], -log.sum(-1))
    log = torch.distributions.Categorical(logits=outs["kind"]).log_prob(data["kind"])
    torch.testing.assert_close(losses["kind"], -log.sum(-1))
    assert preds["image"].min() >= 0 and preds["image"].max() <= 1
    assert torch.equal(preds["kind"], outs["kind"].argmax(-1)) and torch.equal(
        preds["position"], outs["position"]
    )


def test_images_of_another_size_are_refused_with_the_right_one() -> None:
    space = {"image": Space("image", (96, 96, 3))}
    with pytest.raises(
        ValueError, match="'image' has size 96x96.*draws 64x64.*--suite.size 64 .*--resize 64"
    ):
        StridedDecoder(OPS, space, 4, 4, StridedDecoderConfig())
    with pytest.raises(ValueError, match="16x16 are too small .* --resize.*, or choose fewer kernels"):
        StridedEncoder(OPS, {"image": Space("image", (16, 16, 3))}, StridedEncoderConfig())
    with pytest.raises(ValueError, match="one resolution"):
        StridedEncoder(OPS, space | {"other": Space("image", (64, 64, 1))}, StridedEncoderConfig())
    with pytest.raises(ValueError, match="kernels of at least 2"):
        StridedEncoderConfig(kernels=())


def test_layers_begin_as_in_keras() -> None:
    dense = Dense(OPS, 300, 100, norm="layer")
    conv = Valid(OPS, 16, 32, 4)
    nn.init.ones_(conv.bias)
    keras_defaults(nn.ModuleList([dense, conv]), torch.Generator().manual_seed(0))
    for weight, limit in (
        (dense.weight, math.sqrt(6 / 400)),
        (conv.weight, math.sqrt(6 / (16 * 16 + 16 * 32))),
    ):
        assert 0.98 * limit < weight.abs().max() <= limit
        assert float(weight.detach().std()) == pytest.approx(limit / math.sqrt(3), rel=0.03)
    assert not conv.bias.any() and not dense.bias.any() and dense.eps == 1e-3
