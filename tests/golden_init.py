"""Fresh parameters: names, shapes and counts of every official size, and statistics of some."""

import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastdream.agents.dreamer_v3_config import Config, size
from fastdream.agents.dreamer_v3_nets import Networks
from fastdream.official import name_map
from fastdream.spaces import Space, Spaces

from .golden_tools import BACKENDS, FOLDER

STATS: dict[str, Any] = {}
for path in FOLDER.glob("init_stats*.json"):
    STATS |= json.loads(path.read_text())
MEASURED = [name for name, entry in STATS.items() if all("std" in p for p in entry["params"].values())]


def spaces_of(shapes: dict[str, list[int]], mults: tuple[int, ...]) -> tuple[Spaces, Spaces]:
    """The spaces for which parameters of these shapes were made."""
    obs, act = {}, {}
    if "dec/imgout/bias" in shapes:
        area = shapes["dec/sp0/bias"][0] // shapes["dec/spnorm/scale"][0]
        side = int(area**0.5) * 2 ** len(mults)
        obs["image"] = Space("image", (side, side, shapes["dec/imgout/bias"][0]))
    for name, shape in shapes.items():
        match = re.fullmatch(r"(dec/vec|pol/head)/(.+)/(pred|logits|mean)/bias", name)
        if match:
            owner, key, kind = match.groups()
            space = Space("discrete", (), shape[0]) if kind == "logits" else Space("vector", tuple(shape))
            (obs if owner == "dec/vec" else act)[key] = space
    return obs, act


def modules(name: str, *, meta: bool) -> dict[str, nn.Module]:
    """Fresh networks for one entry of the file; on the meta device they have shapes alone."""
    preset = re.match(r"size(\w+?)_", name)
    assert preset, name
    config = size(Config(), preset[1])
    obs, act = spaces_of({k: v["shape"] for k, v in STATS[name]["params"].items()}, config.enc.mults)
    with torch.device("meta") if meta else nullcontext():
        nets = Networks(obs, act, config, BACKENDS["reference"], torch.float32, seed=0)
    return {key: getattr(nets, key) for key in STATS[name]["modules"] if hasattr(nets, key)}


def trained(official_name: str) -> bool:
    return official_name.split("/")[0] in ("enc", "dyn", "dec", "rew", "con", "pol", "val")


@pytest.mark.parametrize("name", STATS)
def test_init_names_shapes_and_count(name: str) -> None:
    entries = name_map(modules(name, meta=True))
    ours = {key: list(entry.to_official(entry.tensor).shape) for key, entry in entries.items()}
    theirs = {key: p["shape"] for key, p in STATS[name]["params"].items() if key != "slowval_count/value"}
    assert ours == theirs
    assert sum(int(np.prod(s)) for k, s in ours.items() if trained(k)) == STATS[name]["trainable"]


def deviations(name: str) -> Iterator[tuple[str, float, float]]:
    """(what, ours, theirs) where a statistic is further off than sampling can explain."""
    entries = name_map(modules(name, meta=False))
    for key, theirs in STATS[name]["params"].items():
        if key not in entries:
            continue
        x = entries[key].tensor.detach().double()
        std = float(x.std(correction=0))
        spread = 5 / np.sqrt(x.numel())  # five standard errors of the mean, in units of std
        if abs(std - theirs["std"]) > spread * theirs["std"] + 1e-12:
            yield f"{key} std", std, theirs["std"]
        if abs(float(x.mean()) - theirs["mean"]) > 2 * spread * theirs["std"] + 1e-12:
            yield f"{key} mean", float(x.mean()), theirs["mean"]
        # The truncation is a sharp bound, which large samples come close to.
        largest = float(x.abs().max())
        if x.numel() >= 1000 and abs(largest - theirs["absmax"]) > 0.02 * theirs["absmax"]:
            yield f"{key} absmax", largest, theirs["absmax"]


@pytest.mark.parametrize("name", MEASURED)
def test_init_statistics(name: str) -> None:
    assert list(deviations(name)) == []
