"""What the tests of the loops share: an agent that only counts, a logger that only remembers, small settings."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream import presets
from fastdream.build import Parts, environment, make_agent, make_replay
from fastdream.checkpoint import Checkpoint
from fastdream.config import Config
from fastdream.driver import Driver, random_actions
from fastdream.run import Training
from fastdream.schedule import Stop

CPU = torch.device("cpu")


def tiny(task: str = "dummy_vector", **changes: Any) -> Config:
    """Settings of the debug preset with batches of 2 x 4; `train`, `log`, `eval`, ... take dictionaries."""
    config = presets.resolve(task, "debug")
    changes = {"train": {}, "log": {}, "env": {}} | changes
    changes["train"] = dict(batch_size=2, batch_length=4, ratio=8.0) | changes["train"]
    changes["log"] = dict(outputs=(), every=0.0, save_every=0.0) | changes["log"]
    changes["env"] = dict(count=2, parallel="no") | changes["env"]
    nested = {k: replace(getattr(config, k), **v) if isinstance(v, dict) else v for k, v in changes.items()}
    return replace(config, **nested)


class CountingAgent:
    """Acts at random; writes into latents which policy call or update they come from.

    deter [2]: number of the policy call, or 1000 + number of the update; environment, or row of the batch.
    """

    param_count, replay_context = 3, 1
    latent_spec = {"deter": ((2,), np.dtype(np.float16)), "stoch": ((1,), np.dtype(np.uint8))}

    def __init__(self, obs_space: Any, act_space: Any, bad_update: int = -1) -> None:
        self.obs_space, self.act_space, self.bad_update = obs_space, act_space, bad_update
        self.generators = {"policy": torch.Generator().manual_seed(1)}
        self.rng = np.random.default_rng(0)
        self.policies = self.updates = 0
        self.events: list[str] = []
        self.ids: list[np.ndarray] = []  # of each batch, filled in by `train`
        self.batches: list[dict[str, Tensor]] = []

    def init_policy(self, n: int) -> dict[str, Tensor]:
        return {"count": torch.zeros(n)}

    def policy(self, carry: dict[str, Tensor], obs: Mapping[str, Any], mode: str = "sample") -> Any:
        self.policies += 1
        self.events.append("policy")
        n = len(obs["is_first"])
        deter = np.stack([np.full(n, self.policies), np.arange(n)], 1).astype(np.float16)
        latents = {"deter": deter, "stoch": np.zeros((n, 1), np.uint8)}
        return {"count": carry["count"] + 1}, random_actions(self.act_space, n, self.rng), latents

    def init_train(self, b: int) -> dict[str, Tensor]:
        return {"count": torch.zeros(b)}

    def update(self, carry: dict[str, Tensor], batch: Mapping[str, Tensor]) -> Any:
        self.updates += 1
        self.events.append("update")
        self.batches.append({key: value.clone() for key, value in batch.items()})
        b, length = batch["reward"].shape
        row = torch.arange(b)[:, None].expand(b, length - 1)
        deter = torch.stack([torch.full_like(row, 1000 + self.updates), row], -1).half()
        latents = {"deter": deter, "stoch": torch.zeros(b, length - 1, 1, dtype=torch.uint8)}
        loss = torch.tensor(float("nan") if self.updates == self.bad_update else 1.0 / self.updates)
        metrics = {"loss/rew": loss, "opt/loss": loss * 2, "other": torch.tensor(float("nan"))}
        return {"count": carry["count"] + 1}, latents, metrics

    def report(self, carry: Any, batch: Any) -> Any:
        self.events.append("report")
        return {}, {}

    def state_dict(self) -> dict[str, Any]:
        return {"counts": torch.tensor([self.policies, self.updates])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.policies, self.updates = state["counts"].tolist()


class ListLogger:
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.values: list[tuple[int, dict[str, float]]] = []
        self.scores: list[tuple[int, float]] = []
        self.pictures: list[str] = []
        self.saves = 0
        self.lines: list[str] = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.values.append((step, dict(values)))

    def resume(self, step: int) -> None:
        self.resumed = step

    def saved(self) -> None:
        self.saves += 1

    def episode(self, step: int, score: float, length: int, extras: Mapping[str, float]) -> None:
        self.scores.append((step, score))

    def print(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, step: int, updates: int) -> None:
        self.last = (step, updates)

    def picture(self, step: int, name: str, picture: Any) -> None:
        self.pictures.append(name)

    def close(self) -> None:
        pass


def parts_of(config: Config, logdir: Path, agent: Any = None) -> Parts:
    """The parts of a run with a remembering logger, and the counting agent unless another is given."""
    make_env = environment(config)
    driver = Driver(make_env, config.env.count, seed=config.seed)
    if agent is None:
        agent = CountingAgent(driver.obs_space, driver.act_space)
    elif agent == "real":
        agent = make_agent(config, driver.obs_space, driver.act_space, CPU)
    replay = make_replay(config, agent, logdir, CPU)
    logger: Any = ListLogger()
    return Parts(agent, replay, driver, make_env, logger, Checkpoint(logdir / "ckpt"), CPU, logdir)


def note_ids(training: Training, agent: CountingAgent) -> None:
    """Let the agent keep the ids of the steps in every batch, which only the learner sees."""
    get = training.loop.learner.prefetch.get

    def noting() -> Any:
        batch = get()
        agent.ids.append(batch.ids)
        return batch

    training.loop.learner.prefetch.get = noting  # type: ignore[method-assign]


def train(config: Config, logdir: Path, agent: Any = None, stop: Stop | None = None) -> Training:
    """A whole run; its agent, replay and logger can be looked at afterwards."""
    parts = parts_of(config, logdir, agent)
    training = Training(config, parts)
    if isinstance(parts.agent, CountingAgent):
        note_ids(training, parts.agent)
    try:
        training.run(stop or Stop())
    finally:
        training.close()
        parts.driver.close()
    return training
