"""Settings of DreamerV1: defaults of the official code, and its model sizes."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from fastdream.adam import AdamConfig
from fastdream.annealing import Annealed
from fastdream.ops import Act
from fastdream.spaces import Spaces
from fastdream.strided import StridedDecoderConfig, StridedEncoderConfig

EPS = 1e-7  # of Adam


@dataclass(frozen=True)
class RSSMConfig:
    """Recurrent state-space model."""

    deter: int = 200
    """Width of the deterministic state."""
    hidden: int = 200
    """Width of the layers around it."""
    stoch: int = 30
    """Number of Gaussian variables."""
    min_std: float = 0.1
    """Smallest standard deviation of them."""
    act: Act = "elu"
    """Activation of hidden layers."""
    reset_after: bool = True
    """Multiply the GRU's reset gate to the recurrent product (TensorFlow 2), not to the state before it (PlaNet)."""


@dataclass(frozen=True)
class NetConfig:
    """A net of dense layers and a linear output."""

    layers: int = 3
    """Dense layers before the output."""
    units: int = 400
    """Width of the dense layers."""
    act: Act = "elu"
    """Activation of every layer."""


@dataclass(frozen=True)
class PolicyConfig(NetConfig):
    """The actor."""

    layers: int = 4
    """Dense layers before the output."""
    init_std: float = 5.0
    """Standard deviation of continuous actions at the start, before the tanh."""
    min_std: float = 1e-4
    """The smallest one."""

    def __post_init__(self) -> None:
        if self.init_std <= 0 or self.min_std <= 0:
            raise ValueError(f"need init_std and min_std > 0, got {self.init_std} and {self.min_std}")


@dataclass(frozen=True)
class Config:
    """DreamerV1 (Hafner et al. 2020), with the official defaults."""

    dyn: RSSMConfig = RSSMConfig()
    enc: StridedEncoderConfig = StridedEncoderConfig(depth=32, layers=3, units=300, conv_act="relu")
    dec: StridedDecoderConfig = StridedDecoderConfig(depth=32, layers=3, conv_act="relu")
    rewhead: NetConfig = NetConfig(layers=2)
    pconthead: NetConfig = NetConfig()
    policy: PolicyConfig = PolicyConfig()
    value: NetConfig = NetConfig()
    model_opt: AdamConfig = AdamConfig(lr=6e-4, eps=EPS)
    policy_opt: AdamConfig = AdamConfig(lr=8e-5, eps=EPS)
    value_opt: AdamConfig = AdamConfig(lr=8e-5, eps=EPS)
    kl_scale: float = 1.0
    """Weight of the KL between posterior and prior."""
    free_nats: float = 3.0
    """Mean KL below this many nats is not reduced further."""
    pcont: bool = False
    """Learn the probability that an episode continues, times the discount, which then is all discount there is."""
    pcont_scale: float = 10.0
    """Weight of its loss."""
    reward: Literal["identity", "tanh"] = "identity"
    """What rewards are passed through before they are learned."""
    discount: float = 0.99
    """Discount of returns."""
    lam: float = 0.95
    """λ of imagined returns."""
    imag_length: int = 15
    """Steps imagined from each replayed state."""
    discrete: Literal["categorical", "score"] = "categorical"
    """Gradient of discrete actions: of all probabilities (straight-through, as in TensorFlow 2), or of the log
    probability of the one that was drawn (as in TensorFlow 1)."""
    expl: str = "0.3"
    """Exploration in training: standard deviation of noise on continuous actions, probability of a random discrete
    one; a number or a schedule over updates, such as linear(0.4,0.25,75000)."""
    expl_eval: float = 0.0
    """The same where most likely actions are asked for, as in evaluation."""
    mode_draws: int = 100
    """Draws of which the most likely one is the most likely action."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of matrix products: auto is bfloat16 on CUDA and float32 on a CPU."""

    def __post_init__(self) -> None:
        if self.imag_length < 2 or self.mode_draws < 1:
            raise ValueError(
                f"need imag_length >= 2 and mode_draws >= 1, got {self.imag_length} and {self.mode_draws}"
            )
        if not 0 < self.discount < 1 or not 0 <= self.lam <= 1 or self.free_nats < 0:
            raise ValueError(
                "need 0 < discount < 1, 0 <= lam <= 1 and free_nats >= 0, got "
                f"{self.discount}, {self.lam} and {self.free_nats}"
            )
        if self.expl_eval < 0:
            raise ValueError(f"expl_eval={self.expl_eval} must not be negative")
        Annealed(self.expl)


def loss_weights(config: Config, obs_space: Spaces) -> dict[str, float]:
    """Weight of every loss of the world model with these observations, by name."""
    weights = {"rew": 1.0, "kl": config.kl_scale}
    if config.pcont:
        weights["pcont"] = config.pcont_scale
    if taken := sorted({*weights, "pcont", "policy", "value"} & obs_space.keys()):
        raise ValueError(f"observation keys {taken} are names of losses; rename them in the environment")
    return dict.fromkeys(obs_space, 1.0) | weights


# deter and hidden, stoch, depth, units. 6m is the paper's; `tiny` serves vectors on a CPU, `debug` tests.
SIZES: dict[str, tuple[int, int, int, int]] = {
    "debug": (16, 4, 2, 8),
    "tiny": (96, 16, 4, 64),
    "6m": (200, 30, 32, 400),
}


def size(config: Config, name: str) -> Config:
    """The configuration with one of the model sizes in SIZES; nothing but widths changes."""
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; choose from {', '.join(SIZES)}")
    deter, stoch, depth, units = SIZES[name]
    nets = {
        key: dataclasses.replace(getattr(config, key), units=units)
        for key in ("rewhead", "pconthead", "policy", "value")
    }
    return dataclasses.replace(
        config,
        dyn=dataclasses.replace(config.dyn, deter=deter, hidden=deter, stoch=stoch),
        enc=dataclasses.replace(config.enc, depth=depth, units=min(units, config.enc.units)),
        dec=dataclasses.replace(config.dec, depth=depth, units=units),
        **nets,
    )
