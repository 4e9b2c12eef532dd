"""Ops as Triton kernels, for CUDA devices. Triton is imported when the first of them is taken.

Tensors are bfloat16, float16 or float32; arithmetic inside a kernel is in float32. On a CPU the kernels run in Triton's
interpreter alone, for tests: TRITON_INTERPRET=1 in the environment before Python starts.
"""

import os
from importlib import import_module, metadata
from typing import Any

import torch

from fastdream.ops.native.library import cuda_problem

OLDEST = (3, 6)  # of Triton, the version that comes with torch 2.11

# Which file of this package has the op. No file is named like an op: importing it would hide the function.
_FILES = {
    "norm_act": "layers",
    "conv_pool": "images",
    "conv_spread": "spread",
    "image_loss": "pixels",
    "mlp": "dense",
    "mlps": "dense",
    "prior": "dense",
    "observe": "scan",
    "observe_step": "scan",
    "categorical_sample": "categorical",
    "gumbel_sample": "gumbel",
    "categorical_kl": "kl",
    "latent_entropy": "entropy",
    "gaussian_kl": "gaussian",
    "bounded_normal": "normals",
    "symlog": "pointwise",
    "symexp": "pointwise",
    "twohot_loss": "twohot",
    "twohot_mean": "twohot_means",
    "critic_loss": "critic",
    "lambda_return": "returns",
    "percentiles": "order",
    "reinforce": "policy_loss",
    "summarize": "summary",
    "join_inputs": "vectors",
    "vector_losses": "vectors",
    "laprop_": "optim",
    "gather_sequences": "replay",
    "imagine_step": "dream",
    "imagine": "dream_gradient",
    "rollout": "dream",
    "policy_step": "policy",
    "lstm_mdn_step": "memory",
    "lstm_mdn_dream": "memory",
    "lstm_scan": "sequences",
}
OPS = tuple(_FILES)


def available(device: torch.device) -> str | None:
    """Why these ops cannot serve tensors on `device`, with the remedy; None if they can."""
    if problem := missing():
        return problem
    if device.type == "cpu":
        return (
            None
            if interpreted()
            else "kernels are for CUDA devices; TRITON_INTERPRET=1 interprets them on a CPU"
        )
    return cuda_problem(device) if device.type == "cuda" else f"no kernels for {device.type}"


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing() -> str | None:
    """Why Triton itself cannot be used, with the remedy; None if it can."""
    remedy = f"`pip install 'triton>={OLDEST[0]}.{OLDEST[1]}'` on Linux (x86-64, aarch64) adds it"
    try:
        version = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return f"Triton is not installed; {remedy}"
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return f"Triton {version} is too old; {remedy}"
    return None


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
