"""The real suites, through the command that a user gives: some hundred updates each, and every loss falls."""

import json
from pathlib import Path

import numpy as np
import pytest

from fastdream import train

pytestmark = pytest.mark.slow

COMMANDS = {
    "cartpole": ["--task", "gym_CartPole-v1"],
    "pong": [
        "--task",
        "atari100k_pong",
        "--size",
        "12m",
        "--dreamer.enc.depth",
        "4",
        "--dreamer.dec.depth",
        "4",
    ],
    "walker": ["--task", "dmc_walker_walk", "--env.count", "2"],
    "walker_vision": [
        "--task",
        "dmc_walker_walk",
        "--preset",
        "dmc_vision",
        "--size",
        "1m",
        "--env.count",
        "2",
    ],
    "crafter": ["--task", "crafter_reward", "--size", "1m"],
    "minigrid": ["--task", "minigrid_DoorKey-5x5", "--size", "1m"],
}
# A reduced batch, so that a CPU core needs a minute or two.
REDUCED = ["--train.batch-size", "4", "--train.batch-length", "16", "--dreamer.opt.warmup", "50"]
REDUCED += ["--dreamer.opt.lr", "3e-4", "--log.every", "0.001", "--log.outputs", "jsonl"]
REDUCED += [
    "--eval.every",
    "0",
    "--eval.final-episodes",
    "0",
    "--replay.capacity",
    "5000",
    "--log.report-every",
    "0",
]
UPDATES = 200


@pytest.mark.parametrize("name", COMMANDS)
def test_losses_fall(name: str, tmp_path: Path):
    count = (
        4
        if name in ("cartpole", "minigrid")
        else int(COMMANDS[name][-1])
        if "--env.count" in COMMANDS[name]
        else 1
    )
    # Learning starts when replay holds 64 windows of 17 steps; then two updates a step.
    steps = 64 + 17 * count + UPDATES // 2
    train.main(
        [*COMMANDS[name], *REDUCED, "--train.ratio", "128", "--steps", str(steps), "--logdir", str(tmp_path)]
    )
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    metrics = [entry for entry in metrics if "train/opt/loss" in entry]
    assert len(metrics) > 20
    losses = {
        key: np.array([entry[key] for entry in metrics]) for key in metrics[0] if key.startswith("train/")
    }
    assert all(np.isfinite(values).all() for values in losses.values())
    observed = set(json.loads((tmp_path / "config.json").read_text())["spaces"]["obs"])
    for key in ("opt/loss", "loss/rew", *(f"loss/{name}" for name in observed)):
        values = losses[f"train/{key}"]
        few = max(3, len(values) // 10)
        assert values[-few:].mean() < values[:few].mean(), (key, values[:few], values[-few:])
