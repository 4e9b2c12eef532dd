"""Which calls of an op "auto" gives to the reference, although the faster backend of that device has the op.

Those that it does not compute, for which it raises ValueError where it is asked for by name, and those at which it
loses: a few numbers, for which telling torch of a call takes longer than the arithmetic.
"""

from collections.abc import Callable
from functools import partial, update_wrapper
from inspect import getdoc, signature
from typing import Any, NamedTuple

import torch

from fastdream.ops.auto_cpu import LEAST, RULES, Rule
from fastdream.ops.auto_cuda import CUDA_RULES, FASTER_AT_ONCE, TRITON_RULES, faster_at_once
from fastdream.ops.native.library import transformed


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
                    1, faster_at_once, f"all but the block GRU at size {', '.join(FASTER_AT_ONCE)}"
                )
            },
            {},
            (torch.bfloat16,),
            "full precision",
        ),
    ),
}

LIMITS: dict[tuple[str, str], Limits] = {
    ("native", "cpu"): Limits(RULES, LEAST, (torch.float32,), "half and double precision"),
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

    An op without a rule is ours at every call but those under torch.func's transformations and in forward mode, which
    torch has for its own functions alone.
    """
    rule: Rule = limits.rules.get(op, Rule(None))
    at, serves, but = rule
    least, name = limits.least.get(op, 0), list(signature(reference).parameters)[at or 0]
    # Not a function in this one: an agent has it and may be pickled.
    routed = partial(_routed, ours, reference, at, serves, name, limits.precisions, least)
    update_wrapper(routed, reference)  # whose signature and words it has
    if not isinstance(reference, partial):  # which has said it
        # Of a partial help() shows no arguments.
        routed.__doc__ = f"{op}{signature(reference)}\n\n{getdoc(reference)}"
    if op not in limits.rules:
        return routed, ""
    turned_down = limits.but, but, f"less than {least} elements" if least else ""
    return routed, f"{other} for " + ", ".join(filter(None, turned_down))


def _routed(
    ours: Callable[..., Any],
    reference: Callable[..., Any],
    at: int | None,
    serves: Callable[..., bool],
    name: str,
    precisions: tuple[torch.dtype, ...],
    least: int,
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not torch.compiler.is_compiling() and transformed():
        return reference(*args, **kwargs)
    if at is None:
        return (ours if serves(*args, **kwargs) else reference)(*args, **kwargs)
    x = args[at] if at < len(args) else kwargs.get(name)
    if isinstance(x, (tuple, list)):
        x = x[0]
    fits = x is not None and x.dtype in precisions and x.numel() >= least
    return (ours if fits and serves(*args, **kwargs) else reference)(*args, **kwargs)
