"""`python -m tests.triton_execute OP CASE[@DETER]...`: run ops by the compiled code of their kernels, on a CPU.

Kernels are compiled for sm_90 as a GPU's would be, and `ptx_machine` executes what comes. Writes, for every CASE of the
parity matrix, the errors of the op's results in float32, those of the reference, and their sizes, as JSON. Runs in a
process of its own, where Triton does not interpret.
"""

import json
import sys
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.triton import library

from .ops_tools import Maker
from .parity_cases import CASES
from .parity_tools import SIZES, cast, changed, error, results
from .ptx_machine import BASE, Memory, Program, Threads, parse
from .triton_agents import on_tensors_of_the_host
from .triton_compile import Launch, compile_launch, specialised

CAPABILITY = 90
ROWS = 17
APART = 512  # bytes from where one tensor's memory may begin to the next


@cache
def compiled(launch: Launch) -> tuple[Program, int, int]:
    """The kernel's program, threads of one, and bytes of shared memory."""
    made = compile_launch(launch, CAPABILITY)
    return parse(made.asm["ptx"]), 32 * made.metadata.num_warps, made.metadata.shared


def given(kind: Any, value: Any) -> list[Any]:
    """The arguments that a compiled kernel still has, one after the other."""
    if isinstance(kind, tuple):
        return [x for pair in zip(kind, value, strict=True) for x in given(*pair)]
    return [] if kind == "constexpr" else [value]


def execute(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """In the place of `library.run`: all programs of the grid, one after the other."""
    launch = specialised(kernel, args, constants)
    program, threads, shared = compiled(launch)
    named = dict(zip(kernel.arg_names, args, strict=False)) | constants
    values = [x for name, kind in launch.signature for x in given(kind, named[name])]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in values if isinstance(x, Tensor)}
    begin, end = {}, APART
    for key, storage in storages.items():
        begin[key], end = end, end + -(-storage.nbytes() // APART) * APART + APART
    memory = Memory(end, BASE, known=False)
    bytes_of = {key: torch.empty(0, dtype=torch.uint8).set_(x).numpy() for key, x in storages.items()}
    for key, x in bytes_of.items():
        memory.raw[begin[key] : begin[key] + len(x)] = x
        memory.known[begin[key] : begin[key] + len(x)] = True

    def bits(x: Any) -> Any:
        if isinstance(x, Tensor):
            return BASE + begin[x.untyped_storage().data_ptr()] + x.storage_offset() * x.element_size()
        return np.float32(x).view(np.uint32) if isinstance(x, float) else x

    # What Triton adds is memory that no kernel here asks for.
    params = [*map(bits, values), *[0] * (len(program.params) - len(values))]
    sides = (*grid, 1, 1)[:3]
    for place in np.ndindex(*sides[::-1]):
        Threads(program, memory, threads, shared, params, place[::-1], sides).run()
    for key, x in bytes_of.items():
        x[:] = memory.raw[begin[key] : begin[key] + len(x)]


def errors(op: str, name: str, deter: str) -> list[tuple[float, float, float]]:
    """Of every result: ours, the reference's in float32, and the largest true number."""
    case, sizes = CASES[op][name], SIZES["ragged"]
    sizes = sizes._replace(deter=int(deter or sizes.deter))
    args = case.make(Maker(ROWS, torch.float32, sizes), ROWS)
    truth = results(getattr(reference, op), changed(cast(torch.float64), args), case.gradients)
    theirs = results(getattr(reference, op), changed(lambda x: x, args), case.gradients)
    ours = results(getattr(backend, op), changed(lambda x: x, args), case.gradients)
    largest = [float(x.double().abs().max()) for x in truth]
    return [
        (error(a, c), error(b, c), size) for a, b, c, size in zip(ours, theirs, truth, largest, strict=True)
    ]


def main(op: str, *names: str) -> None:
    assert not backend.interpreted(), "TRITON_INTERPRET is set"
    library.register, library.capability = on_tensors_of_the_host, lambda device: CAPABILITY
    library.run = execute
    # Not before: as it is imported, so is what takes `capability` from the library.
    from fastdream.ops.triton import posterior

    posterior.MANY = 1  # programs have as many rows as they take, as where there are hundreds of states
    with np.errstate(all="ignore"):
        json.dump([errors(op, *name.partition("@")[::2]) for name in names], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
