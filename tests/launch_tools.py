"""How often work is started on a device, counted on a CPU."""

from collections import Counter
from typing import Any

from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from fastdream.ops.triton import library

from .parity_tools import tensors


class _Watch(TorchDispatchMode):
    """Counts torch's ops that are neither views nor allocations, also those inside of our ops."""

    def __init__(self, names: Counter[str]) -> None:
        super().__init__()
        self._names = names

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "fastdream":
            key = getattr(DispatchKey, tensors(args)[0].device.type.upper())
            with self:
                return func._op_dk(key, *args, **kwargs)
        result, name = func(*args, **kwargs), func._schema.name.partition("::")[2]
        views = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        # What may give a view, as `to` or `reshape`, gives a copy otherwise.
        view = name in ("detach", "detach_", "_unsafe_view") or (views and _shared(result, args))
        if not (view or "empty" in name):
            self._names[name] += 1
        return result


def _shared(result: Any, args: Any) -> bool:
    """Whether all that an op returned lies in memory that it was given."""
    given = {x.untyped_storage().data_ptr() for x in tensors(args)}
    return all(x.untyped_storage().data_ptr() in given for x in tensors(result))


class Launches:
    """Counts what starts work on a device while it is entered, by name: Triton's kernels, and torch's ops.

    compute=False starts no kernel of Triton's: what it would have written is then anything.
    """

    def __init__(self, compute: bool = True) -> None:
        self.names: Counter[str] = Counter()
        self._compute, self._watch = compute, _Watch(self.names)

    @property
    def count(self) -> int:
        return self.names.total()

    def __enter__(self) -> "Launches":
        self._run = library.run
        library.run = self._counted
        self._watch.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._watch.__exit__(*exception)
        library.run = self._run

    def _counted(self, kernel: Any, grid: tuple[int, ...], *others: Any) -> None:
        self.names[kernel.fn.__name__] += 0 not in grid
        if self._compute:
            with _disable_current_modes():
                self._run(kernel, grid, *others)
