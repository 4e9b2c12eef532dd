"""Settings of DreamerV3: defaults of the official code, its model sizes, and the variant that was published."""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from fastdream.decoder import DecoderConfig
from fastdream.encoder import EncoderConfig
from fastdream.heads import HeadConfig, TwoHotConfig
from fastdream.normalize import NormConfig, SlowConfig
from fastdream.ops import Act, Norm
from fastdream.optim import OptConfig
from fastdream.policy import PolicyConfig
from fastdream.spaces import Spaces

Variant = Literal["current", "nature2024"]


@dataclass(frozen=True)
class RSSMConfig:
    """Recurrent state-space model."""

    deter: int = 8192
    """Width of the deterministic state."""
    hidden: int = 1024
    """Width of the layers around it."""
    stoch: int = 32
    """Number of categorical variables."""
    classes: int = 64
    """Classes of each."""
    blocks: int = 8
    """Blocks of the recurrent weights."""
    imglayers: int = 2
    """Hidden layers of the prior."""
    obslayers: int = 1
    """Hidden layers of the posterior."""
    dynlayers: int = 1
    """Hidden layers of the recurrent core."""
    unimix: float = 0.01
    """Share of the uniform distribution in the latents' probabilities."""
    absolute: bool = False
    """The posterior sees the observation alone, not the deterministic state."""
    outscale: float = 1.0
    """Scale of the initial weights of the logits."""
    logit_bias: bool = True
    """The layers that give the logits have a bias."""
    free_nats: float = 1.0
    """KL below this many nats a step is not reduced further."""
    norm: Norm = "rms"
    """Normalisation of hidden layers."""
    act: Act = "silu"
    """Activation of hidden layers."""


@dataclass(frozen=True)
class LossScales:
    """Weight of each loss."""

    rec: float = 1.0
    """Reconstruction, of every observation key."""
    rew: float = 1.0
    """Reward."""
    con: float = 1.0
    """Continuation of the episode."""
    dyn: float = 1.0
    """KL that trains the prior."""
    rep: float = 0.1
    """KL that trains the posterior."""
    policy: float = 1.0
    """Actor."""
    value: float = 1.0
    """Critic on imagined states."""
    repval: float = 0.3
    """Critic on replayed states; 0 leaves that loss out."""


@dataclass(frozen=True)
class Config:
    """DreamerV3 (Hafner et al. 2025), with the official defaults (size200m)."""

    dyn: RSSMConfig = RSSMConfig()
    enc: EncoderConfig = EncoderConfig()
    dec: DecoderConfig = DecoderConfig()
    rewhead: TwoHotConfig = TwoHotConfig(layers=1, outscale=0.0)
    conhead: HeadConfig = HeadConfig(layers=1, outscale=1.0)
    policy: PolicyConfig = PolicyConfig()
    value: TwoHotConfig = TwoHotConfig(layers=3, outscale=0.0)
    slowvalue: SlowConfig = SlowConfig()
    retnorm: NormConfig = NormConfig()
    valnorm: NormConfig = NormConfig(impl="none", limit=1e-8, debias=True)
    advnorm: NormConfig = NormConfig(impl="none", limit=1e-8, debias=True)
    loss_scales: LossScales = LossScales()
    opt: OptConfig = field(default_factory=OptConfig)
    horizon: int = 333
    """Discount horizon in steps: the discount is 1 - 1/horizon."""
    contdisc: bool = True
    """The continuation head learns the discount too, so that imagination has no explicit one."""
    lam: float = 0.95
    """λ of imagined returns."""
    replay_lam: float = 0.95
    """λ of replayed returns."""
    imag_length: int = 15
    """Steps imagined from each replayed state."""
    imag_last: int = 0
    """Imagine from the last so many states of each sequence only; 0 means from all."""
    imag_start: Literal["predicted", "data"] = "predicted"
    """Reward and continuation of the state where imagination starts: as predicted, or from the data."""
    actent: float = 3e-4
    """Weight of the actor's entropy."""
    slowreg: float = 1.0
    """Weight of the critic's loss to its slow copy, on imagined states."""
    replay_slowreg: float = 1.0
    """The same on replayed states."""
    slowtar: bool = False
    """Bootstrap from the slow critic."""
    ac_grads: bool = False
    """Let actor and critic losses reach the world model through the state where imagination starts."""
    reward_grad: bool = True
    """Let the reward loss reach the world model."""
    repval_grad: bool = True
    """Let the critic's loss on replayed states reach the world model."""
    replay_context: int = 1
    """Steps before each sequence whose stored latents start the scan; 0 carries the last state over instead."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of matrix products: auto is bfloat16 on CUDA and float32 on a CPU."""

    def __post_init__(self) -> None:
        if self.horizon < 2 or self.imag_length < 1 or self.imag_last < 0:
            raise ValueError(
                "need horizon >= 2, imag_length >= 1 and imag_last >= 0, got "
                f"{self.horizon}, {self.imag_length} and {self.imag_last}"
            )
        if min(self.lam, self.replay_lam) < 0 or max(self.lam, self.replay_lam) > 1:
            raise ValueError(f"need 0 <= lam, replay_lam <= 1, got {self.lam} and {self.replay_lam}")
        if self.imag_last == 1 and self.loss_scales.repval:
            raise ValueError(
                "imag_last=1: the critic's loss on replayed states needs two states of a sequence to imagine from; "
                "choose another number, or loss_scales.repval=0"
            )
        if self.replay_context not in (0, 1):
            raise ValueError(f"replay_context={self.replay_context} is not supported; use 0 or 1")


def loss_weights(config: Config, obs_space: Spaces) -> dict[str, float]:
    """Weight of every loss of an agent with these observations, by name; losses that are off are left out."""
    scale = config.loss_scales
    weights = {"rew": scale.rew, "con": scale.con, "dyn": scale.dyn, "rep": scale.rep}
    weights |= {"policy": scale.policy, "value": scale.value}
    if scale.repval:
        weights["repval"] = scale.repval
    if taken := sorted(weights.keys() & obs_space.keys()):
        raise ValueError(f"observation keys {taken} are names of losses; rename them in the environment")
    return dict.fromkeys(obs_space, scale.rec) | weights


# deter, hidden, classes, depth, units of the official presets; `tiny` serves vectors on a CPU, `debug` tests.
SIZES: dict[str, tuple[int, int, int, int, int]] = {
    "debug": (16, 8, 4, 2, 8),
    "tiny": (128, 64, 8, 4, 64),
    "1m": (512, 64, 4, 4, 64),
    "12m": (2048, 256, 16, 16, 256),
    "25m": (3072, 384, 24, 24, 384),
    "50m": (4096, 512, 32, 32, 512),
    "100m": (6144, 768, 48, 48, 768),
    "200m": (8192, 1024, 64, 64, 1024),
    "400m": (12288, 1536, 96, 96, 1536),
}


def size(config: Config, name: str) -> Config:
    """The configuration with one of the model sizes in SIZES; nothing but widths changes."""
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; choose from {', '.join(SIZES)}")
    deter, hidden, classes, depth, units = SIZES[name]
    stoch = {"debug": 4, "tiny": 16}.get(name, 32)
    return dataclasses.replace(
        config,
        dyn=dataclasses.replace(config.dyn, deter=deter, hidden=hidden, classes=classes, stoch=stoch),
        enc=dataclasses.replace(config.enc, depth=depth, units=units),
        dec=dataclasses.replace(config.dec, depth=depth, units=units),
        rewhead=dataclasses.replace(config.rewhead, units=units),
        conhead=dataclasses.replace(config.conhead, units=units),
        policy=dataclasses.replace(config.policy, units=units),
        value=dataclasses.replace(config.value, units=units),
    )


def variant(config: Config, name: Variant) -> Config:
    """The official code as it is today, or as it was when the published scores were made.

    current      five-by-five convolutions at full resolution with max-pooling; no unimix in the actor; biased
                 latent logits; imagination starts from predicted reward and continuation.
    nature2024   strided convolutions with mults 1, 2, 3, 4, 4 and a stride-1 first one; 1% unimix in discrete
                 actors; no bias before the latents; imagination starts from the data's reward and continuation.
    """
    if name == "current":
        return config
    if name != "nature2024":
        raise ValueError(f"unknown variant {name!r}; choose current or nature2024")
    mults = (1, 2, 3, 4, 4)
    return dataclasses.replace(
        config,
        dyn=dataclasses.replace(config.dyn, logit_bias=False),
        enc=dataclasses.replace(config.enc, mults=mults, outer=True, strided=True),
        dec=dataclasses.replace(config.dec, mults=mults, outer=True, strided=True),
        policy=dataclasses.replace(config.policy, unimix=0.01),
        imag_start="data",
    )
