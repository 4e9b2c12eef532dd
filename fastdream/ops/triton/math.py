"""Functions of single numbers, in float32: what Triton itself has not, or has with less precision near 0."""

import triton
import triton.language as tl


@triton.jit
def expm1(x):
    """exp(x) - 1."""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(tl.abs(x) < 0.25, series, tl.exp(x) - 1)


@triton.jit
def log1p(x):
    """log(1 + x) of x >= 0."""
    u = 1 + x
    # The rounding error of 1 + x cancels between log(u) and u - 1.
    near = tl.log(u) * (x / tl.where(u == 1, 1.0, u - 1))
    return tl.where(u == 1, x, tl.where(x < 1, near, tl.log(u)))


@triton.jit
def tanh(x):
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    return tl.where(square < 0.0625, series, tl.where(x < 0, -far, far))
