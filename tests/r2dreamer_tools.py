"""r2dreamer for tests: a stand-in everywhere, and r2dreamer itself where it is."""

import os
import sys
from collections.abc import Iterator
from importlib import import_module, util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.integrations import r2dreamer

from . import r2dreamer_stand_in as stand_in
from .integration_tools import assert_as_good, randomized

FOLDER = "FASTDREAM_R2DREAMER"
D, S, K, A, E, B, T = 16, 3, 4, 2, 5, 3, 6
NAMES = "distributions", "dreamer", "networks", "optim.laprop", "rssm"


@pytest.fixture(params=["stand-in", "r2dreamer"])
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Its modules, and whether they compute in float64 where that is asked for."""
    if request.param == "stand-in":
        for name, module in stand_in.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    else:
        folder = os.environ.get(FOLDER)
        if not folder:
            pytest.skip(
                f"{FOLDER} is not set; git clone https://github.com/NM512/r2dreamer and give its folder"
            )
        if util.find_spec("tensordict") is None:
            pytest.skip("r2dreamer needs tensordict; pip install tensordict")
        monkeypatch.syspath_prepend(folder)
    modules = dict(zip(NAMES, map(import_module, NAMES), strict=True))
    yield SimpleNamespace(
        **{name.rpartition(".")[2]: module for name, module in modules.items()},
        rounds=request.param == "r2dreamer",
    )
    if request.param == "r2dreamer":
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(Path(folder).resolve())):
                del sys.modules[name]


def check_alike(
    peer: SimpleNamespace, owner: type, name: str, module: Any, *inputs: Any, rounds: bool = False
) -> None:
    """A method of the module, theirs and ours."""
    stock = getattr(owner, name)
    with r2dreamer.install():
        ours = getattr(owner, name)
        assert ours is not stock
        assert_as_good(stock, ours, module, inputs, rounds and peer.rounds)
    assert getattr(owner, name) is stock


def config(**changes: Any) -> SimpleNamespace:
    sizes = {"stoch": S, "deter": D, "hidden": 6, "discrete": K, "blocks": 2, "unimix_ratio": 0.01}
    layers = {"obs_layers": 1, "img_layers": 2, "dyn_layers": 2}
    net = {"layers": 2, "units": 7, "symlog_inputs": False, "name": "net", "outscale": 1.0}
    images = {"depth": 2, "mults": (1, 2, 4), "kernel_size": 5, "norm": True, "bspace": 2}
    both = {"act": "SiLU", "device": "cpu", "initial": "learned"}
    return SimpleNamespace(**sizes | layers | net | images | both | changes)


def rssm(peer: SimpleNamespace, **changes: Any) -> Any:
    torch.manual_seed(0)
    return randomized(peer.rssm.RSSM(config(**changes), E, A))


def onehots(*lead: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.randint(K, (*lead, S)), K).float()


HEADS = {
    "normal": (A, {"name": "bounded_normal", "min_std": 0.1, "max_std": 1.0}, (A,)),
    "onehot": (A, {"name": "onehot", "unimix_ratio": 0.01}, (A,)),
    "several": (5, {"name": "multi_onehot", "unimix_ratio": 0.01}, (2, 3)),
}


def actor(peer: SimpleNamespace, kind: str) -> Any:
    _, dist, shape = HEADS[kind]
    net = peer.networks.MLPHead(config(shape=shape, dist=SimpleNamespace(**dist)), S * K + D)
    return randomized(net, 1)
