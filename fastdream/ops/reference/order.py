"""Order statistics of all numbers of a tensor."""

from torch import Tensor

from fastdream.ops.reference.layers import upcast


def percentiles(x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Two percentiles, from 0 to 100, of all numbers of x: 0-d, in float32 at least, without gradient.

    Linear interpolation between order statistics, NaN above all. Raises ValueError for no numbers and other percents.
    """
    if not x.numel() or not 0 <= low <= high <= 100:
        raise ValueError(
            f"percentiles need numbers and 0 <= low <= high <= 100, got {x.numel()} numbers, {low} and {high}"
        )
    ordered = upcast(x.detach()).flatten().sort().values
    lower, upper = (_between(ordered, *place(len(ordered), percent)) for percent in (low, high))
    return lower, upper


def place(count: int, percent: float) -> tuple[int, int, float]:
    """Which two of `count` ordered numbers a percentile lies between, and the weight of the second."""
    position = percent / 100 * (count - 1)
    below = int(position)
    return below, min(below + 1, count - 1), position - below


def _between(ordered: Tensor, below: int, above: int, weight: float) -> Tensor:
    # The positions are known on the host, so nothing waits.
    return ordered[below] * (1 - weight) + ordered[above] * weight
