"""Settings of Offline DV2: DreamerV2's, and what a dataset asks for beside them."""

from dataclasses import dataclass, field
from typing import Literal

from fastdream.agents import dreamer_v2_config
from fastdream.agents.dreamer_v2_config import SIZES, size

__all__ = ["SIZES", "Config", "OfflineConfig", "size"]


@dataclass(frozen=True)
class OfflineConfig:
    """Learning from a dataset alone (Lu et al. 2023)."""

    models: int = 7
    """Priors, of which each step of training and of dreams draws one."""
    penalty: Literal["disagreement", "log_prob", "mixture", "none"] = "disagreement"
    """What is taken off the rewards of dreams: how far the priors are from their mean; how differently likely they hold
    what was drawn; the standard deviation of their mixture; or nothing."""
    lam: float = 10.0
    """Weight of the penalty."""
    tune: float = 0.0
    """Adapt that weight, from 1 on, so that what is taken off is this much on average; 0 leaves it as it is."""
    tune_lr: float = 3e-4
    """Learning rate of the logarithm of the weight."""
    model_updates: int = 25_000
    """Updates in which the world model learns, alone; from then on it stays as it is, and actor and critic learn. 0:
    all of them learn in every update."""

    def __post_init__(self) -> None:
        if self.models < 2 or self.lam < 0 or self.tune < 0 or self.tune_lr <= 0 or self.model_updates < 0:
            raise ValueError(f"need models >= 2, tune_lr > 0 and nothing negative, got {self}")
        if self.tune and self.penalty == "none":
            raise ValueError(
                f"tune={self.tune} adapts the weight of a penalty, and penalty is none: choose one"
            )


@dataclass(frozen=True)
class Config(dreamer_v2_config.Config):
    """Offline DV2 (Lu et al. 2023): DreamerV2 with short dreams, an ensemble of priors, and a penalty."""

    imag_length: int = 5
    """Steps imagined from each state of the dataset."""
    offline: OfflineConfig = field(default_factory=OfflineConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.explore.behavior != "greedy":
            raise ValueError(f"explore.behavior={self.explore.behavior}: a dataset leaves nothing to explore")
