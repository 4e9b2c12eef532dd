"""Parameters to and from the official code's names and layouts."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fastdream import ops as fd
from fastdream.agents.dreamer_v3_config import Config, size
from fastdream.agents.dreamer_v3_nets import Networks
from fastdream.cores import GRU
from fastdream.nets import Dense
from fastdream.normalize import Normalize, NormConfig
from fastdream.official import from_official, name_map, read_checkpoint, to_official
from fastdream.spaces import Space

OPS = fd.load("reference")
NAMES = ("enc", "dyn", "dec", "rew", "con", "pol", "val", "slowval")
OBS = {
    "cam": Space("image", (48, 64, 3)),
    "core": Space("vector", (2,)),
    "a.b/c": Space("discrete", (), 3),
}
ACT = {"type": Space("discrete", (), 4), "turn": Space("vector", (2,))}


def networks(seed: int = 0) -> dict[str, nn.Module]:
    config = size(Config(), "debug")
    nets = Networks(OBS, ACT, config, OPS, torch.float32, seed)
    return {name: getattr(nets, name) for name in NAMES}


@pytest.fixture
def modules() -> dict[str, nn.Module]:
    return networks()


def test_every_parameter_has_one_official_name(modules: dict[str, nn.Module]) -> None:
    mapped = [id(entry.tensor) for entry in name_map(modules).values()]
    ours = [id(param) for module in modules.values() for param in module.parameters()]
    assert sorted(mapped) == sorted(ours)


def test_names_are_the_official_ones(modules: dict[str, nn.Module]) -> None:
    names = name_map(modules)
    for name in (
        "enc/mlp0/kernel",
        "enc/cnn3norm/scale",
        "dyn/dynin2norm/scale",
        "dyn/dynhid0/bias",
        "dyn/dyngru/kernel",
        "dyn/prior1norm/scale",
        "dyn/priorlogit/bias",
        "dyn/obs0/kernel",
        "dec/spnorm/scale",
        "dec/mlp/norm2/scale",
        "dec/vec/core/pred/kernel",
        "dec/vec/a.b/c/logits/bias",
        "rew/head/logits/kernel",
        "con/head/logit/bias",
        "pol/head/turn/stddev/kernel",
        "pol/head/type/logits/kernel",
        "slowval/mlp/linear0/kernel",
    ):
        assert name in names, name


def test_what_is_written_is_read_back_by_another_network(modules: dict[str, nn.Module]) -> None:
    other = networks(seed=1)
    from_official(to_official(modules), other)
    for name in NAMES:
        for (key, a), b in zip(modules[name].named_parameters(), other[name].parameters(), strict=True):
            assert torch.equal(a, b), f"{name}.{key}"


def test_arrays_are_copies(modules: dict[str, nn.Module]) -> None:
    arrays = to_official(modules)
    arrays["enc/mlp0/bias"][:] = 7
    assert not (modules["enc"].mlp0.bias == 7).any()


def test_layouts(modules: dict[str, nn.Module]) -> None:
    arrays, enc, dyn = to_official(modules), modules["enc"], modules["dyn"]
    assert arrays["enc/mlp0/kernel"][1, 2] == enc.mlp0.weight[2, 1]
    assert arrays["enc/cnn1/kernel"][1, 2, 0, 3] == enc.cnn1.weight[3, 0, 1, 2]
    assert arrays["dyn/dyngru/kernel"][1, 0, 2] == dyn.core.dyngru.weight[1, 0, 2]


def test_conversions_are_inverse_for_gradients_too(modules: dict[str, nn.Module]) -> None:
    for name, entry in name_map(modules).items():
        x = torch.randn_like(entry.tensor)
        assert torch.equal(entry.to_ours(entry.to_official(x)), x), name


def test_normalizers_have_the_names_of_their_kind() -> None:
    norms: dict[str, nn.Module] = {
        "retnorm": Normalize(NormConfig(impl="perc")),
        "advnorm": Normalize(NormConfig(impl="meanstd", debias=True)),
        "valnorm": Normalize(NormConfig(impl="none")),
    }
    names = {"retnorm/lo", "retnorm/hi", "advnorm/mean", "advnorm/sqrs", "advnorm/corr"}
    assert set(name_map(norms)) == {f"{name}/value" for name in names}
    from_official({f"{name}/value": np.float32(2) for name in names}, norms)  # type: ignore[misc]
    assert [float(x) for x in norms["retnorm"].stats()] == [2.0, 1.0]


def test_what_does_not_fit_is_listed_and_changes_nothing(modules: dict[str, nn.Module]) -> None:
    arrays, before = to_official(networks(seed=1)), to_official(modules)
    del arrays["con/head/logit/bias"]
    arrays["enc/mlp7/kernel"] = np.zeros((2, 2), np.float32)
    arrays["val/head/logits/kernel"] = np.zeros((2, 2), np.float32)
    with pytest.raises(ValueError) as caught:
        from_official(arrays, modules)
    message = str(caught.value)
    assert "missing: con/head/logit/bias" in message and "unknown: enc/mlp7/kernel" in message
    assert "shape: val/head/logits/kernel is (2, 2), this agent has (8, 255)" in message
    after = to_official(modules)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_other_parts_of_a_checkpoint_are_left_out(modules: dict[str, nn.Module]) -> None:
    arrays = to_official(networks(seed=1)) | {
        "opt/state/1/0": np.int32(3),
        "slowval_count/value": np.int32(5),
    }
    policy = {name: modules[name] for name in ("enc", "dyn", "pol")}
    from_official(arrays, policy)
    assert np.array_equal(to_official(policy)["pol/mlp/linear0/kernel"], arrays["pol/mlp/linear0/kernel"])


def test_cores_that_the_official_code_does_not_have_are_refused() -> None:
    with pytest.raises(
        ValueError, match="dyn: the official DreamerV3 has no parameter like 'weight_ih' of GRU"
    ):
        name_map({"dyn": GRU(OPS, 4, 4, 2, hidden=4)})


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_official_checkpoint_file(tmp_path: Path, protocol: int, modules: dict[str, nn.Module]) -> None:
    path, arrays = tmp_path / "agent.pkl", to_official(modules)
    counters = {"updates": 3, "batches": 3, "actions": 12}
    path.write_bytes(pickle.dumps({"params": arrays, "counters": counters}, protocol))
    read = read_checkpoint(path)
    assert read.keys() == arrays.keys()
    other = networks(seed=1)
    from_official(read, other)
    assert all(np.array_equal(x, arrays[key]) for key, x in to_official(other).items())


def test_checkpoints_of_old_numpy_are_read(tmp_path: Path) -> None:
    data = pickle.dumps({"params": {"x": np.ones(3, np.float32)}}, 3)
    assert b"numpy._core.multiarray" in data or b"numpy.core.multiarray" in data
    for name in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        path = tmp_path / "agent.pkl"
        path.write_bytes(data.replace(b"numpy._core.multiarray", name))
        assert read_checkpoint(path)["x"].tolist() == [1, 1, 1]


class Intruder:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("intruded"),))


def test_checkpoint_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "agent.pkl"
    path.write_bytes(pickle.dumps({"params": {"x": Intruder()}}))
    with pytest.raises(ValueError, match="only NumPy arrays are read"):
        read_checkpoint(path)
    assert not Path("intruded").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps({"params": np.ones(50)})[:-20]])
def test_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "agent.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="agent.pkl is damaged or no pickle"):
        read_checkpoint(path)


@pytest.mark.parametrize("data", [[1, 2], {"other": 1}, {"params": {"x": 3}}])
def test_other_pickles_are_no_checkpoints(tmp_path: Path, data: object) -> None:
    path = tmp_path / "agent.pkl"
    path.write_bytes(pickle.dumps(data))
    with pytest.raises(ValueError, match="not the agent.pkl of an official checkpoint"):
        read_checkpoint(path)


def test_layers_without_bias_or_norm_have_no_such_names() -> None:
    assert list(name_map({"x": Dense(OPS, 2, 3, bias=False)})) == ["x/kernel"]
