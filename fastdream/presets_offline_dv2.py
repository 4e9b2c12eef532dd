"""Settings to start Offline DV2 from: those of V-D4RL's code, and ours for small machines. Steps are updates."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from fastdream import presets_dreamer_v2 as dreamer_v2
from fastdream.agents.dreamer_v2_offline_config import Config as DreamerConfig
from fastdream.agents.dreamer_v2_offline_config import OfflineConfig
from fastdream.config import Config, TrainConfig
from fastdream.presets_shared import from_dataset

# Options of the suite that differ from its defaults, by preset and variant.
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("offline_vision", "current"): dict(obs="vision", repeat=2),
}


def offline_of(config: Config, updates: int, model_updates: int) -> Config:
    """A preset of DreamerV2 for as many updates of the model, and then of actor and critic up to `updates`."""
    online = {field.name: getattr(config.dreamer, field.name) for field in fields(config.dreamer)}
    dreamer = DreamerConfig(**online | {"imag_length": 5}, offline=OfflineConfig(model_updates=model_updates))
    return replace(from_dataset(config, updates), agent="offline_dv2", dreamer=dreamer)


def offline() -> Config:
    """A dataset of sensors, for two CPU cores; ours."""
    config = offline_of(dreamer_v2.gym(), 12_000, 4000)
    # Few latents disagree by less, and rewards are small: with the weight of V-D4RL the penalty would outweigh them.
    offline = replace(config.dreamer.offline, lam=1.0)
    return replace(config, dreamer=replace(config.dreamer, discount=0.99, offline=offline))


def offline_vision() -> Config:
    """A dataset of 64 × 64 pictures, as V-D4RL's: model for 25,000 updates, actor and critic for 200,000."""
    config = offline_of(dreamer_v2.dmc_vision(), 225_000, 25_000)
    return replace(config, train=TrainConfig(batch_size=64, batch_length=50))


def debug() -> Config:
    """Everything tiny, to find out quickly whether it runs."""
    config = dreamer_v2.debug()
    small = offline_of(config, 40, 20)
    dreamer = replace(small.dreamer, imag_length=3, offline=replace(small.dreamer.offline, models=3))
    return replace(small, eval=config.eval, log=config.log, dreamer=dreamer)


PRESETS: dict[str, Callable[[], Config]] = {make.__name__: make for make in (offline, offline_vision, debug)}

# What a task starts from: nothing, since it learns from datasets.
SUITES: dict[str, str] = {}
