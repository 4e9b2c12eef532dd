"""Drawing classes, normals or truncated normals from given noise, as device functions."""

import torch
import triton
import triton.language as tl

from fastdream.ops.triton.math import exp, log1p, softmax

TINY = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def draw(b_logit, b_noise, o_c, keep, floor, C: tl.constexpr, AXIS: tl.constexpr):
    """Inverse CDF along an axis: the first class at which the summed probability passes the noise, or reaches its end.

    b_logit   float32, along the axis anything beyond C.
    b_noise   1 along the axis, as is what is returned: classes below C, none of zero probability.
    o_c       the classes, broadcast against b_logit.
    keep, floor   a class's probability is keep * softmax + floor.
    """
    b_p = softmax(tl.where(o_c < C, b_logit, -float("inf")), AXIS)
    b_p = tl.where(o_c < C, b_p * keep + floor, 0.0)
    # A scan in parallel rounds differently from class to class: sums at classes of no probability are not used.
    b_cdf = tl.where(b_p > 0, tl.cumsum(b_p, AXIS), 0.0)
    m_over = (b_cdf > b_noise) | (b_cdf == tl.max(b_cdf, AXIS, keep_dims=True))
    return tl.min(tl.where(m_over & (b_p > 0), o_c, C - 1), AXIS, keep_dims=True)


@triton.jit
def std_of(b_raw, min_std, FORM: tl.constexpr):
    """The standard deviation of a raw output, float32, of a form as in `Gaussian`."""
    if FORM == "softplus":
        b_std = tl.maximum(b_raw, 0.0) + log1p(tl.exp(-tl.abs(b_raw)))
    else:
        b_std = 2 * tl.sigmoid(b_raw / 2)
    return b_std + tl.cast(min_std, tl.float32)


@triton.jit
def std_slope(b_raw, FORM: tl.constexpr):
    """Its derivative."""
    b_s = tl.sigmoid(b_raw if FORM == "softplus" else b_raw / 2)
    return b_s if FORM == "softplus" else b_s * (1 - b_s)


@triton.jit
def _mills(b_x):
    """The probability that a standard normal is above x >= 0, times exp(x * x / 2), for x up to 14.

    A polynomial fitted in 1 / (1 + 0.35 x): its relative error is below 4e-8, and below 5e-7 as rounded.
    """
    b_t = 1 / (1 + 0.35 * b_x)
    b_y = 0.14391455 - b_t * 0.029133020
    b_y = 0.15906517 + b_t * (-0.25560766 + b_t * b_y)
    b_y = 0.10548324 + b_t * (-0.023043275 + b_t * b_y)
    b_y = 0.13986123 + b_t * (0.11983833 + b_t * b_y)
    return b_t * (0.13962144 + b_t * b_y)


@triton.jit
def normal_above(b_x):
    """The probability that a standard normal is above x >= 0; of x from 14 on, where float32 ends, 0."""
    return tl.where(b_x < 14, _mills(b_x) * exp(-0.5 * tl.minimum(b_x * b_x, 196.0)), 0.0)


@triton.jit
def normal_quantile(b_p):
    """The x that a standard normal is above with probability p, from the least normal number to 1/2."""
    # Right to 4.5e-4 (Abramowitz and Stegun, 26.2.23); then a step of Halley's method, which cubes the error.
    b_t = tl.sqrt(-2 * tl.log(b_p))
    b_x = b_t - (2.515517 + b_t * (0.802853 + b_t * 0.010328)) / (
        1 + b_t * (1.432788 + b_t * (0.189269 + b_t * 0.001308))
    )
    b_newton = 2.5066283 * (_mills(b_x) - b_p * exp(0.5 * b_x * b_x))
    return b_x + b_newton / (1 - 0.5 * b_x * b_newton)


@triton.jit
def truncated(b_mean, b_std, b_noise):
    """A normal cut off outside [-1, 1], where its mean lies, from noise uniform in [0, 1); it stays 1e-6 inside.

    Of the probabilities to be below and above, the smaller one is inverted: both are sums without cancellation.
    """
    b_low, b_high = normal_above((1 + b_mean) / b_std), normal_above((1 - b_mean) / b_std)
    b_inside = 1 - b_low - b_high
    b_below = tl.maximum(b_low + b_noise * b_inside, TINY)
    b_above = tl.maximum(b_high + (1 - b_noise) * b_inside, TINY)
    b_x = normal_quantile(tl.minimum(b_below, b_above))
    b_x = b_mean + b_std * tl.where(b_below < b_above, -b_x, b_x)
    return tl.minimum(tl.maximum(b_x, 1e-6 - 1), 1 - 1e-6)
