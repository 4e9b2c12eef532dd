"""What presets of several agents share: those for datasets, and those that only try everything out."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastdream.config import Config, EnvConfig, EvalConfig, LogConfig, ReplayConfig, TrainConfig


def from_dataset(config: Config, updates: int) -> Config:
    """The settings of a preset for environments, to learn so many updates from a dataset instead."""
    return replace(
        config,
        task="",
        steps=updates,
        train=replace(config.train, prefill=0, pretrain=1),
        replay=replace(config.replay, online=False),
        eval=EvalConfig(every=updates // 10, episodes=5, mode=config.eval.mode),
        log=replace(config.log, report_every=updates // 5),
    )


def learning(dreamer: Any, model: float, actor: float, critic: float) -> Any:
    """The settings of one of the first two Dreamers, with these learning rates."""
    rates = {"model_opt": model, "policy_opt": actor, "value_opt": critic}
    return replace(dreamer, **{name: replace(getattr(dreamer, name), lr=lr) for name, lr in rates.items()})


def tiny(config: Config, nets: Sequence[str], pretrain: int = 1) -> Config:
    """The settings of the first two Dreamers' official codes, with a layer in each of these nets, and little of all."""
    shallow = {name: replace(getattr(config.dreamer, name), layers=1) for name in nets}
    return replace(
        config,
        env=EnvConfig(count=4),
        train=TrainConfig(ratio=8.0, batch_size=8, batch_length=10, prefill=100, pretrain=pretrain),
        replay=ReplayConfig(capacity=1000, online=False),
        eval=EvalConfig(episodes=1, final_episodes=1, count=1, mode="mode"),
        log=LogConfig(outputs=("console", "jsonl"), every=1.0, report_every=0),
        dreamer=replace(config.dreamer, imag_length=3, **shallow),
    )
