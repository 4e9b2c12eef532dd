"""Settings of DreamerV2: defaults of the official code, and its model sizes."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from fastdream.adam import AdamConfig
from fastdream.annealing import Annealed
from fastdream.normalize import SlowConfig
from fastdream.ops import Act, Norm
from fastdream.spaces import Spaces
from fastdream.strided import StridedDecoderConfig, StridedEncoderConfig

WD = 1e-6


@dataclass(frozen=True)
class RSSMConfig:
    """Recurrent state-space model."""

    deter: int = 1024
    """Width of the deterministic state."""
    hidden: int = 1024
    """Width of the layers around it."""
    stoch: int = 32
    """Number of stochastic variables."""
    classes: int = 32
    """Classes of each; 0 makes them Gaussian."""
    min_std: float = 0.1
    """Smallest standard deviation of Gaussian variables."""
    norm: Norm = "none"
    """Normalisation of hidden layers; the recurrent core is always layer-normed."""
    act: Act = "elu"
    """Activation of hidden layers."""


@dataclass(frozen=True)
class NetConfig:
    """A net of dense layers and a linear output."""

    layers: int = 4
    """Dense layers before the output."""
    units: int = 400
    """Width of the dense layers."""
    norm: Norm = "none"
    """Normalisation of every layer."""
    act: Act = "elu"
    """Activation of every layer."""


@dataclass(frozen=True)
class KLConfig:
    """KL between posterior and prior."""

    balance: float = 0.8
    """Share of its gradient that trains the prior; the posterior gets the rest."""
    free: float = 0.0
    """KL below this many nats is not reduced further."""
    clamp: Literal["mean", "step"] = "mean"
    """What those nats are of: the mean over the batch, or every step."""

    def __post_init__(self) -> None:
        if not 0 <= self.balance <= 1 or self.free < 0:
            raise ValueError(f"need kl balance in [0, 1] and free >= 0, got {self.balance} and {self.free}")


@dataclass(frozen=True)
class LossScales:
    """Weight of each loss of the world model."""

    rec: float = 1.0
    """Reconstruction, of every observation key."""
    rew: float = 1.0
    """Reward."""
    dis: float = 1.0
    """Discount."""
    kl: float = 1.0
    """KL."""


@dataclass(frozen=True)
class ExploreConfig:
    """Plan2Explore (Sekar et al. 2020): a second actor and critic that seek what an ensemble disagrees about."""

    behavior: Literal["greedy", "plan2explore"] = "greedy"
    """Who acts in training: the actor of the task, or the one that explores."""
    until: int = 0
    """Updates after which the actor of the task takes over; 0 never."""
    models: int = 10
    """Nets in the ensemble."""
    net: NetConfig = NetConfig()
    """Each of them."""
    opt: AdamConfig = AdamConfig(lr=3e-4, wd=WD)
    """Their optimiser."""
    intrinsic: float = 1.0
    """Weight of the disagreement in the reward of the actor that explores."""
    extrinsic: float = 0.0
    """Weight of the task's reward in it."""

    def __post_init__(self) -> None:
        if self.models < 2 or self.until < 0:
            raise ValueError(f"need at least 2 models and until >= 0, got {self.models} and {self.until}")


Head = Literal["decoder", "reward", "discount"]


@dataclass(frozen=True)
class Config:
    """DreamerV2 (Hafner et al. 2021), with the official defaults."""

    dyn: RSSMConfig = RSSMConfig()
    enc: StridedEncoderConfig = StridedEncoderConfig()
    dec: StridedDecoderConfig = StridedDecoderConfig()
    rewhead: NetConfig = NetConfig()
    dishead: NetConfig = NetConfig()
    policy: NetConfig = NetConfig()
    value: NetConfig = NetConfig()
    slowvalue: SlowConfig = SlowConfig(rate=1.0, every=100)
    kl: KLConfig = KLConfig()
    loss_scales: LossScales = LossScales()
    model_opt: AdamConfig = AdamConfig(lr=1e-4, wd=WD)
    policy_opt: AdamConfig = AdamConfig(lr=8e-5, wd=WD)
    value_opt: AdamConfig = AdamConfig(lr=2e-4, wd=WD)
    explore: ExploreConfig = field(default_factory=ExploreConfig)
    discount: float = 0.99
    """Discount of returns: the target of the discount head, or constant without one."""
    pred_discount: bool = True
    """Learn a discount head, whose target is 0 where an episode ends."""
    grad_heads: tuple[Head, ...] = ("decoder", "reward", "discount")
    """Heads whose losses reach the world model."""
    reward: Literal["tanh", "identity"] = "tanh"
    """What rewards are passed through before they are learned."""
    lam: float = 0.95
    """λ of imagined returns."""
    imag_length: int = 15
    """Steps imagined from each replayed state."""
    actor_grad: Literal["auto", "reinforce", "dynamics", "both"] = "auto"
    """How the actor learns: by REINFORCE, through the dynamics, or by both; auto takes REINFORCE if any action is
    discrete, and the dynamics otherwise."""
    actor_mix: str = "0.1"
    """Share of the dynamics' gradient where both are used; a number or a schedule over updates."""
    actent: str = "2e-3"
    """Weight of the actor's entropy; a number or a schedule over updates, such as linear(3e-3,3e-4,1e6)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of matrix products: auto is bfloat16 on CUDA and float32 on a CPU."""

    def __post_init__(self) -> None:
        if self.imag_length < 2:
            raise ValueError(
                f"imag_length={self.imag_length}: the actor learns from 2 imagined steps at least"
            )
        if not 0 < self.discount < 1 or not 0 <= self.lam <= 1:
            raise ValueError(f"need 0 < discount < 1 and 0 <= lam <= 1, got {self.discount} and {self.lam}")
        for text in (self.actor_mix, self.actent):
            Annealed(text)


def loss_weights(config: Config, obs_space: Spaces) -> dict[str, float]:
    """Weight of every loss of the world model with these observations, by name."""
    scale = config.loss_scales
    weights = {"rew": scale.rew, "kl": scale.kl}
    if config.pred_discount:
        weights["dis"] = scale.dis
    if taken := sorted({*weights, "dis", "policy", "value"} & obs_space.keys()):
        raise ValueError(f"observation keys {taken} are names of losses; rename them in the environment")
    return dict.fromkeys(obs_space, scale.rec) | weights


# deter and hidden, stoch, classes, depth, units. The last three are those of the presets for DeepMind Control, Atari
# and Crafter, by their numbers of parameters there; `tiny` serves vectors on a CPU, `debug` tests.
SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "debug": (16, 4, 4, 2, 8),
    "tiny": (128, 16, 8, 4, 64),
    "15m": (200, 32, 32, 48, 400),
    "22m": (600, 32, 32, 48, 400),
    "31m": (1024, 32, 32, 48, 400),
}


def size(config: Config, name: str) -> Config:
    """The configuration with one of the model sizes in SIZES; nothing but widths changes."""
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; choose from {', '.join(SIZES)}")
    deter, stoch, classes, depth, units = SIZES[name]
    nets = {key: dataclasses.replace(getattr(config, key), units=units) for key in ("enc", "dec")}
    nets = {key: dataclasses.replace(net, depth=depth) for key, net in nets.items()}
    for key in ("rewhead", "dishead", "policy", "value"):
        nets[key] = dataclasses.replace(getattr(config, key), units=units)
    ensemble = dataclasses.replace(config.explore.net, units=units)
    return dataclasses.replace(
        config,
        dyn=dataclasses.replace(config.dyn, deter=deter, hidden=deter, stoch=stoch, classes=classes),
        explore=dataclasses.replace(config.explore, net=ensemble),
        **nets,
    )
