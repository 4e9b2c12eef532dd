"""What Triton's scans of the first two Dreamers are compiled and compared at: their own sizes, whatever DreamerV3's."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

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
}


def scan(function: Callable[..., Arguments], name: str, m: Maker, n: int) -> Arguments:
    """A posterior of one hidden layer without norm, as those agents have."""
    core, family, m.sizes, batch = EARLIER[name]
    rssm, *rest = function(core, family, False, m, batch)
    first, *_, last = rssm.post
    first = first._replace(scale=None, shift=None, norm="none", act="elu")
    return rssm._replace(post=(first, last), prior=()), *rest


def scans(function: Callable[..., Any]) -> dict[str, Case]:
    """A case of each."""
    return {name: Case(partial(scan, function, name)) for name in EARLIER}
