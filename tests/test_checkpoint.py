"""Checkpoints: every type comes back bit for bit, and no fault costs more than the newest generation."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdream import tree_files
from fastdream.checkpoint import Checkpoint, CheckpointError, Damaged, Loaded, load

DTYPES = sorted(tree_files.DTYPES, key=str)


def same(a: object, b: object) -> bool:
    """Equal in type, structure and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        raw = [x.detach().contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


def small(value: float = 0.0) -> dict:
    return {"agent": {"w": torch.full((5, 7), value)}, "run": {"step": int(value)}}


def generations(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def test_round_trip_of_every_type(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tied = torch.randn(4, 4)
    tree = {
        "agent": {
            "dyn.weight": torch.randn(3, 5, requires_grad=True),
            "bits": torch.tensor([float("nan"), -0.0, float("inf"), 1e-45]),
            "transposed": torch.randn(3, 4).T,
            "part": torch.arange(10)[3:7],
            "tied": [tied, tied, tied[1:]],
            "scalar": torch.tensor(3.5),
            "empty": torch.zeros(0, 3),
            "generator": torch.Generator().manual_seed(3).get_state(),
            "dtypes": {str(d): torch.randint(0, 2, (3,)).to(d) for d in DTYPES},
        },
        "rng": {"numpy": rng.bit_generator.state, "mt": np.random.RandomState(2).get_state(legacy=False)},
        "arrays": [np.arange(6.0).reshape(2, 3).T, np.array(7, np.int16), np.zeros((2, 0)), np.float32(0.1)],
        "plain": {
            "numbers": [0, -1, 2**200, True, 0.1, -0.0, 5e-324, float("nan"), -float("inf")],
            "texts": ["", "käse\n\0", "$tensor", b"\x00\xff", None],
            "tuple": (1, (2,), [], {}),
            "keys": {1: "int", None: "none", "$x": {"$y": 1}, (1, 2): "tuple"},
            "clash": {"a/b": torch.ones(1), "a": {"b": torch.zeros(2)}},
        },
        "bare": torch.arange(3),
        "nothing": {},
    }
    path = Checkpoint(tmp_path).save(tree, step=5)
    loaded = load(tmp_path)
    assert loaded is not None and loaded.step == 5 and loaded.notes == () and loaded.path == path
    assert list(loaded.tree) == list(tree)
    for key in tree:
        assert same(loaded.tree[key], tree[key]), key
    restored = np.random.default_rng()
    restored.bit_generator.state = loaded.tree["rng"]["numpy"]
    assert restored.random() == rng.random()
    weights = safetensors.torch.load_file(path / "agent.safetensors")
    assert torch.equal(weights["dyn.weight"], tree["agent"]["dyn.weight"])


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)
    | st.text(max_size=5)
    | st.binary(max_size=5)
)
NODES = st.recursive(
    LEAVES,
    lambda node: (
        st.lists(node, max_size=3)
        | st.lists(node, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), node, max_size=3)
    ),
    max_leaves=8,
)


# How long it takes to make nested examples is no fault of what is tested.
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(NODES)
def test_packing_is_exact_and_valid_json(value: object) -> None:
    outline, groups = tree_files.pack({"x": value})
    text = json.dumps(outline, allow_nan=False)
    assert same(tree_files.unpack(json.loads(text), groups), {"x": value})


@pytest.mark.parametrize("value", [object(), {1, 2}, np.array(["a"]), torch.eye(2).to_sparse(), 1j])
def test_what_cannot_be_saved_is_named_and_leaves_nothing(tmp_path: Path, value: object) -> None:
    checkpoint = Checkpoint(tmp_path)
    with pytest.raises(ValueError, match="cannot hold agent/opt/1"):
        checkpoint.save({"agent": {"opt": [0, value]}}, step=1)
    with pytest.raises(ValueError, match="top-level keys"):
        checkpoint.save({"../agent": 1}, step=1)
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load(tmp_path) is None and Checkpoint(tmp_path).load("best") is None
    assert load(tmp_path / "nowhere") is None


def test_the_last_few_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    for step, score in [(1, 5.0), (2, 9.0), (3, float("nan")), (4, 7.0), (5, None)]:
        checkpoint.save(small(step), step=step, score=score, extra=lambda step=step: {"of": step})
    assert [name[-1] for name in generations(tmp_path)] == ["2", "4", "5"]
    last, best = checkpoint.load(), checkpoint.load("best")
    assert last is not None and (last.step, last.score, last.extra) == (5, None, {"of": 5})
    assert best is not None and (best.step, best.score) == (2, 9.0)
    assert checkpoint.kept() == [{"of": 2}, {"of": 4}, {"of": 5}]
    assert load(tmp_path, checkpoint.save(small(6), step=6, score=float("nan"))).score is None
    checkpoint.save(small(7), step=7, score=9.0)
    assert [name[-1] for name in generations(tmp_path)] == ["6", "7"]


def test_restoring_may_refuse_and_gets_an_older_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    for step in (1, 2):
        checkpoint.save(small(step), step=step)

    def restore(loaded: Loaded) -> None:
        if loaded.step == 2:
            raise Damaged("replay file deter-3 is missing")

    loaded = checkpoint.load(restore=restore)
    assert loaded is not None and loaded.step == 1 and "deter-3" in loaded.notes[0]


def test_what_is_kept_are_those_that_can_be_restored(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    for step, score in [(1, None), (2, 9.0)]:
        checkpoint.save(small(step), step=step, score=score, extra=lambda step=step: {"of": step})

    def restore(loaded: Loaded) -> None:
        if loaded.step == 2:
            raise Damaged("replay file deter-3 is missing")

    checkpoint.load(restore=restore)
    checkpoint.save(small(3), step=3, extra=lambda: {"of": 3})
    # The best can be acted by, but it is none of the last two that a run goes on from.
    assert [name[-1] for name in generations(tmp_path)] == ["1", "2", "3"]
    assert checkpoint.kept() == [{"of": 1}, {"of": 3}]


def test_one_generation_by_its_folder_and_by_the_pointer(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path)
    first = checkpoint.save(small(1), step=1)
    checkpoint.save(small(2), step=2)
    loaded = load(tmp_path, first)
    assert loaded is not None and loaded.step == 1
    (tmp_path / "latest").write_text(first.name + "\n")
    assert load(tmp_path).step == 1
    (tmp_path / "latest").write_bytes(b"\xff\x00")
    assert load(tmp_path).step == 2


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdream.checkpoint.FORMAT", 2)
    Checkpoint(tmp_path).save(small(), step=1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="upgrade"):
        load(tmp_path)


def test_a_reader_survives_a_writer_that_overtakes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Checkpoint(tmp_path)
    writer.save(small(1), step=1)
    original = tree_files.digest

    def overtaken(path: Path) -> str:
        monkeypatch.setattr(tree_files, "digest", original)
        for step in (2, 3):  # the first is no longer kept
            writer.save(small(step), step=step)
        return original(path)

    monkeypatch.setattr(tree_files, "digest", overtaken)
    loaded = load(tmp_path)
    assert loaded is not None and loaded.step == 3 and loaded.notes == ()
