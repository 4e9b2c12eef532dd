"""From which size on the native ops take less time than the reference: the table LEAST of fastdream/ops/auto_cpu.py.

    python benchmarks/crossover.py [OP...]

Each op is called as in `calls`, at all presets that are timed there by default, for batches from one state to a whole
one (of the first preset), forward and with gradients, both backends in turn. Its size is that of the tensor that its
rule looks at. Written into the table is the least size from which native was never the slower one; ops that win at
every size are not in it. What native loses at the largest size is said.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

BATCHES = ((1, 1), (1, 4), (4, 4), (4, 16), (16, 64))
CELLS = "gru", "layernorm_gru", "block_gru"  # one step of a core, from one row to all states of a batch
ROWS = ((1, 1), (16, 1), (64, 1), (256, 1), (1024, 1))
ROUNDS, NOISE = 7, 1.05  # a loss is more than what two runs of the same differ by


def measure(op: str, preset: str, batches: Sequence[tuple[int, int]]) -> Iterator[tuple[int, float]]:
    """Size and native's time over the reference's, at every batch and in every mode."""
    from benchmarks.calls import PLANS, forward, forward_backward, leaves
    from benchmarks.clock import interleaved, repeated
    from benchmarks.floors import tensors
    from benchmarks.shapes import shape
    from fastdream import ops as fd
    from fastdream.ops.auto import RULES

    plan, functions = PLANS[op], {name: getattr(fd.load(name), op) for name in ("reference", "native")}
    for batch, length in batches:
        call = plan.call(replace(shape(preset), batch=batch, length=length))
        runs: list[dict[str, Callable[[], Any]]] = [
            {k: partial(forward, f, call) for k, f in functions.items()}
        ]
        if plan.backward:
            outputs = tensors(functions["reference"](*call.args, **call.kwargs))
            grads = [x.new_ones(x.shape) for x in outputs if x.requires_grad]
            given = call, leaves(call), grads
            runs.append({k: partial(forward_backward, f, *given) for k, f in functions.items()})
        for run in runs:
            samples = interleaved({name: repeated(call) for name, call in run.items()}, ROUNDS)
            ours, theirs = (median(s.wall for s in samples[name]) for name in ("native", "reference"))
            yield next(tensors(call.args[RULES[op].at])).numel(), ours / theirs


def least(ratios: list[tuple[int, float]]) -> int | None:
    """The least size from which native never loses; 0 if it never does, None if it does at the largest."""
    sizes, lost = sorted({size for size, _ in ratios}), [size for size, ratio in ratios if ratio > NOISE]
    if not lost:
        return 0
    return next((size for size in sizes if size > max(lost)), None)


def main() -> None:
    """Measure and print."""
    import torch

    from benchmarks.calls import PLANS
    from fastdream.allocator import keep_freed_memory
    from fastdream.ops import native
    from fastdream.ops.auto import RULES

    parser = argparse.ArgumentParser(
        "crossover.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [op for op in RULES if hasattr(native, op)]
    parser.add_argument("ops", nargs="*", metavar="OP", help=", ".join(known))
    names = parser.parse_args().ops or known
    if unknown := set(names) - set(known):
        parser.error(f"no ops: {', '.join(sorted(unknown))}; known are {', '.join(known)}")

    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    keep_freed_memory()  # as training does
    table: dict[str, int] = {}
    for op in names:
        ratios = []
        for i, preset in enumerate(PLANS[op].presets):
            batches = ROWS if op in CELLS else BATCHES
            found = list(measure(op, preset, batches[: -1 if i else None]))
            words = ", ".join(f"{size}: {ratio:.2f}" for size, ratio in found)
            print(f"{op} at {preset}: {words}", file=sys.stderr, flush=True)
            ratios += found
        size = least(ratios)
        if size is None:
            print(f"{op}: native loses at its largest size", file=sys.stderr)
        elif size:
            table[op] = size
    print(f"LEAST: dict[str, int] = {table}")


if __name__ == "__main__":
    # As in cpu.py: the folder is no installed package.
    package = sys.modules["benchmarks"] = ModuleType("benchmarks")
    package.__path__ = [str(Path(__file__).parent)]
    main()
