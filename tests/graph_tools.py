"""A stand-in for CUDA graphs on a CPU: a tape of every operation of recorded work, played into the same memory.

What a graph would freeze, the tape freezes too: numbers and branches of Python, tensors that Python holds, and where
results lie. So work that cannot be captured gives other numbers when it is replayed than when it is done again. And as
graphs share their memory, each replay first spoils whatever any tape has allocated.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdream import ops as fd
from fastdream.agents.dreamer_v3 import Config, DreamerV3, size
from fastdream.normalize import NormConfig, SlowConfig
from fastdream.optim import OptConfig

from .agent_tools import CONTINUOUS, DISCRETE, IMAGE, MIXED, VECTOR, batch, observation

T = TypeVar("T")

# Operations at which the host would wait for the device, or copy from memory that is not pinned.
WAITS = {
    "aten::_local_scalar_dense": "a tensor becomes a number",
    "aten::is_nonzero": "a tensor becomes a truth value",
    "aten::equal": "tensors are compared on the host",
    "aten::nonzero": "a shape depends on values",
    "aten::masked_select": "a shape depends on values",
    "aten::_unique2": "a shape depends on values",
    "aten::lift_fresh": "a tensor is made of Python's numbers",
}


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested lists, tuples and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from tensors(item)


class Entry(NamedTuple):
    """One operation with its own arguments, and the tensors that it gave if any of them is fresh."""

    op: Any
    args: tuple
    kwargs: dict[str, Any]
    results: list[Tensor]
    fresh: list[Tensor]


class Watch(TorchDispatchMode):
    """RuntimeError where the host would wait for a GPU."""

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        name = op._schema.name
        if name in WAITS:
            raise RuntimeError(f"{name}: {WAITS[name]}")
        if name in ("aten::index", "aten::index_put_", "aten::index_put"):
            masks = [x for x in args[1] if x is not None and x.dtype in (torch.bool, torch.uint8)]
            if masks:
                raise RuntimeError(f"{name} by a mask: a shape depends on values")
        return op(*args, **(kwargs or {}))


class Tape(Watch):
    """Records while it is active. Whatever the work does meanwhile happens, unlike in a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        # Arguments as they are now: a list may be changed by its owner, a tensor is played as it is then.
        entry = op, _frozen(args), _frozen(kwargs or {})
        out = super().__torch_dispatch__(op, types, args, kwargs)
        aliases = {x.untyped_storage().data_ptr() for x in tensors((args, kwargs)) if x.numel()}
        fresh = [x for x in tensors(out) if x.untyped_storage().data_ptr() not in aliases]
        changes = any(arg.alias_info is not None and arg.alias_info.is_write for arg in op._schema.arguments)
        if fresh or changes:
            results = [x.detach() for x in tensors(out)] if fresh else []
            self.entries.append(Entry(*entry, results, [x.detach() for x in fresh]))
        return out

    @torch.no_grad()
    def replay(self) -> None:
        """Do it all again, on the same tensors and into the same ones."""
        for op, args, kwargs, results, _ in self.entries:
            again = list(tensors(op(*args, **kwargs)))
            for old, new in zip(results, again, strict=True) if results else ():
                old.copy_(new)

    @torch.no_grad()
    def spoil(self) -> None:
        """Overwrite all memory that was allocated while recording."""
        for entry in self.entries:
            for x in entry.fresh:
                x.fill_(torch.nan if x.is_floating_point() else 1)


def _frozen(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _frozen(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(_frozen(item) for item in tree)
    return tree.detach() if isinstance(tree, Tensor) else tree


class Tapes:
    """A recorder for `graphs.capture` whose graphs are tapes."""

    def __init__(self) -> None:
        self.warm_ups = 0
        self.tapes: list[Tape] = []

    def warm_up(self, work: Callable[[], object], strict: bool) -> None:
        self.warm_ups += 1
        if strict:
            with Watch():
                work()
        else:
            work()

    def record(
        self, work: Callable[[], T], generators: Iterable[torch.Generator]
    ) -> tuple[Callable[[], object], T]:
        tape = Tape()
        self.tapes.append(tape)
        with tape:
            results = work()

        def replay() -> None:
            for each in self.tapes:
                each.spoil()
            tape.replay()

        return replay, results


FAST = OptConfig(lr=1e-2, warmup=4, schedule="linear", anneal=8)
NORMS = dict(valnorm=NormConfig("meanstd"), advnorm=NormConfig("meanstd", debias=True))
CASES: dict[str, Any] = {
    "vector": (VECTOR, MIXED, {}),
    "image": (IMAGE, DISCRETE, {}),
    "both": (IMAGE | VECTOR, CONTINUOUS, {}),
    "norms": (VECTOR, DISCRETE, NORMS | dict(slowvalue=SlowConfig(every=3))),
    "carried": (VECTOR, DISCRETE, dict(replay_context=0)),
    "bfloat16": (VECTOR, MIXED, dict(dtype="bfloat16")),
}


def make(case: str = "vector", backend: str = "reference", kind: type[DreamerV3] = DreamerV3) -> DreamerV3:
    obs, act, changes = CASES[case]
    config = replace(size(Config(imag_length=2), "debug"), opt=FAST, **changes)
    return kind(obs, act, config, fd.load(backend), seed=3)


def learned(agent: DreamerV3, updates: int, rows: int = 2) -> list[Any]:
    """Everything that so many updates give and change."""
    carry, seen = agent.init_train(rows), []
    for seed in range(updates):
        carry, latents, metrics = agent.update(carry, batch(agent, rows, 4, seed=seed))
        seen.append((carry, latents, metrics))
    return [*seen, agent.state_dict()]


def acted(agent: DreamerV3, steps: int, n: int = 3, mode: str = "sample") -> list[Any]:
    """Everything that so many policy steps give and change."""
    carry, seen = agent.init_policy(n), []
    for seed in range(steps):
        obs = observation(agent, n, seed)
        obs["is_first"] = np.arange(n) == seed
        carry, action, latents = agent.policy(carry, obs, mode)
        seen.append((carry, action, latents))
    return [*seen, agent.state_dict()]


def assert_equal(ours: Any, theirs: Any, where: str = "") -> None:
    """Bit for bit, through everything that is nested."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            assert_equal(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, (list, tuple)):
        for i, pair in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(*pair, f"{where}/{i}")
    elif isinstance(theirs, Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), where
    else:
        assert np.array_equal(ours, theirs), where
