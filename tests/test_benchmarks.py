"""The benchmarks themselves: shapes, floors, and the files and pictures that are made of results."""

import csv
import json
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdream import ops as fd
from fastdream import presets_dreamer_v3
from fastdream.agents.dreamer_v3 import Config, size
from fastdream.agents.dreamer_v3_nets import Networks

from .bench_tools import load

ROOT = Path(__file__).parents[1]


shapes, floors, calls, table, curves = map(load, ("shapes", "floors", "calls", "table", "curves"))


def result(name: str, median: float, **about: object) -> dict[str, object]:
    stats = {"median": median, "iqr": median / 10, "rounds": 5}
    return {"name": name, "extra_info": about, "stats": stats}


def run_dir(folder: Path, seed: int, scores: list[float], start: float = 1e9) -> Path:
    """What a run leaves: an episode every 100 steps and 30 seconds."""
    run = folder / f"run{seed}"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"config": {"seed": seed}}))
    lines = [
        {"step": 100 * i, "time": start + 30 * i, "episode/score": x, "episode/length": 100}
        for i, x in enumerate(scores)
    ]
    (run / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "eval.json").write_text(json.dumps({"step": 100 * len(scores), "mean": 7.5}))
    return run


@pytest.mark.parametrize(
    ("name", "deter", "hidden", "classes", "feat"),
    [
        ("1m", 512, 64, 4, 640),
        ("12m", 2048, 256, 16, 2560),
        ("25m", 3072, 384, 24, 3840),
        ("50m", 4096, 512, 32, 5120),
        ("100m", 6144, 768, 48, 7680),
        ("200m", 8192, 1024, 64, 10240),
        ("400m", 12288, 1536, 96, 15360),
    ],
)
def test_shapes_are_the_published_ones(name: str, deter: int, hidden: int, classes: int, feat: int):
    s = shapes.shape(name)
    assert (s.deter, s.hidden, s.classes, s.feat, s.units) == (deter, hidden, classes, feat, hidden)
    assert (s.stoch, s.blocks, s.starts, s.horizon, s.bins) == (32, 8, 1024, 15, 255)
    assert name in shapes.PRESETS


def test_every_op_is_timed():
    assert {name.partition(":")[0] for name in calls.PLANS} == set(fd.OPS)
    ids = [case.id for case in load("test_ops").cases()]
    assert len(ids) == len(set(ids)) > len(fd.OPS)
    assert set(shapes.backends("observe")) >= {"reference"}


@pytest.mark.parametrize("name", calls.PLANS)
def test_calls_fit_their_ops(name: str):
    """At the smallest preset with a batch of 2 x 3: finite results, and a gradient for every leaf."""
    plan, ops = calls.PLANS[name], load("test_ops")
    call = plan.call(replace(shapes.shape(plan.presets[0]), batch=2, length=3, horizon=2))
    function = getattr(fd.load("reference"), name.partition(":")[0])
    outputs = list(floors.tensors(ops.forward(function, call)))
    assert outputs and all(
        x.isfinite().all() and not x.requires_grad for x in outputs if x.is_floating_point()
    )
    if not plan.backward:
        return
    found = [x for x in floors.tensors(function(*call.args, **call.kwargs)) if x.requires_grad]
    grads = ops.forward_backward(function, call, ops.leaves(call), [torch.ones_like(x) for x in found])
    assert grads and all(x is not None and x.isfinite().all() for x in grads)


def test_floor_of_observe_by_hand():
    """1m on B16 x T64: D 512, H 64, S*C 128, A 6, E 64, 8 blocks."""
    core = 512 * 64 + 128 * 64 + 6 * 64 + 8 * (64 + 3 * 64) * 64 + 8 * 64 * 192
    post = (512 + 64) * 64 + 64 * 128
    call = calls.observe(shapes.shape("1m"))
    assert call.flops == 2 * 1024 * (core + post) == 646_709_248


def test_floor_of_bytes_by_hand():
    """Five arrays of 1024 x 15 float32 forward; then one gradient comes in and four go out."""
    call = calls.lambda_return(shapes.shape("1m"))
    outputs = fd.load("reference").lambda_return(*call.args)
    array = 1024 * 15 * 4
    assert floors.forward(call.args, outputs, 0) == (0, 5 * array)
    assert floors.forward_backward(call.args, outputs, 10) == (30, 10 * array)
    params = [torch.zeros(3, 5), torch.zeros(7)]
    assert floors.laprop_bytes(params) == 7 * 4 * 22
    assert floors.gather_bytes(torch.zeros(10, 3, dtype=torch.uint8), 2, 4) == 2 * 2 * 4 * 3


def test_floor_of_convolutions_by_hand():
    nets = Networks(*shapes.PIXELS, size(Config(), "1m"), fd.load("reference"), torch.float32, 0)
    by_hand = [25 * 3 * 8 * 64**2, 25 * 8 * 12 * 32**2, 25 * 12 * 16 * 16**2, 25 * 16 * 16 * 8**2]
    assert floors.encoder_convs(nets) == by_hand
    assert floors.decoder_convs(nets) == by_hand[::-1]


@pytest.mark.parametrize(("spaces", "published"), [("PROPRIO", 0.032e12), ("PIXELS", 0.11e12)])
def test_floor_of_an_update_is_a_little_below_the_usual_count(spaces: str, published: float):
    """The usual count differentiates inputs that need no gradient and evaluates the actor twice."""
    nets = Networks(*getattr(shapes, spaces), size(Config(), "1m"), fd.load("reference"), torch.float32, 0)
    assert 0.8 * published < floors.update_flops(nets, 16, 64, 15) < published


def test_jobs():
    job = shapes.job("pixels-12m-nature2024-4x16")
    assert (job.batch, job.length, job.config.dyn.deter, job.config.enc.strided) == (4, 16, 2048, True)
    small = shapes.job("cartpole")
    preset = presets_dreamer_v3.cartpole()
    assert (small.batch, small.length) == (preset.train.batch_size, preset.train.batch_length)
    assert small.config.dyn == size(preset.dreamer, preset.size).dyn
    agent = shapes.job("proprio-1m-2x3").agent(fd.load("reference"))
    data = shapes.random_batch(agent, 2, 3)
    _, _, metrics = agent.update(agent.init_train(2), data)
    assert metrics["opt/loss"].isfinite() and metrics["opt/lr"] == agent.config.opt.lr
    least = 6 * 4 * agent.param_count
    assert least < floors.update(agent, data, 2, 3).bytes < 1.2 * least
    assert 2 * 640_867 > floors.policy(agent, 1).flops > 640_867


def test_plain_pytest_leaves_the_benchmarks_alone():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert options["testpaths"] == ["tests"]


def test_results_keep_neither_single_times_nor_the_name_of_a_computer(pytestconfig: pytest.Config):
    hooks = load("conftest")
    stats = dict.fromkeys(hooks.KEPT, 1.0) | {"data": [1.0] * 1000}
    data = {"benchmarks": [{"name": "x", "fullname": "y", "stats": stats}], "commit_info": {"id": "z"}}
    hooks.pytest_benchmark_update_json(pytestconfig, [], data)
    assert data["benchmarks"] == [{"name": "x", "stats": dict.fromkeys(hooks.KEPT, 1.0)}]
    assert data["command"].startswith("pytest") and "commit_info" not in data
    machine = {"node": "mine", "python_version": "3.11", "cpu": {"brand_raw": "fast"}}
    hooks.pytest_benchmark_update_machine_info(pytestconfig, machine)
    assert machine.keys() == {"python", "cpu", "cores", "torch"} and machine["cpu"] == "fast"


@pytest.mark.slow
def test_results_are_small_and_say_how_they_were_made(tmp_path: Path):
    """One benchmark for real, in a process of its own, and the table of its result."""
    out = tmp_path / "out.json"
    few = ["--benchmark-min-rounds=1", "--benchmark-max-time=0.001", "--benchmark-disable-gc"]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "benchmarks/test_ops.py", "-k", "gather", *few]
    done = subprocess.run(
        [*command, f"--benchmark-json={out}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(out.read_text())
    (found,) = data["benchmarks"]
    assert found["extra_info"].items() >= {"threads": 1, "flops": 0, "bytes": 2 * 16 * 65 * 12288}.items()
    assert "data" not in found["stats"] and "node" not in data["machine_info"]
    assert data["command"].startswith("pytest -q benchmarks/test_ops.py -k gather")
    page = table.page(data)
    assert "| gather_sequences | 1m | forward |" in page and data["command"] in page


def test_table_compares_backends():
    about = {"what": "observe", "preset": "1m", "mode": "forward", "flops": 4_000_000, "bytes": 2_000_000}
    slow, fast = result("a", 4e-3, backend="reference", **about), result("b", 1e-3, backend="native", **about)
    other = result("c", 2e-3, backend="reference", **(about | {"what": "prior", "flops": 0}))
    header, *rows = table.compare([slow, other, fast])
    assert header[3:6] == ["reference", "native", "reference / native"]
    assert rows[0] == ["observe", "1m", "forward", "4 ms", "1 ms", "4.00", "0.004", "4", "2", "2"]
    assert rows[1] == ["prior", "1m", "forward", "2 ms", "", "", "", "", "2", "1"]
    assert table.markdown([header, *rows]).splitlines()[1].startswith("| --- | --- | --- | ---: | ---: |")
    assert table.plain([slow, result("test_sample", 25e-6)])[1] == ["test_sample", "25 µs", "2.5 µs", "5"]


def test_table_refuses_other_files(tmp_path: Path):
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "text.json").write_text("no JSON")
    for name, words in (("other", "not a result"), ("list", "not a result"), ("text", "Expecting value")):
        with pytest.raises(SystemExit, match=f"error: .*{name}.json: {words}"):
            table.main([str(tmp_path / f"{name}.json")])
    assert (
        table.seconds(0.9999) == "1000 ms"
        and table.seconds(2e-10) == "0.2 ns"
        and table.seconds(12) == "12 s"
    )


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_curves_of_runs(tmp_path: Path, kind: str):
    pytest.importorskip("matplotlib", reason="matplotlib is an extra: pip install 'fastdream[plot]'")
    runs = [run_dir(tmp_path, seed, [float(seed + i) for i in range(40)]) for seed in (1, 0)]
    args = ["--name", "toy", "--output", str(tmp_path / "out"), "--target", "20", "--format", kind]
    curves.main([*args, *map(str, runs)])
    made = tmp_path / "out" / "toy.csv"
    with made.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["seed", "kind", "step", "seconds", "score"]
    assert rows[1:3] == [["0", "episode", "0", "0.0", "0"], ["0", "episode", "100", "30.0", "1"]]
    assert rows[-1] == ["1", "evaluation", "4000", "1170.0", "7.5"] and len(rows) == 1 + 2 * 41
    picture = (tmp_path / "out" / f"toy.{kind}").read_bytes()
    assert picture.startswith(b"<?xml" if kind == "svg" else b"\x89PNG") and len(picture) < 200_000
    if kind == "svg":
        curves.main([*args, "--published", "dmc_proprio:walker_walk:dreamer_v3", "--", *map(str, runs)])
        assert b"dreamer_v3" not in picture and (tmp_path / "out" / "toy.svg").read_bytes() != picture
        curves.main([*args, *map(str, runs), "--beside", *map(str, runs)])
        both = (tmp_path / "out" / "toy.svg").read_bytes()
        assert b"official code, mean of 2 seeds" in both and b"fastdream, mean of 2 seeds" in both
        assert b"official" not in picture and b"<!-- 3000 -->" in picture and b"<!-- 3000 -->" in both
        curves.main([*args, *map(str, runs)])
    # The table is all that is needed to draw the picture and to write the table once more.
    text = made.read_text()
    curves.main([*args, str(made)])
    assert made.read_text() == text and (tmp_path / "out" / f"toy.{kind}").read_bytes() == picture


def test_lines_of_curves():
    assert curves.smoothed(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]
    x, y = curves.mean_line(
        [np.array([0.0, 10]), np.array([2.0, 6])], [np.array([0.0, 10]), np.array([4.0, 4])]
    )
    assert x[0] == 2 and x[-1] == 6 and y[0] == 3 and y[-1] == 5
    with pytest.raises(ValueError, match="no time in common"):
        curves.mean_line([np.array([0.0, 1]), np.array([2.0, 3])], [np.zeros(2), np.zeros(2)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("walker_walk", "need BENCHMARK:TASK:SYSTEM"),
        ("dmc_proprio:pong:dreamer_v3", "for task pong; there are acrobot_swingup"),
        ("dmc_proprio:pong:dqn", "no published score has system dqn"),
    ],
)
def test_curves_know_published_scores_alone(tmp_path: Path, words: str, message: str):
    with pytest.raises(ValueError, match=message):
        curves.Command((tmp_path,), "x", published=(words,))


def test_curves_say_what_is_wrong(tmp_path: Path):
    with pytest.raises(SystemExit, match="there is no scores.jsonl"):
        curves.main(["--name", "x", str(tmp_path)])
    with pytest.raises(ValueError, match="no episode has ended"):
        curves.read([run_dir(tmp_path, 0, [])])
    same = [run_dir(tmp_path / folder, 3, [1.0, 2.0]) for folder in ("a", "b")]
    with pytest.raises(ValueError, match=r"same seed: \[3, 3\]"):
        curves.read(same)
