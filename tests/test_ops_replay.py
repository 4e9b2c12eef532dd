"""Sequences out of a ring."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdream.ops import reference as ops


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.data())
def test_windows_wrap_around_the_end(size: int, length: int, data: st.DataObject) -> None:
    start = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=4))
    storage = torch.arange(size * 6, dtype=torch.float32).view(size, 2, 3)
    out = ops.gather_sequences(storage, torch.tensor(start), length)
    want = [[storage[(s + i) % size].numpy() for i in range(length)] for s in start]
    np.testing.assert_array_equal(out.numpy(), want)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.bool, torch.float64])
def test_any_dtype_comes_out_as_it_is_and_freshly_allocated(dtype: torch.dtype) -> None:
    storage = torch.arange(5).to(dtype)
    before = storage.clone()
    out = ops.gather_sequences(storage, torch.tensor([3, 0]), 4)
    assert out.dtype == dtype
    assert torch.equal(out, storage[torch.tensor([[3, 4, 0, 1], [0, 1, 2, 3]])])
    out.zero_()
    assert torch.equal(storage, before)


def test_gradients_add_up_where_windows_overlap() -> None:
    storage = torch.zeros(4, 2, dtype=torch.float64, requires_grad=True)
    start = torch.tensor([1, 2])
    assert torch.autograd.gradcheck(lambda x: ops.gather_sequences(x, start, 3), storage)
    (grad,) = torch.autograd.grad(ops.gather_sequences(storage, start, 3).sum(), storage)
    assert grad[:, 0].tolist() == [1, 1, 2, 2]
