"""What the tests of integrations share: the same call by the other codebase's functions and by ours."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .ops_tools import leaves, mapped


@contextmanager
def same_draws(seed: int = 0) -> Iterator[None]:
    """Uniform numbers of one stream for our Gumbel draws and, as exponential ones, for torch's."""
    stream = torch.Generator().manual_seed(seed)

    def uniform(x: Tensor) -> Tensor:
        return torch.rand(x.shape, generator=stream).clamp_min(1e-7).to(x.dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", uniform)
        patch.setattr(Tensor, "exponential_", lambda x: x.copy_(-uniform(x).log()))
        yield


def wanting(*shape: int) -> Tensor:
    """Normal numbers that want a gradient."""
    return torch.randn(shape).requires_grad_()


def randomized(module: nn.Module, seed: int = 0) -> Any:
    """With small random parameters everywhere, that gradients reach."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            # A vector is a bias or the scale of a norm.
            noise = torch.randn(p.shape, generator=stream) / max(1, p[0].numel()) ** 0.5
            p.copy_(1 + 0.1 * noise if p.dim() == 1 else noise)
    return module


def results(
    call: Callable[..., Any], module: Any, inputs: tuple, seed: int = 0
) -> tuple[list[Tensor], list[Tensor]]:
    """What the call gives, and the gradients of a weighted sum of it: of parameters and of inputs that want one."""
    torch.manual_seed(seed)
    with same_draws(seed):
        outputs = list(leaves(call(module, *inputs)))
    stream = torch.Generator().manual_seed(1)
    grads = [torch.randn(y.shape, generator=stream).to(y.dtype) for y in outputs]
    wanted = [*module.parameters(), *(x for x in leaves(inputs) if x.requires_grad)]
    found = torch.autograd.grad(outputs, wanted, grads, allow_unused=True)
    assert any(x is not None for x in found)
    return [y.detach() for y in outputs], [torch.zeros(0) if x is None else x for x in found]


def assert_as_good(
    stock: Callable[..., Any],
    ours: Callable[..., Any],
    module: nn.Module,
    inputs: tuple,
    rounds: bool = False,
) -> None:
    """Error against float64 at most twice (gradients: three times) that of the other codebase.

    rounds  where that makes everything float32, so that there is no float64 to compare with, only itself.
    """
    theirs = results(stock, module, inputs)
    found = results(ours, module, inputs)
    if rounds:
        truth = theirs
    else:
        wide = mapped(
            lambda x: x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x,
            inputs,
        )
        truth = results(stock, copy.deepcopy(module).double(), wide)
    for times, *parts in zip((2, 3), found, theirs, truth, strict=True):
        for i, (our, their, true) in enumerate(zip(*parts, strict=True)):
            assert our.dtype == their.dtype and our.shape == their.shape, i
            if our.numel():
                error, their_error = ((x.double() - true.double()).abs().max().item() for x in (our, their))
                floor = (
                    (64 if rounds else 16) * torch.finfo(torch.float32).eps * (1 + true.abs().max().item())
                )
                assert error <= times * their_error + floor, (times, i, error, their_error, floor)
