"""Where what follows an op has no gradient for it, none comes back through the op, whichever backend it is of."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream import ops
from fastdream.ops import triton as backend

from .parity_cases import CASES
from .parity_tools import arguments, changed, tensors
from .test_triton import DEVICE, HERE

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
LEARNED = [(op, name) for op, found in CASES.items() if (name := next(iter(found))) and found[name].gradients]


class _Lost(torch.autograd.Function):
    """The same numbers, and nothing on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> None:
        return None


@pytest.mark.parametrize(("op", "name"), LEARNED)
@pytest.mark.parametrize("name_of_backend", ["native", "triton"])
def test_none_comes_back(name_of_backend: str, op: str, name: str):
    if name_of_backend == "triton" and name not in HERE.get(op, ()):
        pytest.skip(f"triton leaves {op} {name} to the reference")
    place = DEVICE if name_of_backend == "triton" else "cpu"
    try:
        function = getattr(ops.load("reference", device=place, **{op: name_of_backend}), op)
    except ValueError as error:
        pytest.skip(str(error))
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
