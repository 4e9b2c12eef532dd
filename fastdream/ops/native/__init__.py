"""Ops compiled from csrc/: C++ on the CPU, CUDA on the GPU, under one `torch.library` name each."""

import torch

from fastdream.ops.native import resident
from fastdream.ops.native.categorical import categorical_sample, gumbel_sample
from fastdream.ops.native.dense import mlp, mlps
from fastdream.ops.native.dream import imagine_step, prior, rollout
from fastdream.ops.native.dream_gradient import imagine
from fastdream.ops.native.images import conv_pool, conv_spread, spread_norm_act
from fastdream.ops.native.kl import categorical_kl, gaussian_kl
from fastdream.ops.native.layers import norm_act
from fastdream.ops.native.library import available, build_record, cpu_kernels
from fastdream.ops.native.mdn import lstm_mdn_dream, lstm_mdn_step
from fastdream.ops.native.optim import laprop_
from fastdream.ops.native.pointwise import symexp, symlog
from fastdream.ops.native.policy import policy_step
from fastdream.ops.native.replay import gather_sequences
from fastdream.ops.native.returns import lambda_return
from fastdream.ops.native.scan import block_gru, gru, layernorm_gru, observe, observe_step
from fastdream.ops.native.twohot import critic_loss, twohot_loss, twohot_mean

ON_CUDA = ("lambda_return", "observe")  # the rest is for the CPU alone


def op_available(op: str, device: torch.device) -> str | None:
    """Why this op in particular cannot serve tensors on a device that `available` lets pass; None if it can."""
    return resident.unavailable(device) if op == "observe" and device.type == "cuda" else None


__all__ = [
    "ON_CUDA",
    "available",
    "block_gru",
    "build_record",
    "categorical_kl",
    "categorical_sample",
    "conv_pool",
    "conv_spread",
    "cpu_kernels",
    "critic_loss",
    "gather_sequences",
    "gaussian_kl",
    "gru",
    "gumbel_sample",
    "imagine",
    "imagine_step",
    "lambda_return",
    "laprop_",
    "layernorm_gru",
    "lstm_mdn_dream",
    "lstm_mdn_step",
    "mlp",
    "mlps",
    "norm_act",
    "observe",
    "observe_step",
    "op_available",
    "policy_step",
    "prior",
    "rollout",
    "spread_norm_act",
    "symexp",
    "symlog",
    "twohot_loss",
    "twohot_mean",
]
