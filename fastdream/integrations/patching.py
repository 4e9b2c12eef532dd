"""How functions of another codebase are replaced, and put back."""

import logging
from collections.abc import Callable
from functools import cache, wraps
from inspect import signature
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.ops import Ops

Function = Callable[..., Any]


class Place(NamedTuple):
    """A function that will be replaced."""

    owner: Any  # module or class
    name: str
    takes: tuple[str, ...]  # names of its parameters, as the release that an integration is made for has them
    ops: tuple[str, ...]  # what the new one computes with
    make: Callable[[Function], Function]  # the new one, given the old one
    note: str = ""  # what the new one is for, if that is not to compute with ops

    @property
    def dotted(self) -> str:
        """module.function or module.Class.function."""
        if isinstance(self.owner, ModuleType):
            return f"{self.owner.__name__}.{self.name}"
        return f"{self.owner.__module__}.{self.owner.__qualname__}.{self.name}"


def instead(new: Function) -> Callable[[Function], Function]:
    """To `make` of a Place: `new(old, *args)` in the place of `old(*args)`."""

    def make(old: Function) -> Function:
        @wraps(old)
        def function(*args: Any, **kwargs: Any) -> Any:
            return new(old, *args, **kwargs)

        return function

    return make


def outside_autocast(new: Function, compiled: bool = True) -> Callable[[Function], Function]:
    """`new(*args)` in the place of `old(*args)`, but where `halved` is true of the first tensor among arguments.

    compiled  whether it is the new one that is compiled, where they compile.
    """

    def function(old: Function, *args: Any, **kwargs: Any) -> Any:
        x = _first((*args, *kwargs.values()))
        if (x is not None and halved(x)) or (torch.compiler.is_compiling() and not compiled):
            return old(*args, **kwargs)
        return new(*args, **kwargs)

    return instead(function)


def _first(args: tuple[Any, ...]) -> Tensor | None:
    """The first tensor among arguments, or of a tuple among them."""
    heads = (arg[0] if isinstance(arg, tuple) and arg else arg for arg in args)
    return next((x for x in heads if isinstance(x, Tensor)), None)


def halved(x: Tensor) -> bool:
    """Whether what is computed of x remains their own code, since that rounds otherwise; it is said once.

    So it is where torch chooses each function's precision (autocast), and in half precision.
    """
    mixed = torch.is_autocast_enabled(x.device.type)
    if not mixed and x.dtype not in (torch.bfloat16, torch.float16):
        return False
    if not torch.compiler.is_compiling():  # which takes no calls of loggers
        say_theirs(f"under autocast on {x.device.type}" if mixed else f"in {x.dtype}")
    return True


@cache
def say_theirs(where: str) -> None:
    """Once: that there nothing is faster."""
    logging.getLogger("fastdream").warning(
        "networks and steps that are computed %s remain the other codebase's own code, no faster than without us",
        where,
    )


_NOTHING = object()


class Patch:
    """Functions that are replaced until `undo`, or until the end of a `with` block."""

    def __init__(self, codebase: str, release: str, places: list[Place]) -> None:
        """Replaces all places, or none: ValueError naming the first that is not as `release` has it."""
        for place in places:
            _check(codebase, release, place)
        self.codebase, self.places = codebase, places
        for device in _devices():
            table_of(device)  # now, not while somebody compiles or captures a call
        # A class may have a function of its parent: then the parent's must stay.
        self._old = [(place, vars(place.owner).get(place.name, _NOTHING)) for place in places]
        for place in places:
            new = place.make(getattr(place.owner, place.name))
            new.__fastdream__ = codebase  # type: ignore[attr-defined]
            setattr(place.owner, place.name, new)

    def undo(self) -> None:
        """Put their own functions back; once is enough."""
        while self._old:
            place, old = self._old.pop()
            if old is _NOTHING:
                delattr(place.owner, place.name)
            else:
                setattr(place.owner, place.name, old)

    def describe(self, device: torch.device | str) -> str:
        """A line for each function: what serves it on that device."""
        rows = {row.op: row.backend for row in fd.table(table_of(torch.device(device)))}
        width = max(len(place.dotted) for place in self.places)
        lines = [f"{self.codebase} on fastdream's ops, on {torch.device(device).type}:"]
        for place in self.places:
            served = ", ".join(f"{op} ({rows[op]})" for op in place.ops)
            lines.append(f"  {place.dotted:{width}}  {served or place.note}".rstrip())
        return "\n".join(lines)

    def __enter__(self) -> "Patch":
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


_TABLES: dict[torch.device, Ops] = {}


def table_of(device: torch.device) -> Ops:
    """The fastest ops for tensors on a device, chosen once."""
    if device not in _TABLES:
        _TABLES[device] = fd.load(device=device)
    return _TABLES[device]


def _devices() -> list[torch.device]:
    """Those that tensors may be on."""
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]


def _check(codebase: str, release: str, place: Place) -> None:
    function = getattr(place.owner, place.name, None)
    if function is None:
        raise ValueError(f"{codebase} has no {place.dotted}; this integration is made for {release}")
    if hasattr(function, "__fastdream__"):
        raise ValueError(f"{place.dotted} is replaced already; undo() the first patch before a second")
    if (takes := tuple(signature(function).parameters)) != place.takes:
        raise ValueError(
            f"{place.dotted} takes ({', '.join(takes)}), expected ({', '.join(place.takes)}); this integration is "
            f"made for {release}"
        )
