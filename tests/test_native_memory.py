"""Tensors that are not what lies in their memory, given to ops that read there past torch's dispatcher."""

from types import ModuleType

import pytest
import torch

from fastdream.ops import reference

from .ops_tools import H
from .test_native_policy import arguments, plain

pytestmark = pytest.mark.usefixtures("native")


def test_vectors_with_gaps_are_read_at_each_call(native: ModuleType):
    """Of which a copy was acted with for ever, where weights had no gaps."""
    args, wide = list(plain(arguments(2), torch.float32)), torch.randn(2 * H)
    deter = args[1].core.deter._replace(bias=wide[::2])
    args[1] = args[1]._replace(core=args[1].core._replace(deter=deter))
    for _ in range(2):
        ours, theirs = native.policy_step(*args), reference.policy_step(*args)
        torch.testing.assert_close(ours[0].deter, theirs[0].deter)
        wide.mul_(3)
