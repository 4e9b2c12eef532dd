"""Running statistics where they are at their edges, and when slow networks move; golden_lambda.py has their values."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

from fastdream.normalize import Normalize, NormConfig, Slow, SlowConfig

from .dreamer_tools import DISCRETE, VECTOR, make


@pytest.mark.parametrize("debias", [False, True])
@pytest.mark.parametrize("impl", ["perc", "meanstd", "none"])
def test_before_the_first_update_nothing_is_scaled(impl, debias):
    """As in a report before anything was learned."""
    norm, x = Normalize(NormConfig(impl, limit=2.0, debias=debias)), torch.tensor([-3.0, 5.0])
    torch.testing.assert_close(norm.normalized(x, training=False), x if impl == "none" else x / 2)
    torch.testing.assert_close(norm.restored(norm.normalized(x, training=False)), x)


def test_numbers_that_are_all_the_same_have_the_least_scale():
    """Though by rounding their mean square may be below the square of their mean."""
    for value in torch.rand(300, generator=torch.Generator().manual_seed(0)).tolist():
        norm = Normalize(NormConfig("meanstd", rate=1.0, limit=0.5))
        _, scale = norm(torch.full((7,), value), training=True)
        assert scale == 0.5, value


def test_what_is_divided_by_is_never_zero():
    with pytest.raises(ValueError, match="limit=0"):
        NormConfig(limit=0)


@pytest.mark.parametrize("every", [1, 3])
def test_slow_networks_move_at_the_first_update_and_every_so_many(every):
    fast, slow = nn.Linear(2, 1), nn.Linear(2, 1)
    moving, moved = Slow(fast, slow, SlowConfig(rate=0.25, every=every)), []
    for _ in range(7):
        before = slow.weight.clone()
        moving.update()
        moved.append(not torch.equal(before, slow.weight))
        expected = before + 0.25 * (fast.weight - before) if moved[-1] else before
        torch.testing.assert_close(slow.weight, expected)
    assert moved == [step % every == 0 for step in range(7)] and int(moving.count) == 7
    assert not any(p.requires_grad for p in slow.parameters())


@pytest.mark.parametrize("name", ["dreamer_v2", "dreamer_v3"])
def test_a_slow_critic_begins_as_a_copy(name):
    nets = make(name, VECTOR, DISCRETE).nets
    critics = getattr(nets, "task", nets)
    pairs = zip(critics.val.parameters(), critics.slowval.parameters(), strict=True)
    assert all(torch.equal(fast, slow) for fast, slow in pairs)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copied", "pickled"]
)
def test_a_copy_of_networks_and_what_moves_them_is_on_its_own(copied: Callable):
    fast, slow = nn.Linear(2, 3), nn.Linear(2, 3)
    moving, before = Slow(fast, slow, SlowConfig(rate=1)), slow.weight.clone()
    other_fast, other_slow, other = copied((fast, slow, moving))
    other.update()
    assert torch.equal(other_slow.weight, other_fast.weight) and torch.equal(slow.weight, before)
    moving.update()
    assert torch.equal(slow.weight, fast.weight)


def test_slow_networks_move_in_another_precision():
    fast, slow = nn.Linear(2, 3), nn.Linear(2, 3)
    moving = Slow(fast, slow, SlowConfig(rate=1))
    fast.double(), slow.double()
    moving.update()
    assert torch.equal(slow.weight, fast.weight)
