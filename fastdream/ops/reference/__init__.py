"""Every op in plain PyTorch: the specification that all other backends are checked against.

Ops are pure (noise, masks and state are arguments), run in float64 for exactness checks, never wait for
the device and compile as one graph. x may be bfloat16: matrix products are then in bfloat16 and norms,
softmax, KL and returns in float32.
"""

from fastdream.ops.reference.actor import (
    actor,
    actor_branches,
    actor_mode,
    actor_outputs,
    actor_trunk,
    bounded_normal,
)
from fastdream.ops.reference.categorical import (
    categorical_entropy,
    categorical_kl,
    categorical_log_prob,
    categorical_sample,
    gumbel_sample,
    latent_entropy,
    unimix_log_probs,
)
from fastdream.ops.reference.cells import block_gru, gru, layernorm_gru
from fastdream.ops.reference.critic import critic_loss
from fastdream.ops.reference.gaussian import gaussian_kl, gaussian_sample, gaussian_std, trunc_normal_sample
from fastdream.ops.reference.images import conv_pool, conv_spread, image_loss, spread_norm_act
from fastdream.ops.reference.layers import dense, linear, mlp, mlp_outputs, mlps, norm_act
from fastdream.ops.reference.mdn import (
    controlled,
    lstm_gates,
    lstm_mdn_dream,
    lstm_mdn_step,
    lstm_scan,
    mdn_sample,
    mdn_split,
)
from fastdream.ops.reference.optim import laprop_
from fastdream.ops.reference.order import percentiles
from fastdream.ops.reference.policy import policy_step
from fastdream.ops.reference.reinforce import normal_entropy, normal_log_prob, reinforce
from fastdream.ops.reference.replay import gather_sequences
from fastdream.ops.reference.returns import lambda_return
from fastdream.ops.reference.scan import imagine, imagine_step, observe, observe_step, prior, rollout
from fastdream.ops.reference.summary import summarize
from fastdream.ops.reference.twohot import symexp, symlog, twohot_bins, twohot_loss, twohot_mean
from fastdream.ops.reference.vectors import join_inputs, vector_losses

__all__ = [
    "actor",
    "actor_branches",
    "actor_mode",
    "actor_outputs",
    "actor_trunk",
    "block_gru",
    "bounded_normal",
    "categorical_entropy",
    "categorical_kl",
    "categorical_log_prob",
    "categorical_sample",
    "critic_loss",
    "dense",
    "gather_sequences",
    "gaussian_kl",
    "gaussian_sample",
    "gaussian_std",
    "gru",
    "image_loss",
    "gumbel_sample",
    "imagine",
    "imagine_step",
    "join_inputs",
    "lambda_return",
    "latent_entropy",
    "laprop_",
    "layernorm_gru",
    "linear",
    "lstm_gates",
    "lstm_mdn_dream",
    "lstm_mdn_step",
    "lstm_scan",
    "mdn_sample",
    "mdn_split",
    "mlp",
    "mlp_outputs",
    "mlps",
    "norm_act",
    "normal_entropy",
    "normal_log_prob",
    "observe",
    "observe_step",
    "percentiles",
    "policy_step",
    "controlled",
    "conv_pool",
    "conv_spread",
    "prior",
    "reinforce",
    "rollout",
    "spread_norm_act",
    "summarize",
    "symexp",
    "symlog",
    "trunc_normal_sample",
    "twohot_bins",
    "twohot_loss",
    "twohot_mean",
    "unimix_log_probs",
    "vector_losses",
]
