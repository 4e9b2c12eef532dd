"""What Triton's scans of the first two Dreamers are compiled and compared at: their own sizes, whatever DreamerV3's."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from fastdream.ops.params import Actor, Layers

from . import parity_cases as ops
from .ops_tools import Maker, Sizes
from .parity_cases import Arguments, Case


class Earlier(NamedTuple):
    """A core, a family of latents, widths, and how many sequences a batch has."""

    core: str
    family: str
    sizes: Sizes
    batch: int


# As published; DreamerV2's option of normals, at the width of its largest models.
EARLIER = {
    "v1": Earlier("gru", "softplus", Sizes(200, 200, 30, 0, 1024, units=400), 50),
    "v2-normals": Earlier("layernorm", "sigmoid2", Sizes(1024, 1024, 32, 0, 1536, units=400), 50),
    "v1-classes": Earlier("gru", "classes", Sizes(200, 200, 32, 32, 1024, units=400), 50),
    "planet": Earlier("gru_block_cell", "softplus", Sizes(200, 200, 30, 0, 1024, units=400), 50),
}
# Of dreams that gradients flow through: DreamerV1's, with either core, and DreamerV2's of Atari where it is told to.
LEARNED = {
    "v1": EARLIER["v1"],
    "planet": EARLIER["planet"],
    "v2": Earlier("layernorm", "classes", Sizes(600, 600, 32, 32, 1536, units=400), 50),
}
LENGTH = 50  # of these sequences, from each step of which there is a dream


def scan(function: Callable[..., Arguments], name: str, m: Maker, n: int) -> Arguments:
    """A posterior of one hidden layer without norm, as those agents have."""
    core, family, m.sizes, batch = EARLIER[name]
    rssm, *rest = function(core, family, False, m, batch)
    return rssm._replace(post=_plain((rssm.post[0], rssm.post[-1])), prior=()), *rest


def dream(name: str, m: Maker, n: int) -> Arguments:
    """From every state of a batch, two steps, with actor and nets as those agents have them."""
    core, family, m.sizes, batch = EARLIER[name]
    rssm, actor, *rest = ops.imagine(core, family, "tanh_normal", m, LENGTH * batch)
    return rssm._replace(prior=_plain(rssm.prior), post=()), _deep(actor), *rest


def learned(name: str, m: Maker, n: int) -> Arguments:
    """The same, from which the actor learns and the model does not."""
    core, family, m.sizes, batch = LEARNED[name]
    arguments = ops.learned(core, family, "trunc_normal", True, m, LENGTH * batch)
    rssm, actor, deter, stoch, *rest = ops.mapped(lambda x: x.detach(), arguments)
    rssm, actor = rssm._replace(prior=_plain(rssm.prior), post=()), _deep(actor)
    return rssm, ops.mapped(lambda x: x.requires_grad_(), actor), deter, stoch, *rest


def policy(name: str, m: Maker, n: int) -> Arguments:
    """16 environments."""
    core, family, m.sizes, _ = EARLIER[name]
    encoder, rssm, actor, *rest = ops.policy_step(core, family, "tanh_normal", False, m, 16)
    post = _plain((rssm.post[0], rssm.post[-1]))
    return encoder, rssm._replace(post=post, prior=()), _deep(actor), *rest


def _plain(layers: Layers) -> Layers:
    """The same without norms, but for the activation of the last one, which has none."""
    plain = [layer._replace(scale=None, shift=None, norm="none", act="elu") for layer in layers[:-1]]
    return *plain, layers[-1]


def _deep(actor: Actor) -> Actor:
    """Of four layers without norm."""
    first, later = (layer._replace(scale=None, norm="none", act="elu") for layer in actor.layers)
    return actor._replace(layers=(first, *3 * (later,)))


def scans(function: Callable[..., Any]) -> dict[str, Case]:
    """A case of each."""
    return {name: Case(partial(scan, function, name)) for name in EARLIER}


def dreams() -> dict[str, Case]:
    """A case of each that gradients flow through."""
    return {f"{name}-learned": Case(partial(learned, name)) for name in LEARNED}


def steps(function: Callable[..., Arguments]) -> dict[str, Case]:
    """Of DreamerV1, without gradients."""
    return {name: Case(partial(function, name), False) for name in ("v1", "planet")}
