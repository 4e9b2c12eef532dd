"""Drawing classes from given noise, as a device function."""

import triton
import triton.language as tl

from fastdream.ops.triton.math import softmax


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
