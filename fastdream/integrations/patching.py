"""How functions of another codebase are replaced, and put back."""

from collections.abc import Callable
from inspect import signature
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import torch

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

    @property
    def dotted(self) -> str:
        """module.function or module.Class.function."""
        if isinstance(self.owner, ModuleType):
            return f"{self.owner.__name__}.{self.name}"
        return f"{self.owner.__module__}.{self.owner.__qualname__}.{self.name}"


class Patch:
    """Functions that are replaced until `undo`, or until the end of a `with` block."""

    def __init__(self, codebase: str, release: str, places: list[Place]) -> None:
        """Replaces all places, or none: ValueError naming the first that is not as `release` has it."""
        for place in places:
            _check(codebase, release, place)
        self.codebase, self.places = codebase, places
        self._old = [(place, getattr(place.owner, place.name)) for place in places]
        for place, old in self._old:
            new = place.make(old)
            new.__fastdream__ = codebase  # type: ignore[attr-defined]
            setattr(place.owner, place.name, new)

    def undo(self) -> None:
        """Put their own functions back; once is enough."""
        while self._old:
            place, old = self._old.pop()
            setattr(place.owner, place.name, old)

    def describe(self, device: torch.device | str) -> str:
        """A line for each function: what serves it on that device."""
        rows = {row.op: row.backend for row in fd.table(table_of(torch.device(device)))}
        lines = [
            f"  {place.dotted:40} {', '.join(f'{op} ({rows[op]})' for op in place.ops)}"
            for place in self.places
        ]
        return "\n".join([f"{self.codebase} on fastdream's ops:", *lines])

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


_TABLES: dict[torch.device, Ops] = {}


def table_of(device: torch.device) -> Ops:
    """The fastest ops for tensors on a device, chosen once."""
    if device not in _TABLES:
        _TABLES[device] = fd.load(device=device)
    return _TABLES[device]


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
