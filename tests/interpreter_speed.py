"""Triton's interpreter without what it does again and again.

For kernels as small as those of tests nearly all of its time goes into Triton's language and not into numbers. It
works out the same types and shapes for every value, and at every launch and call of a device function looks through
all of the language for what it must replace. Here it does each of that once in a process; results are the same to the
bit. What it has replaced stays so: nothing is compiled beside. For every sum of integers it also computes whether it
overflows, by six more operations, and unless it debugs, which it never does here, looks at none of them: left out.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any


def hasten() -> None:
    """From now on, in this process."""
    try:
        from triton.language import core
        from triton.language.semantic import TritonSemantic
        from triton.runtime import interpreter
    except ImportError:
        return
    interpreter._patch_lang = cache(interpreter._patch_lang)
    interpreter._LangPatchScope.restore = lambda scope: None
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._get_np_dtype = of_scalars(interpreter._get_np_dtype, core.dtype, core.uint64)
    core.block_type.__init__ = of_blocks(core.block_type.__init__, core.dtype)
    core.tensor.__init__ = of_tensors(core.tensor.__init__)
    TritonSemantic.broadcast_impl_value = of_equals(TritonSemantic.broadcast_impl_value)


def of_scalars(find: Callable[[Any], Any], numbers: type, address: Any) -> Callable[[Any], Any]:
    """NumPy's type of what a block or pointer holds; pointers, which are no keys, are held as `address`."""
    known = cache(find)
    return lambda kind: known(kind.scalar if type(kind.scalar) is numbers else address)


def of_blocks(make: Callable[..., None], numbers: type) -> Callable[..., None]:
    """The constructor of types of blocks, which computes those of numbers once; pointers have types of their own."""
    known: dict[tuple, dict[str, Any]] = {}

    def remember(self: Any, element_ty: Any, shape: Any) -> None:
        if type(element_ty) is not numbers:
            return make(self, element_ty, shape)
        key = element_ty.name, *(getattr(size, "value", size) for size in shape)
        if key not in known:
            make(self, element_ty, shape)
            known[key] = dict(vars(self))
        self.__dict__.update(known[key])

    return remember


def of_tensors(make: Callable[..., None]) -> Callable[..., None]:
    """The constructor of values: all but these three attributes follow from the shape."""
    known: dict[tuple, dict[str, Any]] = {}

    def remember(self: Any, handle: Any, type: Any) -> None:
        key = tuple(type.shape) if type.is_block() else ()
        if key not in known:
            make(self, handle, type)
            known[key] = dict(vars(self))
        self.__dict__.update(known[key])
        self.handle, self.type, self.dtype = handle, type, type.scalar

    return remember


def of_equals(broadcast: Callable[..., Any]) -> Callable[..., Any]:
    """What brings two values to one shape, which most have already."""

    def compare(self: Any, lhs: Any, rhs: Any) -> Any:
        left, right = (tuple(x.type.shape) if x.type.is_block() else () for x in (lhs, rhs))
        return (lhs, rhs) if left == right else broadcast(self, lhs, rhs)

    return compare
