"""Drawing classes from given noise, as a device function."""

import triton
import triton.language as tl


@triton.jit
def draw_class(b_logit, b_noise, C: tl.constexpr, UNIMIX: tl.constexpr):
    """Inverse CDF of the unimixed probabilities: b_logit [R, CP] float32, anything beyond C; b_noise [R, 1] -> [R].

    The first class at which the sum exceeds the noise, or reaches its end; never one of zero probability.
    """
    o_c = tl.arange(0, b_logit.shape[1])[None, :]
    b_logit = tl.where(o_c < C, b_logit, -float("inf"))
    b_p = tl.exp(b_logit - tl.max(b_logit, 1, keep_dims=True))
    b_p = b_p / tl.sum(b_p, 1, keep_dims=True)
    if UNIMIX > 0:
        b_p = tl.where(o_c < C, b_p * (1 - UNIMIX) + UNIMIX / C, 0.0)
    # A scan in parallel may round differently from class to class: sums at classes of no probability are not used.
    b_cdf = tl.where(b_p > 0, tl.cumsum(b_p, 1), 0.0)
    m_over = (b_cdf > b_noise) | (b_cdf == tl.max(b_cdf, 1, keep_dims=True))
    return tl.min(tl.where(m_over & (b_p > 0), o_c, b_logit.shape[1]), 1)
