"""Which calls `auto` gives to native on a CPU: those that it computes and at which it does not lose."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native import dense
from fastdream.ops.native.actor import MAX_HEADS
from fastdream.ops.native.params import MAX_LAYERS
from fastdream.ops.params import RSSM, Actor, BlockGRU, Core, Feat, Layers, any_gradient

# Elements of the tensor that a rule looks at from which native takes less time than the reference, where it is not
# every number of them. `python benchmarks/crossover.py` measures and prints this table.
# The prior is that of 200 units, which loses longer than wider ones.
LEAST: dict[str, int] = {"layernorm_gru": 51_200, "gru": 12_800, "prior": 32_768}
# Channels of the image that `conv_spread` makes from which it does: with 8 of them half a vector is empty.
LEAST_CHANNELS = 32

# Dreams from which native's gradient through them takes less time than the reference's: with a plain GRU of 96 or 200
# units it lost at up to 480 of them and won at 960 and more; with a LayerNorm GRU it won at 256 and more.
LEAST_LEARNED = 768


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


class Rule(NamedTuple):
    """The calls of one op that are the faster backend's."""

    at: int | None = (
        0  # of the argument whose dtype and size decide: a tensor, the first of several; None: none does
    )
    serves: Callable[..., bool] = _always  # takes the op's arguments
    but: str = ""  # what `serves` turns down


def dense_layers(x: Tensor | Feat, layers: Layers) -> bool:
    return len(layers) <= dense.MAX_LAYERS and all(layer.weight.dim() == 2 for layer in layers)


def all_dense(x: Tensor | Feat, nets: Sequence[Layers]) -> bool:
    return all(dense_layers(x, layers) for layers in nets)


def _broad(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> bool:
    return weight.shape[1] >= LEAST_CHANNELS


def _unmixed(x: Tensor, weight: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> bool:
    return (dtype or x.dtype) == weight.dtype


def _shallow(core: Core, *nets: Layers) -> bool:
    hidden = core.hidden if isinstance(core, BlockGRU) else ()
    return max(map(len, (hidden, *nets))) <= MAX_LAYERS


def observed(rssm: RSSM, *args: Any, **kwargs: Any) -> bool:
    return _shallow(rssm.core, rssm.post)


def _prior(rssm: RSSM, deter: Tensor) -> bool:
    return dense_layers(deter, rssm.prior)


def acts(actor: Actor) -> bool:
    return len(actor.layers) <= MAX_LAYERS and 0 < len(actor.heads) <= MAX_HEADS


# The model that was last found to act. To look at it anew takes a fiftieth of what a small one takes to act.
_ACTING: list[Any] = [None, None, None]


def acting(encoder: Layers, rssm: RSSM, actor: Actor, *args: Any, **kwargs: Any) -> bool:
    if torch.compiler.is_compiling():  # which knows no tuple by its identity
        return _shallow(rssm.core, encoder, rssm.post) and acts(actor)
    known, *others = _ACTING
    if known is encoder and others[0] is rssm and others[1] is actor:
        return True
    served = _shallow(rssm.core, encoder, rssm.post) and acts(actor)
    if served:
        _ACTING[:] = encoder, rssm, actor
    return served


def forward(rssm: RSSM, *args: Any, **kwargs: Any) -> bool:
    known = _shallow(rssm.core, rssm.prior)
    return known and not (torch.is_grad_enabled() and any_gradient(rssm, *args, *kwargs.values()))


def dreaming(rssm: RSSM, actor: Actor, deter: Tensor, *args: Any, **kwargs: Any) -> bool:
    known = _shallow(rssm.core, rssm.prior)
    if not torch.is_grad_enabled() or not any_gradient(rssm, actor, deter, *args, *kwargs.values()):
        return known and acts(actor)
    nets = actor.layers, *(head.out for head in actor.heads)
    return known and all_dense(deter, nets) and len(deter) >= LEAST_LEARNED


_CHAINS = f"block layers, more than {dense.MAX_LAYERS} layers"
_DEEP = f"nets deeper than {MAX_LAYERS}"
ACTORS = f"{_DEEP}, actors of over {MAX_HEADS} heads"
FORWARD = f"{_DEEP}, gradients"

RULES: dict[str, Rule] = {
    "norm_act": Rule(),
    "conv_pool": Rule(1, _unmixed, "mixed precision"),
    "conv_spread": Rule(serves=_broad, but=f"fewer than {LEAST_CHANNELS} channels"),
    "mlp": Rule(serves=dense_layers, but=_CHAINS),
    "mlps": Rule(serves=all_dense, but=_CHAINS),
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
    "observe_step": Rule(1, observed, _DEEP),
    "observe": Rule(1, observed, _DEEP),
    "prior": Rule(1, _prior, _CHAINS),
    "imagine_step": Rule(1, forward, FORWARD),
    "imagine": Rule(
        2,
        dreaming,
        f"{_DEEP}; with gradients: fewer than {LEAST_LEARNED} rows; without: actors of over {MAX_HEADS} heads",
    ),
    "rollout": Rule(1, forward, FORWARD),
    "policy_step": Rule(3, acting, ACTORS),
    "lstm_mdn_step": Rule(at=1),
    "lstm_mdn_dream": Rule(at=2),
    "laprop_": Rule(),
}
