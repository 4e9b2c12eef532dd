"""How an op is compared with the reference: arguments in a precision, all results, and the rule for their errors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdream.ops import reference

from .ops_tools import SMALL, Maker, Sizes
from .parity_cases import Case

SIZES = {"small": SMALL, "ragged": Sizes(51, 37, 5, 19, 21, 3, 35)}  # no multiples of a vector, blocks of 17
# Relative to the largest number. float64 is its own truth; in half precision it is the rounding of the result.
FLOOR = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def tensors(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples and lists."""
    if isinstance(tree, Tensor):
        return [tree]
    return [x for item in tree for x in tensors(item)] if isinstance(tree, (tuple, list)) else []


def changed(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """A copy with fn applied to every tensor; what wants a gradient still does, and gaps in memory are as they were."""

    def copy(x: Tensor) -> Tensor:
        return copied(fn(x.detach())).requires_grad_(x.requires_grad)

    if isinstance(tree, list):
        return [changed(fn, item) for item in tree]
    if isinstance(tree, tuple):
        items = [changed(fn, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return copy(tree) if isinstance(tree, Tensor) else tree


def copied(x: Tensor) -> Tensor:
    """The same numbers with the same strides, which `clone` keeps only where there are no gaps; NaN lies in these."""
    if 0 in x.stride() or not x.numel():
        return x.clone()
    extent = 1 + sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    memory = x.new_full((extent,), torch.nan) if x.is_floating_point() else x.new_zeros(extent)
    return memory.as_strided(x.shape, x.stride()).copy_(x)


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


def check(function: Callable[..., Any], op: str, case: Case, args: tuple, dtype: torch.dtype) -> list[Tensor]:
    """The rule, for everything that the op gives, which is returned."""
    expected = getattr(reference, op)
    wide = tuple(
        torch.float64 if isinstance(arg, torch.dtype) else arg for arg in args
    )  # or told to compute in
    truth = results(expected, changed(cast(torch.float64), wide), case.gradients)
    theirs = results(expected, changed(lambda x: x, args), case.gradients)
    ours = results(function, args, case.gradients)
    outputs = len(ours) - len([x for x in tensors(args) if x.requires_grad]) * case.gradients
    assert len(ours) == len(theirs) == len(truth)
    for i, (our, their, true) in enumerate(zip(ours, theirs, truth, strict=True)):
        assert (our.shape, our.dtype) == (their.shape, their.dtype), i
        assert our.isfinite().all(), i
        allowed = (2 if i < outputs else 3) * error(their, true)
        allowed += FLOOR[dtype] * (1 + float(true.double().abs().max())) if true.numel() else 0
        assert error(our, true) <= allowed, (i, error(our, true), error(their, true), allowed)
    return ours


def arguments(case: Case, sizes: str, rows: int, dtype: torch.dtype) -> tuple:
    return changed(cast(dtype), case.make(Maker(rows, torch.float64, SIZES[sizes]), rows))


def far(logit: Tensor, noise: Tensor, unimix: float) -> Tensor:
    """[N] where no draw of a row is so near to a limit between classes that rounding may decide."""
    cdf = reference.unimix_log_probs(logit.double(), unimix).exp().cumsum(-1)
    return ((cdf - noise[..., None]).abs() > 1e-5).flatten(1).all(1)
