"""What the temperature of dreams does: controllers evolved in dreams of one memory, scored in the real environment.

    python -m fastdream.train --agent world_models --preset take_cover_small --logdir runs/doom
    python benchmarks/world_models.py --logdir runs/doom --temperatures 0.5 1.0 1.15 1.3 --out scores.csv

The second line takes V and M from the first one's run and evolves a controller at each temperature, as the run itself
does, then plays real episodes with it; and with the policy that rollouts are recorded of. Without temperatures
(`--temperatures` and nothing after it) that policy alone is scored, on the episodes that `fastdream.eval` plays. A line
of the file is (temperature, generations, fitness in dreams, its standard deviation, score in the environment, its
standard deviation, episodes); fitness is in steps of the environment's reward, so both columns have one unit. Lines
that are there already are not made again.
"""

import argparse
import csv
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdream.agents import STAGED
from fastdream.build import environment, in_processes
from fastdream.config import Config
from fastdream.recording import Recording
from fastdream.restore import load_agent
from fastdream.scores import Scores, evaluate
from fastdream.stages.collect import RandomActions, recording_spec
from fastdream.stages.evolve import Dreams, Evolve
from fastdream.stages.fit import Latents
from fastdream.train import set_up

COLUMNS = ["temperature", "generations", "dream", "dream_std", "real", "real_std", "episodes"]


class RandomAgent:
    """Acts as the policy that rollouts are recorded of, another one in every episode."""

    def __init__(self, agent: Any) -> None:
        self.agent, self.generators = agent, {"policy": torch.Generator()}
        self.policies: list[RandomActions] = []
        self.begun = 0

    def init_policy(self, n: int) -> dict[str, torch.Tensor]:
        self.begun = 0
        self.policies = [self.drawn() for _ in range(n)]
        return {}

    def drawn(self) -> RandomActions:
        self.begun += 1
        seed = self.generators["policy"].initial_seed(), self.begun
        return RandomActions(self.agent, np.random.default_rng(seed))

    def policy(self, carry: Any, obs: Any, mode: str = "sample") -> Any:
        for i in np.flatnonzero(obs["is_first"]):
            self.policies[i] = self.drawn()
        return carry, self.agent.controller.decode(np.stack([policy() for policy in self.policies])), {}


def real(agent: Any, config: Config, episodes: int) -> Scores:
    """Scores of as many episodes, the same ones for every agent."""
    seed, parallel = config.seed + 1_000_003, in_processes(config)
    make_env = environment(config)
    return evaluate(agent, make_env, episodes, count=4, parallel=parallel, seed=seed, task=config.task)


def evolved(
    agent: Any, config: Config, logdir: Path, temperature: float, generations: int
) -> tuple[float, ...]:
    """Evolve a controller at a temperature; mean and standard deviation of how long the dreams of it last."""
    control = replace(agent.config.control, temperature=temperature, generations=generations)
    agent.config = replace(agent.config, control=control)
    recording = Recording(logdir / "rollouts", recording_spec(agent), appends=False)
    latents = Latents(logdir / "latents.npy", recording.rows)
    dreams = Dreams(config, agent, latents, recording.starts())
    evolve, began = Evolve(config, agent, dreams), time.monotonic()
    while (before := evolve.done) < evolve.units:
        evolve.advance()
        if evolve.done == before:
            continue  # to the test of this generation
        said = ", ".join(f"{key.removeprefix('control/')} {x:.3g}" for key, x in evolve.metrics().items())
        print(
            f"tau {temperature}: generation {evolve.done} {said} {time.monotonic() - began:.0f} s", flush=True
        )
    count = control.test_rollouts
    controls = agent.controls.double().cpu().numpy()[None].repeat(count, 0)
    lasted = dreams(controls, np.arange(count), (6,))
    return float(lasted.mean()), float(lasted.std())


def done(path: Path) -> set[str]:
    """Temperatures that the file has already."""
    if not path.exists():
        path.write_text(",".join(COLUMNS) + "\n")
    with path.open() as file:
        return {row["temperature"] for row in csv.DictReader(file)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--logdir", type=Path, required=True)
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.5, 1.0, 1.15, 1.3])
    parser.add_argument("--generations", type=int, default=0, help="those of the run if not given")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    agent, config, loaded = load_agent(args.logdir)
    if config.agent not in STAGED:
        parser.error(f"{args.logdir} is a run of {config.agent}: only world_models evolves in dreams")
    models: Any = agent
    if args.temperatures and (stage := loaded.tree["session"]["stage"]) != "control":
        parser.error(f"{args.logdir} is in stage {stage}, and has no memory to dream with: resume it first")
    if args.temperatures and not models.config.memory.ends:
        parser.error(f"the memory of {args.logdir} predicts no ends, so nothing can be evolved in its dreams")
    set_up(config)
    generations = args.generations or models.config.control.generations
    repeat = getattr(config.suite, "repeat", 1)
    for name in ["random", *map(str, args.temperatures)]:
        if name in done(args.out):
            continue
        line: tuple[Any, ...] = (name, 0, "", "")
        player: Any = RandomAgent(models)
        if name != "random":
            dream = evolved(models, config, args.logdir, float(name), generations)
            line, player = (name, generations, *(round(repeat * x, 1) for x in dream)), models
        scores = real(player, config, args.episodes)
        line = (*line, round(scores.mean, 1), round(scores.std, 1), len(scores.scores))
        print(dict(zip(COLUMNS, line, strict=True)), flush=True)
        with args.out.open("a") as file:
            csv.writer(file, lineterminator="\n").writerow(line)


if __name__ == "__main__":
    main()
