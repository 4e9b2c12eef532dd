"""Products of few rows, whose inputs are split among the warps of a program: device functions.

Sixteen rows by as many columns are one tile of a tensor core: of a product in two dimensions every warp computes all,
and whatever makes its first operand besides. In three dimensions [KS, BM, K] [KS, K, BN] each of KS warps has inputs of
its own, and the sums of all are added in a fixed order at the end.
"""

import triton
import triton.language as tl


@triton.jit
def split_inputs(i_k, BK: tl.constexpr, KS: tl.constexpr):
    """[KS, BK / KS], the inputs of each part of a piece that begins at i_k."""
    LENGTH: tl.constexpr = BK // KS
    return i_k + (tl.arange(0, KS) * LENGTH)[:, None] + tl.arange(0, LENGTH)[None, :]


@triton.jit
def load_weights(weight, o_k, m_k, o_n, m_n, s_k, s_n):
    """[KS, K, BN] of inputs [KS, K] and columns [BN]."""
    p_w = weight + (o_k * s_k)[:, :, None] + (o_n * s_n)[None, None, :]
    return tl.load(p_w, mask=m_k[:, :, None] & m_n[None, None, :], other=0.0)


@triton.jit
def load_inputs(x, o_row, m_m, o_k, m_k, stride):
    """[KS, BM, K] of rows [BM] and inputs [KS, K]."""
    p_x = x + (o_row * stride)[None, :, None] + o_k[:, None, :]
    return tl.load(p_x, mask=m_m[None, :, None] & m_k[:, None, :], other=0.0)


@triton.jit
def normalize_inputs(b_x, b_mean, b_rstd, scale, shift, o_k, m_k):
    """(x - mean) * rstd * scale + shift in float32, of x [KS, BM, K]; mean and rstd [BM]."""
    b_x = (b_x.to(tl.float32) - b_mean[None, :, None]) * b_rstd[None, :, None]
    if scale is not None:
        b_x *= tl.load(scale + o_k, mask=m_k, other=0.0).to(tl.float32)[:, None, :]
    if shift is not None:
        b_x += tl.load(shift + o_k, mask=m_k, other=0.0).to(tl.float32)[:, None, :]
    return b_x
