"""Which calls `auto` gives to Triton and to the single launch on a GPU: those that they compute."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastdream.ops.auto_cpu import Rule, all_dense
from fastdream.ops.native import dense, resident
from fastdream.ops.native.actor import MAX_HEADS
from fastdream.ops.native.params import MAX_LAYERS
from fastdream.ops.params import MDNRNN, RSSM, Actor, Feat, Layers, any_gradient, tensors
from fastdream.ops.triton import scan_limits
from fastdream.ops.triton.config import WIDEST
from fastdream.ops.triton.limits import (
    ACTIONS,
    CLASSES,
    MIXTURES,
    unserved,
    unserved_actor,
    unserved_learned,
    unserved_memory,
)


def _narrow(*args: Any, **kwargs: Any) -> bool:
    x = next(tensors((args, *kwargs.values())))
    return x.dim() > 0 and 0 < x.shape[-1] <= WIDEST


def _pooled(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> bool:
    return 0 < len(weight) <= WIDEST


def _spread(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> bool:
    return 0 < 4 * weight.shape[1] <= WIDEST


def _no_wider(x: Tensor | Feat, nets: Sequence[Layers]) -> bool:
    return all_dense(x, nets) and all(len(layer.weight) <= WIDEST for net in nets for layer in net)


def _no_wider_one(x: Tensor | Feat, layers: Layers) -> bool:
    return _no_wider(x, (layers,))


def _narrow_prior(rssm: RSSM, deter: Tensor) -> bool:
    return _no_wider_one(deter, rssm.prior)


def _all_narrow(outs: Sequence[tuple[Tensor, ...]], *args: Any, **kwargs: Any) -> bool:
    return all(0 < out[0].shape[-1] <= WIDEST for out in outs)


def _scanned(rssm: RSSM, *args: Any, **kwargs: Any) -> bool:
    return scan_limits.problem(rssm) is None


def _plain(parts: Sequence[Tensor], classes: Sequence[int], *args: Any, **kwargs: Any) -> bool:
    thin = all(x.shape[-1] * max(count, 1) <= WIDEST for x, count in zip(parts, classes, strict=True))
    return thin and not any(x.requires_grad or x.dtype == torch.float64 for x in parts)


def _all_thin(outs: Sequence[Tensor], *args: Any, **kwargs: Any) -> bool:
    return all(x.shape[-1] <= WIDEST for x in outs)


def _full(params: list[Tensor], *args: Any, **kwargs: Any) -> bool:
    return params[0].dtype == torch.float32


def _stepped(rssm: RSSM, *args: Any, **kwargs: Any) -> bool:
    differentiated = torch.is_grad_enabled() and any_gradient(rssm, *args, *kwargs.values())
    return not differentiated and not unserved(rssm, rssm.prior)


def _dreamt(rssm: RSSM, actor: Actor, *args: Any, **kwargs: Any) -> bool:
    without = not unserved_actor(actor) and _stepped(rssm, actor, *args, **kwargs)
    return without or not unserved_learned(rssm, actor)


def _acted(encoder: Layers, rssm: RSSM, actor: Actor, *args: Any, **kwargs: Any) -> bool:
    served = not unserved(rssm, rssm.post) and not unserved_actor(actor)
    return served and not rssm.absolute and len(encoder) <= MAX_LAYERS


def _remembered(model: MDNRNN, *args: Any, **kwargs: Any) -> bool:
    return not unserved_memory(model)


def _resident(rssm: RSSM, deter: Tensor, stoch: Tensor, action: Tensor, *args: Any, **kwargs: Any) -> bool:
    return not resident.why_not(rssm, deter.dtype, deter.shape[0], deter.device, action.shape[1])


# Of the sizes that a single launch observes, those at which it took less time than Triton's on an H200.
FASTER_AT_ONCE = ("1m", "12m")


def faster_at_once(rssm: RSSM, deter: Tensor, *args: Any, **kwargs: Any) -> bool:
    return resident.size_of(rssm) in FASTER_AT_ONCE and _resident(rssm, deter, *args, **kwargs)


_ON_CHIP = ", ".join(name for name in resident.SHAPES if name.endswith("m"))
CUDA_RULES = {"observe": Rule(1, _resident, f"all but the block GRU at sizes {_ON_CHIP}")}


_WIDE = f"rows of over {WIDEST}"
_CHAINS = f"block layers, more than {dense.MAX_LAYERS} layers, {_WIDE}"
_MODELS = f"nets deeper than {MAX_LAYERS}"
_ACTORS = f"actors of no layer, over {MAX_HEADS} heads"
_PRIORS = f"{_MODELS}, priors of one layer, over {CLASSES} classes"
_STEPPED = f"{_PRIORS}, gradients"
_MEMORIES = f"over {MIXTURES} mixtures, actions of over {ACTIONS} numbers"

TRITON_RULES: dict[str, Rule] = {
    "norm_act": Rule(serves=_narrow, but=_WIDE),
    "conv_pool": Rule(1, _pooled, but=f"over {WIDEST} channels"),
    "conv_spread": Rule(serves=_spread, but=f"over {WIDEST // 4} channels after it"),
    "image_loss": Rule(),
    "mlp": Rule(serves=_no_wider_one, but=_CHAINS),
    "mlps": Rule(serves=_no_wider, but=_CHAINS),
    "prior": Rule(1, _narrow_prior, _CHAINS),
    "observe": Rule(1, _scanned, scan_limits.LIMITS),
    "observe_step": Rule(1, _scanned, scan_limits.LIMITS),
    "categorical_sample": Rule(serves=_narrow, but=_WIDE),
    "gumbel_sample": Rule(serves=_narrow, but=_WIDE),
    "categorical_kl": Rule(serves=_narrow, but=_WIDE),
    "latent_entropy": Rule(serves=_narrow, but=_WIDE),
    "gaussian_kl": Rule(serves=_narrow, but=_WIDE),
    "bounded_normal": Rule(),
    "symlog": Rule(),
    "symexp": Rule(),
    "twohot_loss": Rule(serves=_narrow, but=_WIDE),
    "twohot_mean": Rule(serves=_narrow, but=_WIDE),
    "critic_loss": Rule(serves=_narrow, but=_WIDE),
    "lambda_return": Rule(),
    "percentiles": Rule(),
    "reinforce": Rule(1, _all_narrow, _WIDE),
    "summarize": Rule(),
    "join_inputs": Rule(None, _plain, f"gradients, double precision, {_WIDE}"),
    "vector_losses": Rule(serves=_all_thin, but=_WIDE),
    "laprop_": Rule(serves=_full, but="half precision"),
    "imagine_step": Rule(1, _stepped, _STEPPED),
    "imagine": Rule(
        2, _dreamt, f"{_PRIORS}, {_ACTORS}, unusual heads, gradients through features that an actor sees"
    ),
    "rollout": Rule(1, _stepped, _STEPPED),
    "policy_step": Rule(
        3, _acted, f"{_MODELS}, {_ACTORS}, posteriors without deter or of one layer, unusual heads"
    ),
    "lstm_mdn_step": Rule(1, _remembered, _MEMORIES),
    "lstm_mdn_dream": Rule(2, _remembered, _MEMORIES),
    "lstm_scan": Rule(),
}
