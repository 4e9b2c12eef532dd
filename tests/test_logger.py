"""What is logged can be read back; what fails is told once and costs nothing else."""

import errno
import importlib.util
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastdream import logger as logger_module
from fastdream import video
from fastdream.curves import plot_curves
from fastdream.logger import DEFAULT, Logger, fetch
from fastdream.outputs import JsonLines, drop_after
from fastdream.rundir import StorageError

HAS_TB = importlib.util.find_spec("tensorboard") is not None
needs_tensorboard = pytest.mark.skipif(not HAS_TB, reason="pip install 'fastdream[tensorboard]'")


def rows(path: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def events(logdir: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(logdir), {"images": 0, "scalars": 0, "tensors": 0}).Reload()


def clip(frames: int = 5) -> np.ndarray:
    out = np.zeros((frames, 24, 32, 3), np.uint8)
    for t in range(frames):
        out[t, t : t + 6, 4:20] = (200, 40 * t, 90)
    return out


def pretend_missing(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(logger_module, "find_spec", lambda name: None if name in names else find(name))


def test_metrics_and_scores_are_valid_json_lines(tmp_path: Path) -> None:
    with Logger(tmp_path / "new" / "run", ("jsonl",)) as logger:
        logger.scalars(
            3, {"a": 0.1, "nan": float("nan"), "inf": -np.inf, "t": torch.tensor(float("nan")), "i": 7}
        )
        logger.episode(5, 21.0, 34, {"log/food/sum": np.float32(2)})
    metrics = rows(tmp_path / "new/run/metrics.jsonl")
    assert [row["step"] for row in metrics] == [3, 5] and all(row["time"] > 1e9 for row in metrics)
    assert {k: metrics[0][k] for k in ["a", "nan", "inf", "t", "i"]} == dict(
        a=0.1, nan=None, inf=None, t=None, i=7
    )
    assert metrics[1]["episode/log/food/sum"] == 2
    (score,) = rows(tmp_path / "new/run/scores.jsonl")
    assert (
        score.items() >= {"step": 5, "episode/score": 21.0, "episode/length": 34}.items() and len(score) == 4
    )


def test_tensors_are_fetched_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies = []
    for name in ("tolist", "item", "cpu", "numpy", "__float__"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, o=original, n=name: copies.append(n) or o(self, *a)
        )
    values = {
        "b": torch.tensor(2**53, dtype=torch.int64),
        "plain": 1.5,
        "f": torch.tensor(0.1, requires_grad=True),
        "half": torch.ones(1, dtype=torch.bfloat16),
        "yes": torch.tensor(True),
        "array": np.array(3, np.int16),
    }
    out = fetch(values)
    assert copies == ["tolist"]
    assert list(out) == list(values) and set(map(type, out.values())) == {float}
    assert out["b"] == 2**53 and out["f"] == np.float32(0.1) and out["yes"] == 1


@pytest.mark.parametrize("value", [torch.zeros(3), np.zeros((2, 1)), "text", None])
def test_what_is_no_number_is_named(value: object) -> None:
    with pytest.raises(
        ValueError, match=r"metric train/x must be one number, got (Tensor|ndarray|str|NoneType)"
    ):
        fetch({"train/x": value})


def test_resuming_drops_what_came_after_and_what_was_cut_off(tmp_path: Path) -> None:
    logger = Logger(tmp_path, ("jsonl",))
    for step in range(0, 50, 10):
        logger.scalars(step, {"x": step})
        logger.episode(step, step, 1)
    logger.close()
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 7, "x": 1')
    logger = Logger(tmp_path, ("jsonl",))
    assert path.read_bytes() == whole
    logger.resume(20)
    logger.scalars(30, {"x": -1.0})
    logger.close()
    kept = [(row["step"], row["x"]) for row in rows(path) if "x" in row]
    assert kept == [(0, 0), (10, 10), (20, 20), (30, -1)]
    assert [row["step"] for row in rows(tmp_path / "scores.jsonl")] == [0, 10, 20]


def test_a_log_that_needs_no_change_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    before = path.stat().st_ino
    drop_after(path, 2)
    assert path.stat().st_ino == before
    path.write_bytes(path.read_bytes() + b'\xff\x00 garbage\n{"step": "no"}\n[1]\n{"step": 3}\n')
    drop_after(path, 3)
    assert [row["step"] for row in rows(path)] == [1, 2, 3] and list(tmp_path.iterdir()) == [path]


@needs_tensorboard
def test_tensorboard_gets_scalars_and_moving_pictures(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (pip install pillow)")
    with Logger(tmp_path, ("tensorboard",)) as logger:
        logger.scalars(10, {"train/loss/dyn": 0.5, "bad": float("nan")})
        logger.scalars(20, {"train/loss/dyn": torch.tensor(0.25)})
        path = logger.video(20, "openloop/image", clip())
        curves = np.random.default_rng(0).normal(size=(2, 16, 3)).astype(np.float32)
        logger.picture(20, "openloop/vector", curves)
        logger.picture(20, "openloop/rows", clip())
    seen = events(tmp_path)
    assert [(e.step, e.value) for e in seen.Scalars("train/loss/dyn")] == [(10, 0.5), (20, 0.25)]
    (event,) = seen.Images("openloop/image")
    gif = image.open(io.BytesIO(event.encoded_image_string))
    assert (gif.format, gif.n_frames, gif.size, event.step) == ("GIF", 5, (32, 24), 20)
    assert seen.Images("openloop/rows")[0].width > 32  # the rows have labels
    assert image.open(io.BytesIO(seen.Images("openloop/vector")[0].encoded_image_string)).format == "PNG"
    assert path is not None and path.parent == tmp_path / "media" and path.stem == "openloop_image_000000020"
    logged = {k: v for row in rows(tmp_path / "metrics.jsonl") for k, v in row.items()}
    assert logged["openloop/image"] == f"media/{path.name}"
    drawn = np.asarray(image.open(tmp_path / "media/openloop_vector_000000020.png"))
    assert np.array_equal(drawn, plot_curves(*curves, 8))  # truth, model, the second half dreamed


@needs_tensorboard
def test_tensorboard_shows_a_resumed_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for now, steps, resumed in ((1_000, (10, 20, 30), 0), (2_000, (30, 40), 20)):
        monkeypatch.setattr("time.time", lambda now=now: float(now))
        with Logger(tmp_path, ("tensorboard",)) as logger:
            logger.resume(resumed)
            for step in steps:
                logger.scalars(step, {"x": step + resumed})
    assert [(e.step, e.value) for e in events(tmp_path).Scalars("x")] == [
        (10, 10),
        (20, 20),
        (30, 50),
        (40, 60),
    ]


def test_missing_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pretend_missing(monkeypatch, "tensorboard", "wandb")
    Logger(tmp_path, DEFAULT).close()
    assert capsys.readouterr().out.count("pip install 'fastdream[tensorboard]'") == 1
    for name in ("tensorboard", "wandb"):
        with pytest.raises(ValueError, match=rf"pip install 'fastdream\[{name}\]'"):
            Logger(tmp_path, ("jsonl", name))
    with pytest.raises(ValueError, match="unknown outputs tensorbord: choose among"):
        Logger(tmp_path, ("tensorbord",))
    assert not list(tmp_path.glob("events*"))


def test_pictures_without_a_codec_are_left_out_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def absent() -> None:
        raise ImportError("pictures and clips need Pillow: pip install pillow")

    monkeypatch.setattr(video, "best_suffix", absent)
    with Logger(tmp_path, ("jsonl",)) as logger:
        assert logger.video(1, "a", clip()) is None and logger.video(2, "a", clip()) is None
        logger.scalars(3, {"x": 1.0})
    assert capsys.readouterr().out.count("pip install pillow") == 1
    assert [row["step"] for row in rows(tmp_path / "metrics.jsonl")] == [3]


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/run.*--logdir"):
        Logger(tmp_path / "file" / "run", ("jsonl",))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full to write to")
@needs_tensorboard
def test_a_full_disk_is_one_clear_error_and_the_other_outputs_are_served(tmp_path: Path) -> None:
    logger = Logger(tmp_path, ("tensorboard", "console"))
    logger._outputs[0]._file._file = io.FileIO("/dev/full", "ab")
    with pytest.raises(StorageError, match=r"metrics\.jsonl: the disk is full .*MB free"):
        logger.scalars(1, {"loss/x": 1.0})
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        logger.episode(2, 5.0, 6)
    logger.close()
    seen = events(tmp_path)
    assert seen.Scalars("loss/x")[0].value == 1 and seen.Scalars("episode/score")[0].value == 5
    assert rows(tmp_path / "scores.jsonl")[0]["episode/score"] == 5
    assert logger.console.state.losses == {"x": 1.0} and logger.console.state.episodes == 1


def test_a_record_that_does_not_fit_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.scalars(1, {"x": 1.0})
    real = lines._file._file

    def half(data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real.write(data[:-10])

    lines._file._file = SimpleNamespace(tell=real.tell, truncate=real.truncate, write=half, close=real.close)
    with pytest.raises(StorageError, match="disk is full"):
        lines.scalars(2, {"x": 2.0})
    lines._file._file = real
    lines.scalars(3, {"x": 3.0})
    assert [row["step"] for row in rows(tmp_path / "x.jsonl")] == [1, 3]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="pip install 'fastdream[wandb]'")
@pytest.mark.parametrize("mode", ["disabled", pytest.param("offline", marks=pytest.mark.slow)])
def test_weights_and_biases_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, mode: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = Logger(tmp_path, ("wandb",), project="test", config={"seed": 1})
    logger.scalars(1, {"x": 1.0})
    logger.video(1, "clip", clip())
    run, logger._outputs[-1]._run = logger._outputs[-1]._run, SimpleNamespace()  # whatever is called fails
    logger.scalars(2, {"x": 2.0})
    logger.scalars(3, {"x": 3.0})
    run.finish()
    logger.close()
    assert capsys.readouterr().out.count("Weights & Biases has failed") == 1
    assert [row["x"] for row in rows(tmp_path / "metrics.jsonl") if "x" in row] == [1, 2, 3]
    assert (mode == "disabled") == (not list(tmp_path.glob("wandb/offline-run-*")))
