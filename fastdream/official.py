"""Parameters to and from the official JAX implementation of DreamerV3, by its names and in its layouts.

`modules` is a dictionary from the official top-level names ("enc", "dyn", "dec", "rew", "con", "pol", "val",
"slowval", "retnorm", ...) to our modules; a converter looks at no other names. Where the layouts differ:
dense kernels are [in, out], convolution kernels [height, width, in, out]; block kernels are the same in both.
"""

import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastdream.convs import Conv
from fastdream.nets import MLP, Children, Dense, NormAct
from fastdream.normalize import Normalize

Convert = Callable[[Tensor], Tensor]


class Entry(NamedTuple):
    """One of our tensors, and how values of its shape turn into the official layout and back."""

    tensor: Tensor
    to_official: Convert
    to_ours: Convert


def name_map(modules: Mapping[str, nn.Module]) -> dict[str, Entry]:
    """Official name -> entry, for every parameter of the modules and every statistic of normalisers.

    Raises ValueError for a parameter that the official code has no name for, such as those of other cores.
    """
    entries: dict[str, Entry] = {}
    for name, module in modules.items():
        for path, entry in _walk(module, name, name + "norm"):
            assert path not in entries, f"two parameters are called {path}"
            entries[path] = entry
    return entries


def to_official(modules: Mapping[str, nn.Module]) -> dict[str, np.ndarray]:
    """Copies of all parameters as float32 arrays under their official names."""
    return {
        name: entry.to_official(entry.tensor.detach()).float().cpu().numpy().copy()
        for name, entry in name_map(modules).items()
    }


@torch.no_grad()
def from_official(arrays: Mapping[str, np.ndarray], modules: Mapping[str, nn.Module]) -> None:
    """Copy official arrays into our modules, in place.

    Arrays of other top-level names (the optimiser, counters, heads that are not asked for) are left out.
    Raises ValueError, before anything is changed, that names all missing, unknown and mis-shaped arrays.
    """
    entries = name_map(modules)
    faults = [f"missing: {name}" for name in entries if name not in arrays]
    faults += [f"unknown: {name}" for name in arrays if name.split("/")[0] in modules and name not in entries]
    for name in entries.keys() & arrays.keys():
        ours, theirs = tuple(entries[name].to_official(entries[name].tensor).shape), arrays[name].shape
        if ours != theirs:
            faults.append(f"shape: {name} is {theirs}, this agent has {ours}")
    if faults:
        listing = "\n  ".join(sorted(faults))
        raise ValueError(f"the official parameters do not fit this agent, its sizes or spaces:\n  {listing}")
    for name, entry in entries.items():
        values = torch.from_numpy(np.array(arrays[name], np.float32))
        entry.tensor.copy_(entry.to_ours(values))


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """The parameters in `agent.pkl` of an official checkpoint, by official name.

    Nothing but NumPy arrays can be unpickled. Raises ValueError where the file holds something else.
    """
    with open(path, "rb") as file:
        try:
            data = _NumpyUnpickler(file).load()
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError(f"{path} is damaged or no pickle file ({error}); copy it again") from error
    params = data.get("params") if isinstance(data, dict) else None
    if not isinstance(params, dict) or not all(isinstance(x, np.ndarray) for x in params.values()):
        raise ValueError(
            f"{path} is not the agent.pkl of an official checkpoint: it has no dictionary of 'params'"
        )
    return params


class _NumpyUnpickler(pickle.Unpickler):
    """Rebuilds arrays and plain containers, and refuses everything that could run code."""

    # NumPy 2 renamed numpy.core; files of both kinds exist.
    ALLOWED = frozenset(
        [("numpy", "ndarray"), ("numpy", "dtype")]
        + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
        + [(f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")]
        + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"the checkpoint contains {module}.{name}; only NumPy arrays are read")
        ours = "_core" if hasattr(np, "_core") else "core"
        return super().find_class(module.replace("._core", ".core").replace(".core", f".{ours}"), name)


def _walk(module: nn.Module, path: str, norm_path: str) -> Iterator[tuple[str, Entry]]:
    """Entries of a module whose linear parameters are called path/... and whose norm norm_path/..."""
    if isinstance(module, Normalize):
        yield from _statistics(module, path)
        return
    if isinstance(module, NormAct):
        yield from _layer(module, path, norm_path)
    else:
        for name, _ in module.named_parameters(recurse=False):
            raise ValueError(
                f"{path}: the official DreamerV3 has no parameter like {name!r} of {type(module).__name__}"
            )
    for name, child in module.named_children():
        yield from _walk(child, *_child_paths(module, path, name))


def _child_paths(module: nn.Module, path: str, name: str) -> tuple[str, str]:
    if isinstance(module, MLP):
        return f"{path}/linear{name}", f"{path}/norm{name}"
    if isinstance(module, nn.ModuleList):
        return f"{path}{name}", f"{path}{name}norm"
    if isinstance(module, Children):
        name = name.replace("%2E", ".")
    elif name == "core":  # The official recurrent model has its core's layers among its own.
        return path, path
    return f"{path}/{name}", f"{path}/{name}norm"


def _layer(module: NormAct, path: str, norm_path: str) -> Iterator[tuple[str, Entry]]:
    if isinstance(module, Dense):
        convert = _same if module.blocks else _transpose
        yield f"{path}/kernel", Entry(module.weight, convert, convert)
    elif isinstance(module, Conv):
        yield f"{path}/kernel", Entry(module.weight, _oihw_to_hwio, _hwio_to_oihw)
    else:
        norm_path = path
    for name, owner in (("bias", path), ("scale", norm_path), ("shift", norm_path)):
        tensor = getattr(module, name, None)
        if tensor is not None:
            yield f"{owner}/{name}", Entry(tensor, _same, _same)


def _statistics(module: Normalize, path: str) -> Iterator[tuple[str, Entry]]:
    config = module.config
    if config.impl == "none":
        return
    names = ("lo", "hi") if config.impl == "perc" else ("mean", "sqrs")
    tensors = dict(zip(names, (module.first, module.second), strict=True))
    if config.debias:
        tensors["corr"] = module.corr
    for name, tensor in tensors.items():
        yield f"{path}/{name}/value", Entry(tensor, _same, _same)


def _same(x: Tensor) -> Tensor:
    return x


def _transpose(x: Tensor) -> Tensor:
    return x.T


def _oihw_to_hwio(x: Tensor) -> Tensor:
    return x.permute(2, 3, 1, 0)


def _hwio_to_oihw(x: Tensor) -> Tensor:
    return x.permute(3, 2, 0, 1)
