"""Modules that sheeprl wraps with Lightning Fabric."""

from typing import Any

import torch
from torch import Tensor

from fastdream.integrations.patching import Function, say_theirs

# Fabric's names of precisions in which every tensor keeps the precision of the parameters, which is a single one.
UNMIXED = "32-true", "64-true"

ENTERS = "left to the step"  # what `as_it_is` is for


def bare(module: Any) -> Any:
    """The module inside of the wrapper, if there is one."""
    return getattr(module, "module", module)


def ours(*modules: Any) -> bool:
    """Whether ops compute what these modules do: eagerly, in float32 or float64."""
    if torch.compiler.is_compiling():
        return False
    strategies = (getattr(module, "_strategy", None) for module in modules)
    others = {x.precision.precision for x in strategies if x is not None}.difference(UNMIXED)
    for precision in others:
        say_theirs(f"by Fabric in {precision}")
    return not others


def ours_of(rssm: Any) -> bool:
    """The same of the networks of an RSSM."""
    return ours(rssm.recurrent_model, rssm.representation_model, rssm.transition_model)


def as_it_is(old: Function, self: Any, x: Tensor) -> Tensor:
    """Actions and embeddings enter the step themselves, whose op multiplies those of all time steps at once."""
    return x if ours_of(self) else old(self, x)
