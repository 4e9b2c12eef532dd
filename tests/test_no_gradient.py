"""Where what follows an op has no gradient for it, none comes back through the op, whichever backend it is of."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import native as native_ops
from fastdream.ops import triton as backend

from .parity_cases import CASES
from .parity_tools import arguments, changed, tensors
from .test_triton import DEVICE, HERE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
FIRST = [(op, name) for op, found in CASES.items() if (name := next(iter(found))) and found[name].gradients]
LEARNED = [("native", op, name) for op, name in FIRST if hasattr(native_ops, op)]
LEARNED += [("triton", op, name) for op, name in FIRST if name in HERE.get(op, ())]


class _Lost(torch.autograd.Function):
    """The same numbers, and nothing on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@pytest.mark.parametrize(("name_of_backend", "op", "name"), LEARNED)
def test_none_comes_back(name_of_backend: str, op: str, name: str, native: ModuleType):
    place = DEVICE if name_of_backend == "triton" else "cpu"
    function = getattr(native if name_of_backend == "native" else backend, op)
    args = changed(lambda x: x.to(place), arguments(CASES[op][name], "small", 2, torch.float32))
    leaves = [x for x in tensors(args) if x.requires_grad]
    lost = [_Lost.apply(x).sum() for x in tensors(function(*args)) if x.requires_grad]
    grads = torch.autograd.grad(lost, leaves, allow_unused=True)
    assert lost and not any(grad is not None and grad.any() for grad in grads)


def test_only_means_lead_back():
    """What else of a tensor is summed up cuts it off from what it is made of."""
    x = torch.randn(5, device=DEVICE, requires_grad=True)
    numbers = backend.summarize([backend.symlog(x), backend.symexp(x)], ["max", "mean"])
    (ours,) = torch.autograd.grad(numbers.sum(), x)
    (theirs,) = torch.autograd.grad(backend.symexp(x).mean(), x)
    assert torch.equal(ours, theirs)
    assert not backend.summarize([backend.symlog(x)], ["max"]).requires_grad
