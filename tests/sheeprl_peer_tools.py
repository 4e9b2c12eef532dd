"""sheeprl's modules, and small models of their classes: those of the package where it is installed, else stand-ins."""

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from . import sheeprl_tools as models
from . import sheeprl_train_tools as train
from .sheeprl_tools import A, B, C, D, E, G, H, S
from .standin_tools import drawn

NAMES = tuple(
    f"sheeprl.algos.{name}"
    for name in (
        "dreamer_v2.agent",
        "dreamer_v3.agent",
        "dreamer_v3.dreamer_v3",
        "dreamer_v3_5.agent",
        "dreamer_v3_5.dreamer_v3_5",
        "dreamer_v3_5.optim",
    )
)
REMEDY = "sheeprl is not installed; `pip install sheeprl==0.8.4` brings it, in an environment of its own"


def head(out: int) -> models.Mlp:
    return models.Mlp(S * C + D, H, out, nn.SiLU, False, 1e-3)


def stand_in() -> dict[str, ModuleType]:
    """The modules that the integration asks for."""
    found = {name: ModuleType(name) for name in NAMES}
    v2, v3, v3_train, new, new_train, optim = found.values()
    v2.RSSM, v3.RSSM = models.RSSMv2, models.RSSM
    for name in ("imagine", "compute_lambda_values", "clip_actions", "TwoHotEncodingDistribution"):
        setattr(v3_train, name, getattr(train, name))
    new.RSSM, new.RMSNorm, new.Actor = models.BlockRSSM, models.RMSNorm, train.Actor
    new_train.imagine, new_train.lambda_return = train.imagine_v3_5, train.lambda_return
    new_train.TwoHot, optim.LaProp = train.TwoHot, train.LaProp
    parents = (
        "sheeprl",
        "sheeprl.algos",
        *(f"sheeprl.algos.{x}" for x in ("dreamer_v2", "dreamer_v3", "dreamer_v3_5")),
    )
    return {name: ModuleType(name) for name in parents} | found


@pytest.fixture(params=["stand-in", "sheeprl"])
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Its modules, and functions that make small models of states and nets of them."""
    if request.param == "stand-in":
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
        make = {
            "v2": models.RSSMv2,
            "v3": models.RSSM,
            "v3_5": models.BlockRSSM,
            "head": head,
            "actor": train.Actor,
        }
    elif find_spec("sheeprl") is None:
        pytest.skip(REMEDY)
    else:
        make = theirs()
        # By the same way of drawing that its other agents have, so that numbers can be replayed.
        draw = staticmethod(lambda logits: drawn(logits.softmax(-1)).flatten(-2))
        monkeypatch.setattr(import_module(NAMES[3]).RSSM, "sample", draw)
    modules = dict(
        zip(("v2", "v3", "train", "block", "block_train", "optim"), map(import_module, NAMES), strict=True)
    )
    return SimpleNamespace(**modules, make=SimpleNamespace(**make), real=request.param == "sheeprl")


def theirs() -> dict[str, Any]:
    """Small models of the package's own classes."""
    v2, v3, _, new, *_ = map(import_module, NAMES)
    mlp = import_module("sheeprl.models.models").MLP
    norm = import_module("sheeprl.models.models").LayerNorm

    def nets(inp: int, out: int) -> Any:
        args = {"norm_args": [{"eps": 1e-3, "normalized_shape": H}], "norm_layer": [norm]}
        return {
            "input_dims": inp,
            "output_dim": out,
            "hidden_sizes": [H],
            "activation": nn.SiLU,
            "layer_args": {"bias": False},
        } | args

    def rssm(unimix: float = 0.01) -> Any:
        recurrent = v3.RecurrentModel(S * C + A, D, H)
        post = v3.RepresentationModel(D, **nets(D + E, S * C))
        return v3.RSSM(recurrent, post, mlp(**nets(D, S * C)), {}, C, unimix)

    def rssm_v2() -> Any:
        parts = (mlp(inp, S * C, [H], activation=nn.ELU) for inp in (D + E, D))
        return v2.RSSM(v2.RecurrentModel(S * C + A, D, H), *parts, {}, C)

    def rssm_v3_5() -> Any:
        post = new.RepresentationModel(D, E, H, S * C)
        prior = nn.Sequential(*new.mlp(D, H, 1), new.Linear(H, S * C))
        return new.RSSM(new.RecurrentModel(D, S * C, A, H, G), post, prior, C, 0.01)

    def actor(continuous: bool) -> Any:
        return new.Actor(S * C + D, (A,) if continuous else (2, A - 2), continuous, H, 1, unimix=0.02)

    return {
        "v2": rssm_v2,
        "v3": rssm,
        "v3_5": rssm_v3_5,
        "head": lambda out: mlp(**nets(S * C + D, out)),
        "actor": actor,
    }


def unrolled(rssm: Any, kind: str, embed: Tensor, action: Tensor, first: Tensor) -> tuple[Tensor, ...]:
    """What their losses do with steps [T, B, ...]: ask for each, then join what they gave."""
    deter, stoch, shared = embed.new_zeros(1, B, D), embed.new_zeros(1, B, S, C), ()
    if kind != "v2":
        embed = rssm.project_observations(embed)
    if kind == "v3":
        shared = (rssm.get_initial_states((1, B)), True)
    if kind == "v3_5":
        action, stoch = rssm.embed_actions(action * (1 - first)), stoch.flatten(-2)
    steps = []
    for t in range(len(embed)):
        now = slice(t, t + 1)
        steps.append(rssm.dynamic(stoch, deter, action[now], embed[now], first[now], *shared))
        deter, stoch = steps[-1][:2]
    return tuple(torch.cat(parts, 0) for parts in zip(*steps, strict=True))
