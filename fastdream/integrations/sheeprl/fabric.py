"""Modules that sheeprl wraps with Lightning Fabric."""

from typing import Any

import torch

from fastdream.integrations.patching import say_theirs

# Fabric's names of precisions in which every tensor keeps the precision of the parameters, which is a single one.
UNMIXED = "32-true", "64-true"


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
