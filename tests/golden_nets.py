"""Encoder and decoder against the official ones: outputs, losses and all gradients."""

from pathlib import Path

import pytest
import torch

from fastdream.decoder import Decoder, DecoderConfig
from fastdream.encoder import Encoder, EncoderConfig
from fastdream.official import from_official, name_map
from fastdream.ops import Ops

from .golden_tools import BACKENDS, Golden, assert_close, files, parse_options, parse_spaces


class Nets:
    """The networks of one file with its parameters."""

    def __init__(self, path: Path, ops: Ops) -> None:
        self.gold = gold = Golden(path)
        config = gold.config
        self.spaces = parse_spaces(config["obs_space"], config["obs_order"])
        self.enc = Encoder(ops, self.spaces, parse_options(EncoderConfig, config["enc"]))
        stoch_width, options = (
            config["stoch"] * config["classes"],
            parse_options(DecoderConfig, config["dec"]),
        )
        self.dec = Decoder(ops, self.spaces, config["deter"], stoch_width, options)
        from_official(gold.under("param"), {"enc": self.enc, "dec": self.dec})
        self.obs = gold.tensors("in/obs")


@pytest.fixture(params=BACKENDS)
def net_ops(request: pytest.FixtureRequest) -> Ops:
    return BACKENDS[request.param]


@pytest.fixture(params=files("nets*.npz"), ids=lambda path: path.stem)
def nets(request: pytest.FixtureRequest, net_ops: Ops) -> Nets:
    return Nets(request.param, net_ops)


def test_encoder_gives_the_official_tokens(nets: Nets) -> None:
    tokens = nets.enc(nets.obs)
    assert tokens.shape[-1] == nets.enc.embed_width
    assert_close({"tokens": tokens}, {"tokens": nets.gold["out/tokens"]})


def test_encoder_zeroes_missing_entries(net_ops: Ops) -> None:
    # Only some sets have observations with missing entries.
    for nets in (Nets(path, net_ops) for path in files("nets*.npz")):
        if "out/tokens_masked" not in nets.gold:
            continue
        tokens = nets.enc({**nets.obs, **nets.gold.tensors("in/obs_masked")})
        assert_close({"tokens": tokens}, {"tokens": nets.gold["out/tokens_masked"]})


def test_encoder_gradients(nets: Nets) -> None:
    torch.sum(nets.enc(nets.obs) * nets.gold.tensor("cot/tokens")).backward()
    entries = name_map({"enc": nets.enc})
    assert_close(
        {k: e.to_official(e.tensor.grad) for k, e in entries.items()}, nets.gold.under("grad/enc/param")
    )


def test_decoder_outputs_and_losses(nets: Nets) -> None:
    feat = nets.gold.tensors("in/feat")
    outputs = nets.dec(feat["deter"], feat["stoch"].flatten(-2))
    # The official predictions of vectors are in symlog space, ours in the units of the observation.
    preds = {
        k: outputs[k] if nets.spaces[k].kind == "vector" else v for k, v in nets.dec.pred(outputs).items()
    }
    assert_close(preds, nets.gold.under("out/pred"))
    logits = nets.gold.under("out/logits")
    if logits:
        assert_close(outputs, logits)
    assert_close(nets.dec.loss(outputs, nets.obs), nets.gold.under("out/loss"))


def test_decoder_gradients(nets: Nets) -> None:
    feat = {key: x.requires_grad_() for key, x in nets.gold.tensors("in/feat").items()}
    losses = nets.dec.loss(nets.dec(feat["deter"], feat["stoch"].flatten(-2)), nets.obs)
    torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
    entries = name_map({"dec": nets.dec})
    assert_close(
        {k: e.to_official(e.tensor.grad) for k, e in entries.items()}, nets.gold.under("grad/dec/param")
    )
    assert_close({k: x.grad for k, x in feat.items()}, nets.gold.under("grad/dec/input/feat"))
