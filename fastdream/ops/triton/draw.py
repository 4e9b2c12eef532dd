"""Drawing classes or normals from given noise, as device functions."""

import triton
import triton.language as tl

from fastdream.ops.triton.math import log1p, softmax


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
