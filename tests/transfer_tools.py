"""A stand-in for copies between host and GPU that makes each of them as late as it is allowed to.

Whoever reads without waiting sees memory full of 255, and whoever writes too early what is copied from spoils the copy.
"""

import torch
from torch import Tensor

JUNK = 255


class Late:
    """A copy that is made when somebody waits for it."""

    def __init__(self, copies: "LateCopies", source: Tensor, target: Tensor) -> None:
        self.copies, self.source, self.target = copies, source, target
        self.done = False

    def synchronize(self) -> None:
        # A stream keeps its order: what was begun before is done before.
        for copy in self.copies.begun:
            if not copy.done:
                copy.target.copy_(copy.source)
                copy.done = True
            if copy is self:
                return


class LateCopies:
    """`transfer.Copies` on a CPU."""

    def __init__(self) -> None:
        self.begun: list[Late] = []
        self.hosts = 0

    def host(self, nbytes: int) -> Tensor:
        self.hosts += 1
        return torch.full((nbytes,), JUNK, dtype=torch.uint8)

    def up(self, host: Tensor) -> tuple[Tensor, Late]:
        flat = torch.full_like(host, JUNK)
        return flat, self._begin(host, flat)

    def use(self, flat: Tensor, done: Late) -> None:
        assert done.target is flat
        done.synchronize()

    def down(self, flat: Tensor, host: Tensor) -> Late:
        # The work given so far is done when it is given on a CPU: later changes of `flat` must not show.
        return self._begin(flat, host)

    def _begin(self, source: Tensor, target: Tensor) -> Late:
        self.begun.append(Late(self, source, target))
        return self.begun[-1]
