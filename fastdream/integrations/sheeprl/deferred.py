"""Steps that another codebase asks for one by one, computed as one sequence.

A loop that calls a step, keeps what it returns and passes it to the next call looks at nothing before its end. So the
step returns promises, and the first look at one of them, as by `torch.cat`, computes all steps that were asked for.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Any, ...]  # of one step
Output = Tensor | Callable[[], Tensor]  # of all steps [T, ...], or what computes it if it is ever looked at
Compute = Callable[
    [tuple[Tensor, ...], list[Inputs]], tuple[Output, ...]
]  # from the first state and all inputs


class Sequence:
    """Steps each of which goes on from the one before."""

    def __init__(self, owner: object, start: tuple[Tensor, ...], compute: Compute) -> None:
        self.owner, self.start, self.compute = owner, start, compute
        self.inputs: list[Inputs] = []
        self._graph = torch.is_grad_enabled()  # where the steps were asked for, not where they are looked at
        self._outputs: tuple[Output, ...] | None = None
        self._steps: dict[int, tuple[Tensor, ...]] = {}

    def goes_on(self, owner: object, state: tuple[Any, ...]) -> bool:
        """Whether a step from that state is the next one."""
        last = len(self.inputs) - 1
        mine = (isinstance(x, Promise) and x.sequence is self and x.time == last for x in state)
        alike = self.owner is owner and self._graph == torch.is_grad_enabled()
        return alike and self._outputs is None and all(mine)

    def step(self, output: int, time: int) -> Tensor:
        """That output [1, ...] of a step."""
        if self._outputs is None:
            with torch.set_grad_enabled(self._graph):
                self._outputs = self.compute(self.start, self.inputs)
        if output not in self._steps:
            whole = self._outputs[output]
            with torch.set_grad_enabled(self._graph):
                self._steps[output] = (whole if isinstance(whole, Tensor) else whole()).split(1)
        return self._steps[output][time]


class Promise:
    """What a step of a sequence will give. It is no tensor, but torch's functions and methods take it for one."""

    def __init__(self, sequence: Sequence, output: int, time: int) -> None:
        self.sequence, self.output, self.time = sequence, output, time

    @property
    def value(self) -> Tensor:
        return self.sequence.step(self.output, self.time)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*kept(args), **kept(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.value, name)

    def __getitem__(self, key: Any) -> Tensor:
        return self.value[key]


def kept(tree: Any) -> Any:
    """Nested containers with the tensors that were promised in them."""
    if isinstance(tree, Promise):
        return tree.value
    if isinstance(tree, (list, tuple)):
        items = [kept(item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, dict):
        return {key: kept(value) for key, value in tree.items()}
    return tree


def follow(
    owner: object, state: tuple[Any, ...], inputs: Inputs, compute: Compute, outputs: int
) -> tuple[Promise, ...]:
    """What a step of `owner` from a state of tensors or promises will give: so many outputs.

    `compute` is that of the first step of a sequence.
    """
    first = state[0]
    if isinstance(first, Promise) and first.sequence.goes_on(owner, state):
        sequence = first.sequence
    else:
        sequence = Sequence(owner, kept(state), compute)
    sequence.inputs.append(inputs)
    return tuple(Promise(sequence, output, len(sequence.inputs) - 1) for output in range(outputs))
