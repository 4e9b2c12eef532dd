"""The parity matrix: every op of every backend against the reference, in both precisions, at ragged sizes, from strided
inputs into poisoned memory, with every gradient; and what a backend refuses.

The error against float64 is at most twice (of gradients three times) the reference's own at the same precision.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream import ops
from fastdream.ops import reference

from .ops_tools import SMALL, Maker, Sizes
from .parity_cases import CASES, NAMES, Case

BACKENDS = [name for name in ops._BACKENDS if name != "reference"]
SIZES = {"small": SMALL, "ragged": Sizes(51, 37, 5, 19, 21, 3, 35)}  # no multiples of a vector, blocks of 17
FLOATS = (torch.float32, torch.float64)
FLOOR = {
    torch.float32: 2e-6,
    torch.float64: 1e-12,
}  # relative to the largest number; float64 is its own truth


def implemented(backend: str, op: str) -> Callable[..., Any]:
    """The backend's own function; the test is skipped where it has none here."""
    try:
        return getattr(ops.load("reference", **{op: backend}), op)
    except ValueError as error:
        pytest.skip(str(error))


def tensors(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples and lists."""
    if isinstance(tree, Tensor):
        return [tree]
    return [x for item in tree for x in tensors(item)] if isinstance(tree, (tuple, list)) else []


def changed(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A copy with fn applied to every tensor; what wants a gradient still does."""

    def copy(x: Tensor) -> Tensor:
        return fn(x.detach()).clone(memory_format=torch.preserve_format).requires_grad_(x.requires_grad)

    if isinstance(tree, list):
        return [changed(fn, item) for item in tree]
    if isinstance(tree, tuple):
        items = [changed(fn, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return copy(tree) if isinstance(tree, Tensor) else tree


def cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Floating tensors in this precision."""
    return lambda x: x.to(dtype) if x.is_floating_point() else x


def strided(x: Tensor) -> Tensor:
    """The same numbers with a gap after each. A single one cannot have gaps."""
    return torch.stack([x, x], -1)[..., 0] if x.dim() else x


def results(function: Callable[..., Any], args: tuple, gradients: bool) -> list[Tensor]:
    """All outputs, what was changed in place, and the gradient of every leaf; the same cotangents for everyone."""
    with torch.set_grad_enabled(gradients):
        returned = function(*args)
    changed_in_place = [x for arg in args if isinstance(arg, list) for x in tensors(tuple(arg))]
    outputs = tensors(returned)
    leaves = [x for x in tensors(args) if x.requires_grad]
    grads: tuple[Tensor | None, ...] = ()
    if gradients:
        draw = torch.Generator().manual_seed(7)
        roots = [x for x in outputs if x.requires_grad]
        cotangents = [torch.randn(x.shape, generator=draw, dtype=torch.float64).to(x) for x in roots]
        grads = torch.autograd.grad(roots, leaves, cotangents, allow_unused=True)
    filled = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=False)]
    return [x.detach() for x in (*outputs, *changed_in_place, *filled)]


def error(x: Tensor, true: Tensor) -> float:
    return float((x.double() - true.double()).abs().max()) if x.numel() else 0.0


def check(function: Callable[..., Any], op: str, case: Case, args: tuple, dtype: torch.dtype) -> None:
    """The rule, for everything that the op gives."""
    expected = getattr(reference, op)
    truth = results(expected, changed(cast(torch.float64), args), case.gradients)
    theirs = results(expected, changed(lambda x: x, args), case.gradients)
    ours = results(function, args, case.gradients)
    outputs = len(ours) - len([x for x in tensors(args) if x.requires_grad]) * case.gradients
    assert len(ours) == len(theirs) == len(truth)
    for i, (our, their, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert (our.shape, our.dtype) == (their.shape, their.dtype), i
        assert our.isfinite().all(), i
        allowed = (2 if i < outputs else 3) * error(their, true)
        allowed += FLOOR[dtype] * (1 + float(true.double().abs().max())) if true.numel() else 0
        assert error(our, true) <= allowed, (i, error(our, true), error(their, true))


def arguments(case: Case, sizes: str, rows: int, dtype: torch.dtype) -> tuple:
    return changed(cast(dtype), case.make(Maker(rows, torch.float64, SIZES[sizes]), rows))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_matrix_is_complete(backend: str, native: ModuleType):
    module = {"native": native}[backend]
    assert {op for op in ops.OPS if hasattr(module, op)} <= set(CASES) <= set(ops.OPS)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("op", "name"), NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_agrees_with_reference(
    backend: str, op: str, name: str, dtype: torch.dtype, sizes: str, poison: list[str]
):
    function, case = implemented(backend, op), CASES[op][name]
    for rows in (1, 3, 17):
        check(function, op, case, arguments(case, sizes, rows, dtype), dtype)
    assert poison or op == "gaussian_sample", "nothing was poisoned"  # which torch computes


@pytest.mark.parametrize(("op", "name"), NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_takes_strides_and_no_rows(backend: str, op: str, name: str):
    function, case = implemented(backend, op), CASES[op][name]
    check(function, op, case, changed(strided, arguments(case, "small", 5, torch.float32)), torch.float32)
    if op != "laprop_" and "mean" not in name:  # whose mean over nothing is NaN
        check(function, op, case, arguments(case, "small", 0, torch.float32), torch.float32)


@pytest.mark.parametrize(("op", "name"), NAMES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_threads_and_two_calls_agree(backend: str, op: str, name: str, two_threads: None):
    """Exactly, with the same number of threads."""
    function, case = implemented(backend, op), CASES[op][name]
    args = arguments(case, "ragged", 70, torch.float32)
    check(function, op, case, changed(lambda x: x, args), torch.float32)
    first, second = (results(function, changed(lambda x: x, args), case.gradients) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("op", [op for op in CASES if op not in ("lambda_return", "gather_sequences")])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision_is_refused_by_name_and_served_under_auto(backend: str, op: str):
    function, case = implemented(backend, op), next(iter(CASES[op].values()))
    args = arguments(case, "small", 3, torch.bfloat16)
    with pytest.raises(ValueError, match="expected torch.float32 or torch.float64"), torch.no_grad():
        function(*changed(lambda x: x, args))
    served = results(getattr(ops.load(), op), changed(lambda x: x, args), case.gradients)
    expected = results(getattr(reference, op), args, case.gradients)
    assert all(torch.equal(our, their) for our, their in zip(served, expected, strict=True))
