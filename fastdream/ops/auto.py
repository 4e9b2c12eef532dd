"""Which calls of an op "auto" gives to the reference, although the faster backend of that device has the op.

Those that it does not compute, for which it raises ValueError where it is asked for by name, and those at which it
loses: a few numbers, for which telling torch of a call takes longer than the arithmetic.
"""

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native import dense, resident
from fastdream.ops.native.actor import HEADS, MAX_HEADS
from fastdream.ops.native.params import MAX_LAYERS
from fastdream.ops.params import GRU, MDNRNN, RSSM, Actor, BlockGRU, Categorical, Feat, Layers
from fastdream.ops.triton import scan_limits
from fastdream.ops.triton.config import WIDEST
from fastdream.ops.triton.limits import ACTIONS, MIXTURES, unserved, unserved_actor, unserved_memory

# Elements of the tensor that a rule looks at from which native takes less time than the reference, where it is not
# every number of them. `python benchmarks/crossover.py` measures and prints this table.
LEAST: dict[str, int] = {"layernorm_gru": 51_200, "gru": 12_800, "norm_act": 8192}
# Channels of the image that `conv_spread` makes from which it does: with 8 of them half a vector is empty.
LEAST_CHANNELS = 32

# Dreams from which native's gradient through them takes less time than the reference's: with a plain GRU of 96 or 200
# units it lost at up to 480 of them and won at 960 and more; with a LayerNorm GRU it won at 256 and more.
LEAST_LEARNED = 768


class Rule(NamedTuple):
    """The calls of one op that are the faster backend's."""

    at: int = 0  # position of the argument whose dtype and size decide: a tensor, or the first of several
    serves: Callable[..., bool] = lambda *args, **kwargs: True  # takes the op's arguments
    but: str = ""  # what `serves` turns down


def _dense(x: Tensor | Feat, layers: Layers) -> bool:
    return len(layers) <= dense.MAX_LAYERS and all(layer.weight.dim() == 2 for layer in layers)


def _all_dense(x: Tensor | Feat, nets: Sequence[Layers]) -> bool:
    return all(_dense(x, layers) for layers in nets)


def _broad(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> bool:
    return weight.shape[1] >= LEAST_CHANNELS


def _unmixed(x: Tensor, weight: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> bool:
    return (dtype or x.dtype) == weight.dtype


def _discrete(rssm: RSSM, *args: Any, **kwargs: Any) -> bool:
    hidden = rssm.core.hidden if isinstance(rssm.core, BlockGRU) else ()
    shallow = max(len(rssm.prior), len(rssm.post), len(hidden)) <= MAX_LAYERS
    return shallow and isinstance(rssm.latent, Categorical) and not isinstance(rssm.core, GRU)


def _observed(rssm: RSSM, *args: Any, **kwargs: Any) -> bool:
    hidden = rssm.core.hidden if isinstance(rssm.core, BlockGRU) else ()
    return max(len(rssm.post), len(hidden)) <= MAX_LAYERS


def _acts(actor: Actor) -> bool:
    known = all(head.kind in HEADS for head in actor.heads)
    return known and 0 < len(actor.layers) <= MAX_LAYERS and len(actor.heads) <= MAX_HEADS


# The model that was last found to act. To look at it anew takes a fiftieth of what a small one takes to act.
_ACTING: list[Any] = [None, None, None]


def _acting(encoder: Layers, rssm: RSSM, actor: Actor, *args: Any, **kwargs: Any) -> bool:
    known, *others = _ACTING
    if known is encoder and others[0] is rssm and others[1] is actor:
        return True
    served = len(encoder) <= MAX_LAYERS and _discrete(rssm) and _acts(actor)
    if served:
        _ACTING[:] = encoder, rssm, actor
    return served


def _forward(rssm: RSSM, *args: Any, **kwargs: Any) -> bool:
    return _discrete(rssm) and not (torch.is_grad_enabled() and _any_gradient(rssm, *args, *kwargs.values()))


def _dreaming(rssm: RSSM, actor: Actor, deter: Tensor, *args: Any, **kwargs: Any) -> bool:
    if not torch.is_grad_enabled() or not _any_gradient(rssm, actor, deter, *args, *kwargs.values()):
        return _acts(actor) and _discrete(rssm)
    hidden = rssm.core.hidden if isinstance(rssm.core, BlockGRU) else ()
    nets = actor.layers, *(head.out for head in actor.heads)
    shallow = max(len(rssm.prior), len(hidden)) <= MAX_LAYERS and all(_dense(deter, net) for net in nets)
    return shallow and len(deter) >= LEAST_LEARNED


def _any_gradient(*tree: Any) -> bool:
    return any(x.requires_grad for x in _tensors(tree))


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for item in tree:
            yield from _tensors(item)


_DEEP = f"nets deeper than {MAX_LAYERS}"
_MODELS = f"Gaussian latents, the plain GRU, {_DEEP}"
_ACTORS = f"{_MODELS}, actors of no layer, over {MAX_HEADS} heads, truncated or squashed normals"
_FORWARD = f"{_MODELS}, gradients"

RULES: dict[str, Rule] = {
    "norm_act": Rule(),
    "conv_pool": Rule(1, _unmixed, "mixed precision"),
    "conv_spread": Rule(serves=_broad, but=f"fewer than {LEAST_CHANNELS} channels"),
    "mlp": Rule(serves=_dense, but=f"block layers, more than {dense.MAX_LAYERS}"),
    "mlps": Rule(serves=_all_dense, but=f"block layers, more than {dense.MAX_LAYERS}"),
    "block_gru": Rule(at=1),
    "layernorm_gru": Rule(at=1),
    "gru": Rule(at=1),
    "categorical_sample": Rule(),
    "gumbel_sample": Rule(),
    "categorical_kl": Rule(),
    "gaussian_kl": Rule(),
    "symlog": Rule(),
    "symexp": Rule(),
    "twohot_loss": Rule(),
    "twohot_mean": Rule(),
    "critic_loss": Rule(),
    "observe_step": Rule(1, _observed, _DEEP),
    "observe": Rule(1, _observed, _DEEP),
    "prior": Rule(1, _discrete, _MODELS),
    "imagine_step": Rule(1, _forward, _FORWARD),
    "imagine": Rule(
        2, _dreaming, f"with gradients {_DEEP}, fewer than {LEAST_LEARNED} rows; without {_ACTORS}"
    ),
    "rollout": Rule(1, _forward, _FORWARD),
    "policy_step": Rule(3, _acting, _ACTORS),
    "lstm_mdn_step": Rule(at=1),
    "lstm_mdn_dream": Rule(at=2),
    "laprop_": Rule(),
}


def _narrow(*args: Any, **kwargs: Any) -> bool:
    x = next(_tensors((args, *kwargs.values())))
    return x.dim() > 0 and 0 < x.shape[-1] <= WIDEST


def _pooled(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> bool:
    return 0 < len(weight) <= WIDEST


def _spread(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> bool:
    return 0 < 4 * weight.shape[1] <= WIDEST


def _no_wider(x: Tensor | Feat, nets: Sequence[Layers]) -> bool:
    return _all_dense(x, nets) and all(len(layer.weight) <= WIDEST for net in nets for layer in net)


def _no_wider_one(x: Tensor | Feat, layers: Layers) -> bool:
    return _no_wider(x, (layers,))


def _narrow_prior(rssm: RSSM, deter: Tensor) -> bool:
    return _no_wider_one(deter, rssm.prior)


def _all_narrow(outs: Sequence[tuple[Tensor, ...]], *args: Any, **kwargs: Any) -> bool:
    return all(0 < out[0].shape[-1] <= WIDEST for out in outs)


def _scanned(rssm: RSSM, *args: Any, **kwargs: Any) -> bool:
    return scan_limits.problem(rssm) is None


def _full(params: list[Tensor], *args: Any, **kwargs: Any) -> bool:
    return params[0].dtype == torch.float32


def _stepped(rssm: RSSM, *args: Any, **kwargs: Any) -> bool:
    return _forward(rssm, *args, **kwargs) and not unserved(rssm, rssm.prior)


def _dreamt(rssm: RSSM, actor: Actor, *args: Any, **kwargs: Any) -> bool:
    return _acts(actor) and not unserved_actor(actor) and _stepped(rssm, actor, *args, **kwargs)


def _acted(encoder: Layers, rssm: RSSM, actor: Actor, *args: Any, **kwargs: Any) -> bool:
    served = _acting(encoder, rssm, actor) and not unserved(rssm, rssm.post) and not unserved_actor(actor)
    return served and not rssm.absolute


def _remembered(model: MDNRNN, *args: Any, **kwargs: Any) -> bool:
    return not unserved_memory(model)


def _resident(rssm: RSSM, deter: Tensor, *args: Any, **kwargs: Any) -> bool:
    return not resident.why_not(rssm, deter.dtype, deter.shape[0], deter.device)


# Of the sizes that a single launch observes, those at which it took less time than Triton's on an H200.
FASTER_AT_ONCE = ("1m",)


def _faster_at_once(rssm: RSSM, deter: Tensor, *args: Any, **kwargs: Any) -> bool:
    return resident.size_of(rssm) in FASTER_AT_ONCE and _resident(rssm, deter, *args, **kwargs)


_ON_CHIP = ", ".join(name for name in resident.SHAPES if name.endswith("m"))
CUDA_RULES = {"observe": Rule(1, _resident, f"all but the block GRU at sizes {_ON_CHIP}")}


_WIDE = f"rows of over {WIDEST}"
_CHAINS = f"block layers, more than {dense.MAX_LAYERS}, {_WIDE}"
_STEPPED = f"{_FORWARD}, priors of one layer, over 256 classes"
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
    "symlog": Rule(),
    "symexp": Rule(),
    "twohot_loss": Rule(serves=_narrow, but=_WIDE),
    "twohot_mean": Rule(serves=_narrow, but=_WIDE),
    "critic_loss": Rule(serves=_narrow, but=_WIDE),
    "lambda_return": Rule(),
    "percentiles": Rule(),
    "reinforce": Rule(1, _all_narrow, _WIDE),
    "summarize": Rule(),
    "laprop_": Rule(serves=_full, but="half precision"),
    "imagine_step": Rule(1, _stepped, _STEPPED),
    "imagine": Rule(2, _dreamt, f"{_STEPPED}, actors of no layer, unusual heads"),
    "rollout": Rule(1, _stepped, _STEPPED),
    "policy_step": Rule(3, _acted, f"{_ACTORS}, posteriors without deter or of one layer, unusual heads"),
    "lstm_mdn_step": Rule(1, _remembered, _MEMORIES),
    "lstm_mdn_dream": Rule(2, _remembered, _MEMORIES),
    "lstm_scan": Rule(),
}


class Limits(NamedTuple):
    """What of its ops a backend serves on a device."""

    rules: dict[str, Rule]
    least: dict[str, int]
    precisions: tuple[torch.dtype, ...]
    but: str  # which precisions are not among them


# Calls of a few ops for which a backend is tried before the usual order of backends.
FIRST: dict[tuple[str, str], tuple[str, Limits]] = {
    ("observe", "cuda"): (
        "native",
        Limits(
            {
                "observe": Rule(
                    1, _faster_at_once, f"all but the block GRU at size {', '.join(FASTER_AT_ONCE)}"
                )
            },
            {},
            (torch.bfloat16,),
            "full precision",
        ),
    ),
}

LIMITS: dict[tuple[str, str], Limits] = {
    ("native", "cpu"): Limits(RULES, LEAST, (torch.float32, torch.float64), "half precision"),
    ("native", "cuda"): Limits(CUDA_RULES, {}, (torch.bfloat16,), "full precision"),
    ("triton", "cuda"): Limits(
        TRITON_RULES, {}, (torch.float32, torch.bfloat16, torch.float16), "double precision"
    ),
}


def route(
    op: str,
    ours: Callable[..., Any],
    reference: Callable[..., Any],
    limits: Limits = LIMITS["native", "cpu"],
    other: str = "reference",
) -> tuple[Callable[..., Any], str]:
    """A function that gives each call of `op` to whichever backend serves it best, and what is not ours, in words.

    reference  takes the rest: the reference, or what another backend serves by the name `other`.

    An op without a rule is ours at every call.
    """
    if op not in limits.rules:
        return ours, ""
    at, serves, but = limits.rules[op]
    least, name = limits.least.get(op, 0), list(signature(reference).parameters)[at]
    precisions = limits.precisions

    def routed(*args: Any, **kwargs: Any) -> Any:
        x = args[at] if at < len(args) else kwargs.get(name)
        if isinstance(x, (tuple, list)):
            x = x[0]
        fits = x is not None and x.dtype in precisions and x.numel() >= least
        return (ours if fits and serves(*args, **kwargs) else reference)(*args, **kwargs)

    routed.__wrapped__ = reference  # type: ignore[attr-defined]  # whose signature it has
    turned_down = limits.but, but, f"less than {least} elements" if least else ""
    return routed, f"{other} for " + ", ".join(filter(None, turned_down))
