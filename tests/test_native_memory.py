"""Tensors that are not what lies in their memory, given to ops that read there past torch's dispatcher."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map_only

from fastdream.ops import reference

from .ops_tools import H
from .test_native_policy import arguments, plain

pytestmark = pytest.mark.usefixtures("native")


class Elsewhere(torch.Tensor):
    """Stands for a tensor that lies elsewhere, as quantised and distributed ones do."""

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "Elsewhere":
        new = torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)  # type: ignore[attr-defined]
        new.held = held
        return new

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(cls, lambda x: x.held, (args, kwargs or {}))
        return op(*args, **kwargs)


def test_vectors_with_gaps_are_read_at_each_call(native: ModuleType):
    """Of which a copy was acted with for ever, where weights had no gaps."""
    args, wide = list(plain(arguments(2), torch.float32)), torch.randn(2 * H)
    deter = args[1].core.deter._replace(bias=wide[::2])
    args[1] = args[1]._replace(core=args[1].core._replace(deter=deter))
    for _ in range(2):
        ours, theirs = native.policy_step(*args), reference.policy_step(*args)
        torch.testing.assert_close(ours[0].deter, theirs[0].deter)
        wide.mul_(3)


def test_tensors_that_are_not_what_lies_in_their_memory(native: ModuleType):
    """A subclass of Tensor, of which there was a null pointer to read from; and views with turned signs."""
    args = plain(arguments(3), torch.float32)
    (_, _, expected, _), expected_action = reference.policy_step(*args)
    first, *others = args[0]
    for other in (Elsewhere(first.weight), torch._neg_view(-first.weight)):
        encoder = first._replace(weight=other), *others
        torch.testing.assert_close(native.policy_step(encoder, *args[1:])[0].logit, expected)
    features = args[6]
    turned = [(i, torch._neg_view(-args[i])) for i in (3, 4, 5, 6, 10)]  # deter to features, and the classes
    for i, other in ((6, Elsewhere(features)), *turned):
        native.policy_step(*args)  # what ran last is looked at first
        step, action = native.policy_step(*args[:i], other, *args[i + 1 :])
        torch.testing.assert_close((step.logit, action), (expected, expected_action))
    torch.testing.assert_close(native.symlog(torch._neg_view(features)), reference.symlog(-features))
