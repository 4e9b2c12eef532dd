"""The encoder: which observations it takes, in which order, and which it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.decoder import DecoderConfig
from fastdream.encoder import Encoder, EncoderConfig
from fastdream.spaces import Space, Spaces

OPS = fd.load("reference")
SMALL = EncoderConfig(depth=2, mults=(1, 2), layers=2, units=6, kernel=3)
SPACES: Spaces = {
    "cam": Space("image", (12, 16, 3)),
    "zoom": Space("image", (12, 16, 1)),
    "pos": Space("vector", (2, 2)),
    "item": Space("discrete", (), 3),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def observe(spaces: Spaces, *batch: int) -> dict[str, Tensor]:
    """Random observations of these spaces."""
    obs = {}
    for key, space in spaces.items():
        shape = (*batch, *space.shape)
        if space.kind == "image":
            obs[key] = torch.randint(0, 256, shape, dtype=torch.uint8)
        elif space.kind == "discrete":
            obs[key] = torch.randint(0, space.classes, shape, dtype=torch.int32)
        else:
            obs[key] = 3 * torch.randn(shape)
    return obs


@pytest.mark.parametrize("keys, width", [(["pos", "item"], 6), (["cam"], 48), (["item", "zoom"], 54)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_embedding_has_the_width_it_says(keys: list[str], width: int, batch: tuple[int, ...]) -> None:
    spaces = {key: SPACES[key] for key in keys}
    enc = Encoder(OPS, spaces, SMALL, seeded())
    embed = enc(observe(spaces, *batch))
    assert embed.shape == (*batch, width) and enc.embed_width == width


def test_steps_are_encoded_independently() -> None:
    enc, obs = Encoder(OPS, SPACES, SMALL, seeded()), observe(SPACES, 2, 3)
    embed = enc(obs)
    for b, t in ((0, 0), (1, 2)):
        torch.testing.assert_close(embed[b, t], enc({key: x[b, t] for key, x in obs.items()}))


def test_declaration_order_of_keys_does_not_matter() -> None:
    obs = observe(SPACES, 2)
    one, other = (
        Encoder(OPS, spaces, SMALL, seeded()) for spaces in (SPACES, dict(reversed(SPACES.items())))
    )
    assert torch.equal(one(obs), other(dict(reversed(obs.items()))))


def test_image_features_are_flattened_by_row_column_channel() -> None:
    spaces = {"cam": SPACES["cam"]}
    enc, obs = Encoder(OPS, spaces, SMALL, seeded()), observe(spaces, 1)
    before = enc(obs).reshape(3, 4, 4)
    obs["cam"][:, :, :4] = 0  # the first column of the smallest map, and with the kernels the second
    changed = (enc(obs).reshape(3, 4, 4) != before).any(0).any(-1)
    assert changed.tolist() == [True, True, False, False]


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("strided", [False, True])
def test_every_form_of_downsampling_reaches_all_parameters(outer: bool, strided: bool) -> None:
    config = EncoderConfig(
        depth=2, mults=(1, 2, 2), units=4, layers=1, outer=outer, strided=strided, norm="layer"
    )
    enc = Encoder(OPS, {"cam": Space("image", (24, 32, 1)), "v": Space("vector", (2,))}, config, seeded())
    enc(
        observe({"cam": Space("image", (24, 32, 1)), "v": Space("vector", (2,))}, 2)
    ).square().sum().backward()
    assert enc.embed_width == 4 + (6 * 8 if outer else 3 * 4) * 4
    dead = [n for n, p in enc.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_symlog_can_be_switched_off() -> None:
    spaces = {"v": Space("vector", (2,))}
    squash = Encoder(OPS, spaces, EncoderConfig(layers=0), seeded())
    plain = Encoder(OPS, spaces, EncoderConfig(layers=0, symlog=False), seeded())
    x = torch.tensor([-5.0, 100.0])
    assert torch.equal(plain({"v": x}), x)
    torch.testing.assert_close(squash({"v": x}), x.sign() * x.abs().log1p())


def test_raw_vectors_come_with_their_widths() -> None:
    """In the order of the keys, each flat; what policy_step does not prepare comes prepared."""
    spaces = {"wind": Space("vector"), "pos": SPACES["pos"]}
    obs = observe(spaces, 3)
    encoder = Encoder(OPS, spaces, SMALL, seeded())
    flat, vectors = encoder.raw(obs)
    assert vectors == (4, 1)
    assert torch.equal(flat, torch.cat([obs["pos"].flatten(1), obs["wind"].unsqueeze(1)], -1))
    torch.testing.assert_close(OPS.symlog(flat), encoder.features(obs))
    alone, vectors = Encoder(OPS, {"v": Space("vector", (2,))}, SMALL, seeded()).raw({"v": torch.ones(3, 2)})
    assert vectors == (2,) and torch.equal(alone, torch.ones(3, 2))


@pytest.mark.parametrize("case", ["discrete", "double", "no symlog"])
def test_what_is_no_raw_vector_is_prepared(case: str) -> None:
    spaces = {"pos": SPACES["pos"]} | ({"item": SPACES["item"]} if case == "discrete" else {})
    config = replace(SMALL, symlog=case != "no symlog")
    encoder, obs = Encoder(OPS, spaces, config, seeded()), observe(spaces, 3)
    obs["pos"] = obs["pos"].double() if case == "double" else obs["pos"]
    features, vectors = encoder.raw(obs)
    assert vectors == () and torch.equal(features, encoder.features(obs))


def test_half_precision_embedding_is_close() -> None:
    obs = observe(SPACES, 4)
    full, half = (Encoder(OPS, SPACES, SMALL, seeded(), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert half(obs).dtype == torch.bfloat16 and half.mlp0.weight.dtype == torch.float32
    torch.testing.assert_close(half(obs).float(), full(obs), rtol=0, atol=0.05)


def test_no_observations_are_refused() -> None:
    with pytest.raises(ValueError, match="no usable keys"):
        Encoder(OPS, {}, SMALL)


@pytest.mark.parametrize(
    "shape, outer, message",
    [
        (
            (66, 64, 3),
            False,
            "image 'cam' has size 66x64.*multiples of 4 from 12 to 64: .* --suite.size 64 .* --resize 64",
        ),
        ((64, 8, 3), False, "--suite.size 12"),
        ((64, 80, 3), False, "--suite.size 64"),
        (
            (34, 33, 3),
            True,
            "the first of which keeps it, take multiples of 2 from 6 to 32: .* --suite.size 32",
        ),
    ],
)
def test_images_that_do_not_fit_are_named(shape: tuple[int, ...], outer: bool, message: str) -> None:
    config = EncoderConfig(mults=(1, 2), outer=outer)
    with pytest.raises(ValueError, match=message):
        Encoder(OPS, {"cam": Space("image", shape)}, config)


@pytest.mark.parametrize("config", [EncoderConfig, DecoderConfig])
@pytest.mark.parametrize(
    "options, message",
    [({"mults": ()}, r"mults=\(\) needs"), ({"mults": (2, 0)}, "positive"), ({"depth": 0}, "depth=0")],
)
def test_sizes_that_cannot_work_are_refused(
    config: type[EncoderConfig] | type[DecoderConfig], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_images_of_two_sizes_are_named() -> None:
    spaces = {"a": Space("image", (16, 16, 1)), "b": Space("image", (16, 32, 1))}
    with pytest.raises(ValueError, match=r"'b': \(16, 32\)"):
        Encoder(OPS, spaces, SMALL)
