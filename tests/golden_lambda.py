"""The λ-return and the running normalisers against the official ones."""

from pathlib import Path

import pytest
import torch

from fastdream.behavior import replayed_return
from fastdream.normalize import Normalize, NormConfig
from fastdream.official import name_map

from .golden_tools import BACKENDS, EACH_BACKEND, Golden, assert_close, files, parse_options

RETURNS = {path: Golden(path) for path in files("returns*.npz")}
NORMS = [(path, name) for path, gold in RETURNS.items() for name in gold.config["norm_variants"]]


@EACH_BACKEND
@pytest.mark.parametrize("path", RETURNS, ids=lambda path: path.stem)
def test_lambda_return(path: Path, backend: str) -> None:
    gold, at = RETURNS[path], RETURNS[path].tensors("lambda/in")
    disc, lam = gold.config.get("disc", 1 - 1 / 333), gold.config.get("lam", 0.95)
    ret = replayed_return(BACKENDS[backend], at["rew"], at["last"], at["term"], at["boot"], disc, lam)
    assert_close({"ret": ret}, gold.under("lambda/out"))


@pytest.mark.parametrize("path, name", NORMS, ids=lambda x: x.stem if isinstance(x, Path) else x)
def test_normalizer_follows_the_official_updates(path: Path, name: str) -> None:
    gold = RETURNS[path]
    norm = Normalize(parse_options(NormConfig, gold.config["norm_variants"][name]))
    xs = [gold.tensor(key) for key in sorted(gold.arrays) if key.startswith(f"norm/{name}/x")]
    assert xs
    for i, x in enumerate(xs):
        norm.update(x)
        state = {key.split("/")[1]: e.tensor.clone() for key, e in name_map({"norm": norm}).items()}
        ours = dict(zip(("offset", "scale"), norm.stats(), strict=True)) | state
        assert_close(ours, gold.under(f"norm/{name}/out{i}"))


def test_normalizer_without_effect() -> None:
    norm = Normalize(NormConfig(impl="none"))
    norm.update(torch.full((3,), 7.0))
    assert [float(x) for x in norm.stats()] == [0.0, 1.0]
