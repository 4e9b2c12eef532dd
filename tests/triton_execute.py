"""`python -m tests.triton_execute CAPABILITY DTYPE OP CASE[@SIZE]...`: run ops by their compiled kernels, on a CPU.

Kernels are compiled as for a GPU of this capability, and `ptx_machine` executes what comes. Writes, for every CASE of
the parity matrix, the errors of the op's results in this precision, those of the reference, and their sizes, as JSON.
SIZE is a number of deter, or a preset, whose CASE is one of `triton_cases`. Runs in a process of its own, where Triton
does not interpret.
"""

import json
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops import triton as backend
from fastdream.ops.triton import library

from . import triton_cases, triton_earlier
from .ops_tools import Maker
from .parity_cases import CASES
from .parity_tools import SIZES, cast, changed, error, results
from .ptx_machine import BASE, Memory, Threads
from .ptx_text import Program, parse
from .triton_agents import on_tensors_of_the_host
from .triton_compile import Launch, compile_launch, specialised, target

ROWS = 17
MANY = 150  # where sizes are a preset's: a whole tile, and a part of one, as there are no smaller ones for many rows
LANES = 2**13  # threads that are executed at once
APART = 512  # bytes from where one tensor's memory may begin to the next


LISTED: dict[int, Tensor] = {}  # what tables of addresses name


def addresses(tensors: Sequence[Tensor]) -> Tensor:
    """In the place of `pointers.addresses`."""
    LISTED.update((x.data_ptr(), x) for x in tensors)
    return torch.tensor([x.data_ptr() for x in tensors])


@cache
def compiled(launch: Launch, capability: int) -> tuple[Program, int, int]:
    """The kernel's program, threads of one, and bytes of shared memory."""
    made = compile_launch(launch, capability)
    return parse(made.asm["ptx"]), 32 * made.metadata.num_warps, made.metadata.shared


def given(kind: Any, value: Any) -> list[Any]:
    """The arguments that a compiled kernel still has, one after the other."""
    if isinstance(kind, tuple):
        return [x for pair in zip(kind, value, strict=True) for x in given(*pair)]
    return [] if kind == "constexpr" else [value]


def execute(kernel: Any, grid: tuple[int, ...], args: tuple[Any, ...], constants: dict[str, Any]) -> None:
    """In the place of `library.run`: all programs of the grid, some at once."""
    launch = specialised(kernel, args, constants)
    program, threads, shared = compiled(launch, target[0])
    named = dict(zip(kernel.arg_names, args, strict=False)) | constants
    values = [x for name, kind in launch.signature for x in given(kind, named[name])]
    used = [x for x in values if isinstance(x, Tensor)]
    tables = [x for x in used if x.dtype == torch.int64 and x.dim() == 1 and LISTED.keys() >= {*x.tolist()}]
    used += [LISTED[at] for table in tables for at in table.tolist()]
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in used}
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

    for table in tables:
        at, key = bits(table) - BASE, table.untyped_storage().data_ptr()
        memory.views[8][at // 8 : at // 8 + len(table)] = [bits(LISTED[x]) for x in table.tolist()]
        bytes_of.pop(key, None)  # whose true addresses stay
    # What Triton adds is memory that no kernel here asks for.
    params = [*map(bits, values), *[0] * (len(program.params) - len(values))]
    sides = (*grid, 1, 1)[:3]
    places, some = [x[::-1] for x in np.ndindex(*sides[::-1])], max(1, LANES // threads)
    for i in range(0, len(places), some):
        Threads(program, memory, threads, shared, params, places[i : i + some], sides).run()
    for key, x in bytes_of.items():
        x[:] = memory.raw[begin[key] : begin[key] + len(x)]


def made(op: str, name: str, size: str, dtype: torch.dtype) -> tuple[tuple[Any, ...], bool]:
    """Arguments, and whether the op has gradients."""
    if size in triton_cases.PRESETS:
        return triton_cases.made(op, name, size, dtype), triton_cases.CASES[op][name].gradients
    case, sizes = CASES[op][name], SIZES["ragged"]
    sizes = sizes._replace(deter=int(size or sizes.deter))
    return triton_cases.in_precision(
        op, case.make(Maker(ROWS, torch.float32, sizes), ROWS), dtype
    ), case.gradients


def errors(op: str, name: str, dtype: torch.dtype) -> list[tuple[float, float, float]]:
    """Of every result: ours, the reference's in this precision, and the largest true number."""
    name, _, size = name.partition("@")
    args, gradients = made(op, name, size, dtype)
    wide = tuple(torch.float64 if isinstance(arg, torch.dtype) else arg for arg in args)
    truth = results(getattr(reference, op), changed(cast(torch.float64), wide), gradients)
    theirs = results(getattr(reference, op), changed(lambda x: x, args), gradients)
    ours = results(getattr(backend, op), changed(lambda x: x, args), gradients)
    largest = [float(x.double().abs().max()) for x in truth]
    return [
        (error(a, c), error(b, c), size) for a, b, c, size in zip(ours, theirs, truth, largest, strict=True)
    ]


def main(capability: str, precision: str, op: str, *names: str) -> None:
    assert not backend.interpreted(), "TRITON_INTERPRET is set"
    target[0], dtype = int(capability), getattr(torch, precision)
    library.register, library.capability = on_tensors_of_the_host, lambda device: target[0]
    library.run = execute
    # Not before: as it is imported, so is what takes `capability` from the library.
    from fastdream.ops.triton import optim, posterior

    optim.addresses = addresses
    triton_cases.ROWS, triton_earlier.LENGTH = MANY, MANY // triton_earlier.EARLIER["v1"].batch
    posterior.MANY = 1  # programs have as many rows as they take, as where there are hundreds of states
    with np.errstate(all="ignore"):
        json.dump([errors(op, name, dtype) for name in names], sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
