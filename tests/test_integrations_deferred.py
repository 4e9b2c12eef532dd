"""Steps that are asked for one by one: which of them are one sequence."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.integrations.sheeprl.deferred import Promise, follow


class Sums:
    """A model whose state is a pair of sums of its inputs, and that notes for how many steps it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def compute(self, state: tuple[Tensor, ...], steps: list[Any]) -> tuple[Tensor, ...]:
        self.asked.append(len(steps))
        inputs = torch.stack([x for (x,) in steps])
        return tuple(first + inputs.cumsum(0) for first in state)

    def step(self, state: tuple[Any, ...], x: float) -> tuple[Promise, ...]:
        return follow(self, state, (torch.tensor([x]),), self.compute, 2)


START = torch.zeros(1), torch.full((1,), 100.0)


def test_a_loop_is_computed_when_it_is_looked_at_and_once():
    model, state, seen = Sums(), START, []
    for x in (1.0, 2.0, 4.0):
        state = model.step(state, x)
        seen.append(state)
    assert not model.asked
    found = [torch.cat([pair[i].value for pair in seen]).ravel() for i in (0, 1)]
    assert [x.tolist() for x in found] == [[1, 3, 7], [101, 103, 107]] and model.asked == [3]


@pytest.mark.parametrize("other", ["earlier", "mixed", "another model", "looked at"])
def test_what_does_not_go_on_from_the_last_step_begins_anew(other: str):
    """From the numbers that its state has, though others were promised after them."""
    model, another = Sums(), Sums()
    first = model.step(START, 1.0)
    last = model.step(first, 2.0)
    state = {"earlier": first, "mixed": (last[0], first[1])}.get(other, last)
    if other == "looked at":
        assert last[0].item() == 3
    step = (another if other == "another model" else model).step(state, 4.0)
    wanted = {"earlier": [5, 105], "mixed": [7, 105]}.get(other, [7, 107])
    assert [x.item() for x in step] == wanted
    assert sorted(model.asked + another.asked) == [1, 2]
