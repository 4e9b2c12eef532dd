"""What tests of integrations share: draws of both sides from the same numbers, and the rule for errors."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdream.ops.reference.categorical import inverse_cdf


@contextmanager
def replayed(steps: Sequence[Tensor], whole: Sequence[Tensor]) -> Iterator[None]:
    """Uniform numbers that `torch.multinomial` draws by, one tensor a call, and that `uniform_` fills in."""
    steps, whole = list(steps), list(whole)

    def multinomial(probs: Tensor, count: int, replacement: bool = False) -> Tensor:
        return inverse_cdf(probs, steps.pop(0).reshape(-1))[:, None]

    def uniform(x: Tensor, *args: Any) -> Tensor:
        given = whole.pop(0)
        assert x.shape == given.shape
        return x.copy_(given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "multinomial", multinomial)
        patch.setattr(Tensor, "uniform_", uniform)
        yield


def drawn(probs: Tensor) -> Tensor:
    """One-hots of the last axis with the gradient of the probabilities, by `torch.multinomial`."""
    index = torch.multinomial(probs.detach().flatten(0, -2), 1, True).view(probs.shape[:-1])
    onehot = nn.functional.one_hot(index, probs.shape[-1]).to(probs.dtype)
    return onehot + probs - probs.detach()


def mixed_probs(logit: Tensor, unimix: float) -> Tensor:
    return (1 - unimix) * logit.softmax(-1) + unimix / logit.shape[-1]


def randomized(module: nn.Module, seed: int = 0) -> Any:
    """With random parameters everywhere, that gradients reach."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=stream)
            p.copy_(1 + 0.2 * noise if p.dim() == 1 else 2 * noise / p[0].numel() ** 0.5)
    return module


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of nested containers that has numbers."""
    if isinstance(tree, Tensor):
        yield tree
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ():
        yield from tensors(item)


def results(call: Callable[..., Any], module: Any, inputs: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
    """What it gives, and gradients of a weighted sum of that: of parameters, then of inputs that want one."""
    outputs = list(tensors(call(module, *inputs)))
    roots = [y for y in outputs if y.requires_grad]
    stream = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=stream).to(y.dtype) for y in roots]
    wanted = [*module.parameters(), *(x for x in inputs if x.requires_grad)]
    found = torch.autograd.grad(roots, wanted, weights, allow_unused=True)
    assert any(x is not None for x in found)
    return [y.detach() for y in outputs], [
        torch.zeros_like(p) if x is None else x for x, p in zip(found, wanted, strict=True)
    ]


def assert_as_good(
    stock: Callable[..., Any], ours: Callable[..., Any], module: nn.Module, inputs: Sequence[Tensor]
) -> None:
    """Error against float64 at most twice that of the other codebase, three times for gradients."""
    wide = [
        x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs
    ]
    truth = results(stock, copy.deepcopy(module).double(), wide)
    theirs, found = results(stock, module, inputs), results(ours, module, inputs)
    for times, *parts in zip((2, 3), found, theirs, truth, strict=True):
        for i, (our, their, true) in enumerate(zip(*parts, strict=True)):
            assert (our.dtype, our.shape) == (their.dtype, their.shape), i
            error, their_error = (float((x - true).abs().max()) for x in (our, their))
            assert error <= times * their_error + 2e-6 * (1 + float(true.abs().max())), (
                times,
                i,
                error,
                their_error,
            )
