"""The table's type: every op's name, and what it returns."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from fastdream.ops.params import Dream, MDNDream, MDNStep, Step

Pair = tuple[Tensor, Tensor]


class Row(NamedTuple):
    """One line of the table."""

    op: str
    backend: str
    reason: str  # why nothing faster serves the op, or which calls of it another backend takes; empty if none


class Ops(NamedTuple):
    """Every op of the library, as functions of tensors; shapes and meaning in `fastdream.ops.reference`."""

    norm_act: Callable[..., Tensor]
    mlp: Callable[..., Tensor]
    mlps: Callable[..., tuple[Tensor, ...]]
    block_gru: Callable[..., Tensor]
    layernorm_gru: Callable[..., Tensor]
    gru: Callable[..., Tensor]
    categorical_sample: Callable[..., Pair]
    gumbel_sample: Callable[..., Pair]
    categorical_kl: Callable[..., Pair]
    latent_entropy: Callable[..., Tensor]
    gaussian_sample: Callable[..., Tensor]
    gaussian_kl: Callable[..., Pair]
    bounded_normal: Callable[..., Pair]
    symlog: Callable[..., Tensor]
    symexp: Callable[..., Tensor]
    twohot_loss: Callable[..., Tensor]
    twohot_mean: Callable[..., Tensor]
    critic_loss: Callable[..., Tensor]
    lambda_return: Callable[..., Tensor]
    percentiles: Callable[..., Pair]
    reinforce: Callable[..., tuple[Tensor, Tensor, tuple[Tensor, ...]]]
    conv_pool: Callable[..., Tensor]
    conv_spread: Callable[..., Tensor]
    image_loss: Callable[..., Tensor]
    observe_step: Callable[..., Step]
    imagine_step: Callable[..., Step]
    observe: Callable[..., Step]
    prior: Callable[..., Tensor]
    imagine: Callable[..., Dream]
    rollout: Callable[..., Step]
    policy_step: Callable[..., tuple[Step, Tensor]]
    lstm_mdn_step: Callable[..., MDNStep]
    lstm_mdn_dream: Callable[..., MDNDream]
    lstm_scan: Callable[..., Pair]
    summarize: Callable[..., Tensor]
    join_inputs: Callable[..., Tensor]
    vector_losses: Callable[..., tuple[Tensor, ...]]
    laprop_: Callable[..., Any]
    gather_sequences: Callable[..., Tensor]
    rows: tuple[Row, ...] = ()  # what `table` returns


OPS = tuple(name for name in Ops._fields if name != "rows")
