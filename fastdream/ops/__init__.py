"""The kernel surface: one table of functions, chosen once and then passed to whoever computes.

    ops = load()                                        the fastest that serves this machine's CPU
    ops = load("reference", lambda_return="native")     plain PyTorch but for one op
    print(format_table(ops))                            what serves each op, and why nothing faster does

A backend is a module that has functions named like the fields of `Ops`; `fastdream.ops.reference` has all of
them and says what each means. A module's `available(device)` returns why it cannot serve there, or None, and its
`op_available(op, device)` the same of one op; its OPS lists what it has, if it imports functions when they are taken;
its ON_CUDA the ops that it has for CUDA devices, if these are not all.
"""

import logging
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, NamedTuple

import torch

from fastdream.ops import reference
from fastdream.ops.auto import FIRST, LIMITS, route
from fastdream.ops.native.resident_op import check_earlier
from fastdream.ops.params import (
    GRU,
    MDNRNN,
    RSSM,
    Act,
    ActionHead,
    ActionKind,
    Actor,
    BlockGRU,
    Categorical,
    Control,
    Core,
    Dream,
    Feat,
    Gaussian,
    Kind,
    Latent,
    Layer,
    LayerNormGRU,
    Layers,
    MDNDream,
    MDNStep,
    Norm,
    Step,
)
from fastdream.ops.reference import (
    actor,
    actor_branches,
    actor_mode,
    actor_outputs,
    actor_trunk,
    categorical_entropy,
    categorical_log_prob,
    dense,
    gaussian_std,
    linear,
    mlp,
    mlp_outputs,
    normal_entropy,
    normal_log_prob,
    twohot_bins,
    unimix_log_probs,
)
from fastdream.ops.surface import OPS, Ops, Row

_BACKENDS = {
    "reference": "fastdream.ops.reference",
    "native": "fastdream.ops.native",
    "triton": "fastdream.ops.triton",
}
# What "auto" tries, fastest first. Any other kind of device gets the reference.
_FASTEST = {"cpu": ("native", "reference"), "cuda": ("triton", "native", "reference")}


class _Choice(NamedTuple):
    function: Callable[..., Any]
    row: Row
    blocked: tuple[str, ...]  # why backends that have the op cannot serve it here


def load(
    backend: str = "auto", *, device: torch.device | str = "cpu", strict: bool = False, **pins: str
) -> Ops:
    """Choose an implementation of every op, for tensors on `device`.

    backend  "auto" takes the fastest that works here; calls that it does not compute or at which it loses go to
             the reference, as `fastdream.ops.auto` says. A name takes that backend where it has the op, and the
             reference elsewhere; calls that it does not compute then raise ValueError.
    pins     op="backend" for single ops. A pin is taken or refused, never replaced.
    strict   refuse, with the reason, instead of falling back to another backend. Ops that only the reference
             implements are no fallback under "auto".

    Raises ValueError for a name that does not exist, for a backend that is for other kinds of devices, and for what
    strict and pins refuse.
    """
    device = _device(device)
    _check_name("backend", backend, ("auto", *_BACKENDS))
    if backend not in ("auto", *_FASTEST.get(device.type, ())) and (reason := _problem(backend, device)):
        raise ValueError(f"{backend} cannot serve tensors on {device.type}: {reason}")
    for op, pin in pins.items():
        _check_name("op", op, OPS)
        _check_name("backend", pin, ("auto", *_BACKENDS))
    chosen = {op: _choose(op, pins.get(op, backend), device, strict or op in pins) for op in OPS}
    for op, kind in FIRST:
        if kind == device.type and pins.get(op, backend) == "auto":
            chosen[op] = _before(op, device, chosen[op])
    for reason in dict.fromkeys(reason for choice in chosen.values() for reason in choice.blocked):
        _say_once(reason)
    functions = {op: choice.function for op, choice in chosen.items()}
    return Ops(**functions, rows=tuple(choice.row for choice in chosen.values()))


def table(ops: Ops) -> list[Row]:
    """Which backend serves each op, and why a faster one does not."""
    return list(ops.rows)


def format_table(ops: Ops) -> str:
    """The table as lines of text."""
    wide = max(len(row.op) for row in ops.rows)
    return "\n".join(f"{row.op:<{wide}}  {row.backend:<9}  {row.reason}".rstrip() for row in ops.rows)


def check(device: torch.device) -> None:
    """RuntimeError if an earlier launch on the device failed and what it returned is wrong.

    Waits for nothing. Ops ask by themselves when they are called; in a graph that is replayed none is.
    """
    check_earlier(device)


def _choose(op: str, backend: str, device: torch.device, strict: bool) -> _Choice:
    """The first backend that has the op and works on the device."""
    order = _FASTEST.get(device.type, ("reference",)) if backend == "auto" else (backend, "reference")
    missing: list[str] = []
    blocked: list[str] = []
    for name in order:
        module = import_module(_BACKENDS[name])
        has = _implements(module, op, device)
        reason = (_problem(name, device) or _op_problem(module, op, device)) if has else None
        if has and not reason:
            function, elsewhere = getattr(module, op), ""
            if backend == "auto" and (limits := LIMITS.get((name, device.type))):
                function, elsewhere = route(op, function, getattr(reference, op), limits)
            why = "; ".join(filter(None, [*missing, *blocked, elsewhere]))
            return _Choice(function, Row(op, name, why), tuple(blocked))
        if strict and (reason or backend != "auto"):
            raise ValueError(f"{name} cannot serve {op}: {reason or 'it does not implement it'}")
        if reason:
            blocked.append(f"{name}: {reason}")
        else:
            missing.append(f"{name} has no {op}")
    raise AssertionError((op, backend, missing, blocked))


def _before(op: str, device: torch.device, usual: _Choice) -> _Choice:
    """The op by the backend that is tried before the usual one, where it works on the device."""
    name, limits = FIRST[op, device.type]
    module = import_module(_BACKENDS[name])
    if usual.row.backend == name:
        return usual
    if reason := _problem(name, device) or _op_problem(module, op, device):
        words = "; ".join(filter(None, [f"{name}: {reason}", usual.row.reason]))
        return usual._replace(row=usual.row._replace(reason=words))
    function, elsewhere = route(op, getattr(module, op), usual.function, limits, usual.row.backend)
    words = "; ".join(filter(None, [elsewhere, usual.row.reason]))
    return _Choice(function, Row(op, name, words), usual.blocked)


def _implements(module: ModuleType, op: str, device: torch.device) -> bool:
    """Whether the backend has the op for this kind of device."""
    has = op in module.OPS if hasattr(module, "OPS") else hasattr(module, op)
    return has and (device.type != "cuda" or op in getattr(module, "ON_CUDA", OPS))


def _problem(backend: str, device: torch.device) -> str | None:
    """Why the backend cannot serve on the device, or None."""
    available = getattr(import_module(_BACKENDS[backend]), "available", None)
    return available(device) if available else None


def _op_problem(module: ModuleType, op: str, device: torch.device) -> str | None:
    """Why the backend's function of that name cannot serve on the device, where the backend itself can."""
    return module.op_available(op, device) if hasattr(module, "op_available") else None


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use cpu, cuda or cuda:<n>") from error


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in (known := tuple(known)):
        near = get_close_matches(str(name), known, n=1, cutoff=0.0)
        raise ValueError(f"unknown {kind} {name!r}; did you mean {near[0]!r}? Known: {', '.join(known)}")


@cache
def _say_once(reason: str) -> None:
    logging.getLogger("fastdream").warning("slower ops in use: %s", reason)


__all__ = [
    "GRU",
    "MDNRNN",
    "OPS",
    "RSSM",
    "Act",
    "ActionHead",
    "ActionKind",
    "Actor",
    "BlockGRU",
    "Categorical",
    "Control",
    "Core",
    "Dream",
    "Feat",
    "Gaussian",
    "Kind",
    "Latent",
    "Layer",
    "LayerNormGRU",
    "Layers",
    "MDNDream",
    "MDNStep",
    "Norm",
    "Ops",
    "Row",
    "Step",
    "actor",
    "actor_branches",
    "actor_mode",
    "actor_outputs",
    "actor_trunk",
    "categorical_entropy",
    "categorical_log_prob",
    "check",
    "dense",
    "format_table",
    "gaussian_std",
    "linear",
    "load",
    "mlp",
    "mlp_outputs",
    "normal_entropy",
    "normal_log_prob",
    "table",
    "twohot_bins",
    "unimix_log_probs",
]
