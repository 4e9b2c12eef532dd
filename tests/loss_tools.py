"""Comparison of compiled ops that have several outputs with the reference in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Op = Callable[..., Any]


def is_float(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def outputs(result: Any) -> list[Tensor]:
    """The tensors that an op returns."""
    return list(result) if isinstance(result, tuple) else [result]


def value_and_gradients(op: Op, args: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs that are numbers, and gradients of a weighted sum of them in the arguments that want one."""
    results = [x for x in outputs(op(*args)) if x.is_floating_point()]
    wanted = [x for x in args if is_float(x) and x.requires_grad]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in results]
    return [x.detach() for x in results], list(torch.autograd.grad(results, wanted, weights))


def cast(args: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """The same arguments with floating-point tensors in dtype, those with gradient as leaves."""
    return [x.detach().to(dtype).requires_grad_(x.requires_grad) if is_float(x) else x for x in args]


def assert_as_good(op: Op, theirs: Op, args: Sequence[Any]) -> None:
    """Error against float64 at most twice that of the reference in the same dtype, three times for gradients.

    In float64 the reference is its own truth, so the floor is what rounding may differ by.
    """
    dtype = next(x.dtype for x in args if is_float(x))
    floor = (8 if dtype == torch.float32 else 64) * torch.finfo(dtype).eps
    results = [
        value_and_gradients(*call)
        for call in ((theirs, cast(args, torch.float64)), (op, args), (theirs, args))
    ]
    for factor, truth, ours, reference in zip((2, 3), *results, strict=True):
        for i, (true, our, their) in enumerate(zip(truth, ours, reference, strict=True)):
            assert our.shape == true.shape and our.dtype == dtype, (i, our.shape, our.dtype)
            if our.numel():
                error, allowed = ((x.double() - true).abs().max().item() for x in (our, their))
                limit = factor * allowed + floor * (1 + true.abs().max().item())
                assert error <= limit, (factor, i, error, allowed)
