"""The decoder: shapes, losses and predictions of every kind of observation."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.decoder import Decoder, DecoderConfig
from fastdream.spaces import Space, Spaces

OPS = fd.load("reference")
SMALL = DecoderConfig(depth=2, mults=(1, 2), layers=1, units=6, kernel=3, bspace=4)
D, S = 8, 6
SPACES: Spaces = {
    "type": Space("vector", (2, 2)),
    "zoom": Space("image", (12, 16, 1)),
    "item": Space("discrete", (2,), 3),
    "cam": Space("image", (12, 16, 3)),
    "speed": Space("vector"),
}


def decoder(spaces: Spaces = SPACES, config: DecoderConfig = SMALL) -> Decoder:
    return Decoder(OPS, spaces, D, S, config, torch.Generator().manual_seed(0))


def state(*batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*batch, D), torch.randn(*batch, S)


def blank(*batch: int) -> dict[str, Tensor]:
    """An observation that is all zeros."""
    return {k: torch.from_numpy(np.zeros((*batch, *s.shape), s.dtype)) for k, s in SPACES.items()}


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_outputs_have_the_shapes_of_the_observations(batch: tuple[int, ...]) -> None:
    dec = decoder()
    outputs = dec(*state(*batch))
    assert list(outputs) == list(SPACES)
    shapes = {key: (*space.shape, 3) if key == "item" else space.shape for key, space in SPACES.items()}
    assert {key: x.shape for key, x in outputs.items()} == {k: (*batch, *s) for k, s in shapes.items()}
    preds = dec.pred(outputs)
    assert {key: x.shape for key, x in preds.items()} == {k: (*batch, *s.shape) for k, s in SPACES.items()}
    obs = blank(*batch)
    assert all(loss.shape == batch for loss in dec.loss(outputs, obs).values())


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("bspace", [0, 4])
def test_every_form_of_upsampling_uses_all_parameters(outer: bool, strided: bool, bspace: int) -> None:
    config = DecoderConfig(2, (1, 2, 2), 1, 6, bspace=bspace, outer=outer, strided=strided, norm="layer")
    spaces = {"cam": Space("image", (24, 32, 2)), "v": Space("vector", (3,))}
    dec = decoder(spaces, config)
    outputs = dec(*state(2))
    obs = {"cam": torch.randint(0, 256, (2, 24, 32, 2), dtype=torch.uint8), "v": torch.randn(2, 3)}
    torch.stack(list(dec.loss(outputs, obs).values())).sum().backward()
    dead = [n for n, p in dec.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []
    assert hasattr(dec, "sp0") == bool(bspace)


def test_images_come_out_in_the_order_of_declaration() -> None:
    dec = decoder()
    with torch.no_grad():
        dec.imgout.weight.zero_()
        dec.imgout.bias.copy_(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    outputs = dec(*state(1))
    assert outputs["zoom"].unique().tolist() == [0.0]
    assert outputs["cam"].flatten(0, -2).unique(dim=0).tolist() == [[1.0, 2.0, 3.0]]


def test_blocks_of_the_deterministic_state_fill_their_own_channels() -> None:
    dec = decoder({"cam": SPACES["cam"]})
    with torch.no_grad():
        dec.sp2.weight.zero_()
    deter, stoch = state(1)
    dec.spnorm = torch.nn.Identity()  # look at the sum before the norm, which couples channels
    before = dec._seed_map(deter, stoch)
    deter[:, 2] += 1  # in the second of four blocks
    changed = (dec._seed_map(deter, stoch) != before).flatten(0, 2).any(0)
    assert changed.tolist() == [False, True, False, False]


def test_losses_are_sums_over_the_entry() -> None:
    dec, obs = decoder(), blank(1)
    obs["cam"] += 255
    obs["type"] += math.expm1(2)
    outputs = {key: torch.zeros((1, *space.shape)) for key, space in SPACES.items()}
    outputs["item"] = torch.zeros(1, 2, 3)
    losses = {key: float(loss) for key, loss in dec.loss(outputs, obs).items()}
    image = 12 * 16 * 0.25
    expected = {"type": 4 * 2.0**2, "zoom": image, "item": 2 * math.log(3), "cam": 3 * image, "speed": 0.0}
    assert losses == pytest.approx(expected, rel=1e-5)


def test_predictions_are_in_the_units_of_the_observation() -> None:
    outputs = {
        "type": torch.full((2, 2), math.log(5)),
        "zoom": torch.full((12, 16, 1), -40.0),
        "item": torch.tensor([[0.0, 2, 1], [3, 2, 1]]),
        "cam": torch.zeros(12, 16, 3),
        "speed": torch.tensor(-math.log(3)),
    }
    preds = decoder().pred(outputs)
    torch.testing.assert_close(preds["type"], torch.full((2, 2), 4.0))
    torch.testing.assert_close(preds["speed"], torch.tensor(-2.0))
    assert preds["item"].tolist() == [1, 0]
    assert float(preds["zoom"].max()) < 1e-6 and preds["cam"].unique().tolist() == [0.5]


def test_plain_vectors_without_symlog() -> None:
    config = DecoderConfig(layers=1, units=4, symlog=False)
    dec = decoder({"v": Space("vector", (2,))}, config)
    out = {"v": torch.tensor([[3.0, -50.0]])}
    assert torch.equal(dec.pred(out)["v"], out["v"])
    assert float(dec.loss(out, {"v": torch.tensor([[1.0, -50.0]])})["v"]) == 4.0


def test_half_precision_losses_are_float32() -> None:
    dec, (deter, stoch) = decoder(), state(2)
    outputs = dec(deter.bfloat16(), stoch.bfloat16())
    obs = blank(2)
    assert {x.dtype for x in outputs.values()} == {torch.bfloat16}
    full = dec.loss(dec(deter, stoch), obs)
    for key, loss in dec.loss(outputs, obs).items():
        torch.testing.assert_close(loss, full[key], rtol=0.05, atol=0.05)


def test_outscale_zero_starts_with_grey_images() -> None:
    config = DecoderConfig(2, (1, 2), 1, 6, 3, bspace=4, outscale=0.0)
    preds = decoder(config=config).pred(decoder(config=config)(*state(1)))
    assert preds["cam"].unique().tolist() == [0.5] and not preds["type"].any()


def test_nothing_to_decode_is_refused() -> None:
    with pytest.raises(ValueError, match="no usable keys"):
        decoder({})


@pytest.mark.parametrize(
    "bspace, message",
    [
        (3, "deter = 8 does not divide into bspace = 3 blocks"),
        (8, "channels.*= 4 does not divide into bspace = 8"),
    ],
)
def test_blocks_that_do_not_divide_are_named(bspace: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder({"cam": SPACES["cam"]}, DecoderConfig(2, (1, 2), 1, 6, 3, bspace=bspace))
