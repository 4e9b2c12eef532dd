"""What the parity matrix calls every op with, at any batch and any widths.

Draws are replayed by their index, or made far from where they would change, so that no rounding can change a sample.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops import Actor
from fastdream.ops.params import ActionHead, Feat, Gaussian, Layer

from .ops_tools import A, Maker, chain, mapped, safe_noise
from .parity_critic import critic_loss, lambda_return, twohot_loss, twohot_mean
from .parity_images import convolved, doubled, image_loss, norm_act
from .parity_losses import Arguments, T, entropy, inputs, numbers, policy_loss, raw_normals, summary, vectors
from .parity_memory import lstm_mdn, lstm_mdn_dream, lstm_scan


class Case(NamedTuple):
    """Arguments from a maker and a number of rows, and whether gradients are compared: all that the reference has."""

    make: Callable[[Maker, int], Arguments]
    gradients: bool = True


def mlp(norm: str, act: str, m: Maker, n: int) -> Arguments:
    widths = m.sizes.deter, m.sizes.units, m.sizes.units, m.sizes.embed
    return m.normal(n, m.sizes.deter), chain(m, *widths, norm=norm, act=act)


def mlps(apart: bool, m: Maker, n: int) -> Arguments:
    """Three of different depth and norm, one without gradient; features whole or with their one-hots apart."""
    width = 5 + m.sizes.stoch * m.sizes.classes
    nets = chain(m, width, 9, 4), chain(m, width, 3, norm="layer", linear=False), chain(m, width, 6, 5, 2)
    fixed = mapped(torch.Tensor.detach, nets[2])
    x = Feat(m.normal(n, 5), m.onehot(n, m.sizes.stoch).detach().flatten(1)) if apart else m.normal(n, width)
    return x, (*nets[:2], fixed)


def cell(name: Any, later: int, m: Maker, n: int) -> Arguments:
    deter, stoch = m.state(n)
    return m.core(name, later=later), deter, stoch.detach().flatten(1).requires_grad_(), m.normal(n, A)


def categorical(unimix: float, replayed: bool, m: Maker, n: int) -> Arguments:
    logit, index = m.normal(n, m.sizes.stoch, m.sizes.classes), m.index(n, m.sizes.stoch)
    return (logit, None, unimix, index) if replayed else (logit, safe_noise(logit, unimix, index), unimix)


def gumbel(unimix: float, tau: float, m: Maker, n: int) -> Arguments:
    shape = n, m.sizes.stoch, m.sizes.classes
    return m.normal(*shape), m.uniform(*shape), unimix, m.index(*shape[:2]), tau


def categorical_kl(clamp: str, free: float, unimix: float, m: Maker, n: int) -> Arguments:
    shape = n, T, m.sizes.stoch, m.sizes.classes
    return m.normal(*shape), m.normal(*shape), unimix, free, clamp


def gaussian(m: Maker, n: int) -> Arguments:
    shape = n, m.sizes.stoch
    return m.normal(*shape), m.normal(*shape), m.normal(*shape).detach()


def gaussian_kl(clamp: str, free: float, m: Maker, n: int) -> Arguments:
    def side() -> tuple[Tensor, Tensor]:
        mean, std = m.normal(n, T, m.sizes.stoch), m.normal(n, T, m.sizes.stoch)
        return mean, (std.detach().abs() + 0.2).requires_grad_()

    return side(), side(), free, clamp


def elementwise(m: Maker, n: int) -> Arguments:
    return (m.normal(n, m.sizes.deter, scale=2.0),)


def latent_of(family: str, m: Maker) -> Gaussian | None:
    return None if family == "classes" else Gaussian(m.sizes.stoch, 0.1, family)  # type: ignore[arg-type]


def draws_of(family: str, m: Maker, *shape: int) -> tuple[Tensor | None, Tensor | None]:
    """Noise and index: classes are replayed; normals are drawn."""
    return (None, m.index(*shape)) if family == "classes" else (m.normal(*shape).detach(), None)


def observe(core: Any, family: str, absolute: bool, m: Maker, n: int) -> Arguments:
    latent = latent_of(family, m)
    state, reset = m.state(n, latent), m.uniform(n, T) < 0.3
    inputs = m.normal(n, T, A), m.normal(n, T, m.sizes.embed), reset
    model = m.rssm(core, latent, absolute)
    return model, *state, *inputs, *draws_of(family, m, n, T, m.sizes.stoch)


def observe_step(core: Any, family: str, absolute: bool, m: Maker, n: int) -> Arguments:
    rssm, deter, stoch, action, embed, *draws = observe(core, family, absolute, m, n)
    first = (x.detach()[:, 0].requires_grad_() for x in (action, embed))
    return rssm, deter, stoch, *first, *(None if x is None else x[:, 0] for x in draws)


def prior(family: str, m: Maker, n: int) -> Arguments:
    return m.rssm(latent=latent_of(family, m)), m.normal(n, T, m.sizes.deter)


def rollout(core: Any, family: str, m: Maker, n: int) -> Arguments:
    latent, length = (
        latent_of(family, m),
        2 if family != "classes" else T,
    )  # what is drawn magnifies roundings
    noise, index = draws_of(family, m, n, length, m.sizes.stoch)
    return m.rssm(core, latent), *m.state(n, latent), m.normal(n, length, A), noise, index


def imagine_step(core: Any, family: str, m: Maker, n: int) -> Arguments:
    latent = latent_of(family, m)
    return (m.rssm(core, latent), *m.state(n, latent), m.normal(n, A), *draws_of(family, m, n, m.sizes.stoch))


def acting(kind: Any, feat: int, m: Maker) -> Actor:
    """An actor on features of that width: of one kind of continuous actions; or `mixed`, with a discrete one, whose
    logits lie so far apart that no rounding changes it; or `bare`, the same without hidden layers.
    """
    actor = m.actor(feat)
    units = feat if kind == "bare" else m.sizes.units

    def out(width: int) -> Layer:
        return m.layer(units, width, "none", "none")

    if kind not in ("mixed", "bare"):
        return actor._replace(heads=(ActionHead(kind, A, 0, (out(A), out(A))),))
    logits = out(2)
    far = logits._replace(weight=logits.weight * 0, bias=torch.tensor([-3.0, 3.0]).to(logits.weight))
    discrete = actor.heads[1]._replace(out=(far,), kind="score" if kind == "bare" else "categorical")
    heads = actor.heads[0]._replace(out=(out(1), out(1))), discrete
    return actor._replace(heads=heads, layers=() if kind == "bare" else actor.layers)


def action_noise(kind: Any, m: Maker, *lead: int) -> Tensor:
    """Numbers that draw an action of any kind, none of them in a tail."""
    return 0.1 + 0.8 * m.uniform(*lead, 2 if kind in ("mixed", "bare") else A)


def imagine(core: Any, family: str, kind: Any, m: Maker, n: int) -> Arguments:
    """Along actions that are `given`, or with those of an actor."""
    latent, length = latent_of(family, m), 2 if family != "classes" else T
    state, acts = m.state(n, latent), kind != "given"
    kind = kind if acts else "mixed"
    actor = acting(kind, m.sizes.deter + state[1].shape[1:].numel(), m)
    noise, index = draws_of(family, m, n, length, m.sizes.stoch)
    draws = (action_noise(kind, m, n, length + 1), index)
    if not acts:
        draws = (None, index, m.normal(n, length + 1, A))
    return m.rssm(core, latent), actor, *state, length, noise, *draws


def learned(core: Any, family: str, kind: Any, detach: bool, m: Maker, n: int) -> Arguments:
    """A dream that gradients flow through, short, as its steps magnify roundings."""
    length, latent = 2, latent_of(family, m)
    state = m.state(n, latent)
    actor = acting(kind, m.sizes.deter + state[1].shape[1:].numel(), m)._replace(detach=detach)
    noise, index = draws_of(family, m, n, length, m.sizes.stoch)
    return m.rssm(core, latent), actor, *state, length, noise, action_noise(kind, m, n, length + 1), index


def policy_step(core: Any, family: str, kind: Any, encoded: bool, m: Maker, n: int) -> Arguments:
    """The most likely action where there is an encoder, which no tanh_normal has; else a drawn one."""
    latent = latent_of(family, m)
    state = m.state(n, latent)
    actor = acting(kind, m.sizes.deter + state[1].shape[1:].numel(), m)
    encoder = chain(m, 7, m.sizes.units, m.sizes.embed, linear=False) if encoded else ()
    inputs = m.normal(n, A), m.normal(n, 7 if encoded else m.sizes.embed), m.uniform(n) < 0.3
    noise, index = draws_of(family, m, n, m.sizes.stoch)
    eps = None if encoded and kind != "tanh_normal" else action_noise(kind, m, n)
    return encoder, m.rssm(core, latent), actor, *state, *inputs, noise, eps, index


def laprop(agc: float, momentum: bool, nesterov: bool, decay: float, m: Maker, n: int) -> Arguments:
    """Two tensors, of which one is a matrix; moments as after some updates."""
    shapes = (n, m.sizes.deter), (m.sizes.deter,)

    def drawn(scale: float) -> list[Tensor]:
        return [m.normal(*shape, scale=scale).detach() for shape in shapes]

    moments = [x.square() for x in drawn(0.1)], drawn(0.1)
    settings = agc, 1e-3, 0.9, 0.999, 1e-20, decay, [True, False], momentum, nesterov
    return drawn(1.0), drawn(0.3), *moments, torch.tensor(3), 1e-2, *settings


def gather(dtype: torch.dtype, m: Maker, n: int) -> Arguments:
    storage = torch.randint(250, (50, 3, 7), generator=m.generator).to(dtype)
    return storage, m.index(n, high=50), T


CORES, GRUS = ("block", "layernorm"), ("gru", "gru_block_cell")
FAMILIES = "classes", "softplus", "sigmoid2"
KINDS = "tanh_normal", "trunc_normal", "bare"  # of actors, beside mixed ones
NORMS, ACTS = ("none", "rms", "layer"), ("none", "silu", "gelu", "elu", "relu", "tanh")


def cases(function: Callable[..., Arguments], *options: Any, gradients: bool = True) -> dict[str, Case]:
    """A case for every combination of the options, named after them."""
    return {
        "-".join(map(str, chosen)) or "plain": Case(partial(function, *chosen), gradients)
        for chosen in product(*options)
    }


# Only what can be wrong differently: an op's options one by one, and together where they meet in the arithmetic.
CASES: dict[str, dict[str, Case]] = {
    "norm_act": cases(norm_act, NORMS, ACTS),
    "conv_pool": cases(convolved, [3, 4], NORMS, ("silu", "relu")),
    "conv_spread": cases(doubled, [2, 3], NORMS, ("none", "silu")),
    "image_loss": cases(image_loss),
    "mlp": cases(mlp, NORMS, ("silu", "elu")),
    "mlps": cases(mlps, [False, True]),
    "block_gru": cases(cell, ["block"], [0, 1]),
    "layernorm_gru": cases(cell, ["layernorm"], [0]),
    "gru": cases(cell, GRUS, [0]),
    "categorical_sample": cases(categorical, [0.0, 0.01], [False, True]),
    "gumbel_sample": cases(gumbel, [0.0, 0.01], [1.0, 0.5]),
    "categorical_kl": cases(categorical_kl, ("step", "mean", "none"), [0.0, 1.0], [0.0, 0.01]),
    "latent_entropy": cases(entropy, [0.0, 0.01], gradients=False),
    "gaussian_sample": cases(gaussian),
    "gaussian_kl": cases(gaussian_kl, ("step", "mean", "none"), [0.0, 3.0]),
    "bounded_normal": cases(raw_normals),
    "symlog": cases(elementwise),
    "symexp": cases(elementwise),
    "twohot_loss": cases(twohot_loss, ("symexp", "symlog")),
    "twohot_mean": cases(twohot_mean, ("symexp", "symlog")),
    "critic_loss": cases(critic_loss, ("symexp", "symlog")),
    "lambda_return": cases(lambda_return),
    "reinforce": cases(policy_loss, [0.0, 0.1]),
    "percentiles": cases(numbers, [0.0, 5.0, 50.0], [95.0, 100.0], gradients=False),
    "summarize": cases(summary),
    "join_inputs": cases(inputs, [False, True], gradients=False),
    "vector_losses": cases(vectors, [False, True]),
    "observe_step": cases(observe_step, CORES, FAMILIES, [False, True]),
    "observe": cases(observe, CORES, FAMILIES, [False, True]) | cases(observe, GRUS, FAMILIES, [False]),
    "prior": cases(prior, FAMILIES[:2]),
    "imagine_step": cases(imagine_step, CORES + GRUS, FAMILIES, gradients=False),
    "imagine": cases(imagine, CORES + GRUS, FAMILIES, ("given", "mixed"), gradients=False)
    | cases(imagine, ["gru", "layernorm"], FAMILIES[:2], KINDS, gradients=False)
    | cases(learned, ["gru", "layernorm"], FAMILIES[:2], ["mixed"], [False, True])
    | cases(learned, ["gru_block_cell"], FAMILIES[:2], ["mixed"], [True])
    | cases(learned, ["block"], FAMILIES[2:], ["tanh_normal", "trunc_normal"], [True]),
    "rollout": cases(rollout, CORES + GRUS, FAMILIES, gradients=False),
    "policy_step": cases(policy_step, CORES + GRUS, FAMILIES, ["mixed"], [False, True], gradients=False)
    | cases(policy_step, ["gru", "layernorm"], FAMILIES[:2], KINDS, [False, True], gradients=False),
    "lstm_mdn_step": cases(lstm_mdn, [False, True], [1.0, 1.3], gradients=False),
    "lstm_mdn_dream": cases(lstm_mdn_dream, [False, True], [False, True], [False, True], gradients=False),
    "lstm_scan": cases(lstm_scan),
    "laprop_": cases(laprop, [0.0, 0.3], [False, True], [False, True], [0.0, 0.1], gradients=False),
    "gather_sequences": cases(gather, (torch.uint8, torch.float32, torch.bool), gradients=False),
}
