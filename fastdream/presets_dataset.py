"""What all presets for datasets share, whatever the agent."""

from dataclasses import replace

from fastdream.config import Config, EvalConfig


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
