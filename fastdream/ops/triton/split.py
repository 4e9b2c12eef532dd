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
def load_inputs(x, o_row, m_m, o_k, m_k, stride, FRESH: tl.constexpr = False):
    """[KS, BM, K] of rows [BM] and inputs [KS, K]. FRESH: they are read past the cache, see `overlap`."""
    CACHE: tl.constexpr = ".cg" if FRESH else ""
    p_x = x + (o_row * stride)[None, :, None] + o_k[:, None, :]
    return tl.load(p_x, mask=m_m[None, :, None] & m_k[:, None, :], other=0.0, cache_modifier=CACHE)


@triton.jit
def vector_inputs(vector, o_k, m_k, other: tl.constexpr):
    """[KS, 1, K] in float32, or `other` where there is no vector."""
    if vector is None:
        return tl.zeros([o_k.shape[0], 1, o_k.shape[1]], tl.float32) + other
    else:
        return tl.load(vector + o_k, mask=m_k, other=0.0).to(tl.float32)[:, None, :]


@triton.jit
def normalize_inputs(b_x, b_mean, b_rstd, b_scale, b_shift):
    """(x - mean) * rstd * scale + shift in float32, of x [KS, BM, K]; mean, rstd [BM], scale, shift [KS, 1, K]."""
    return (b_x.to(tl.float32) - b_mean[None, :, None]) * b_rstd[None, :, None] * b_scale + b_shift


@triton.jit
def add_product(b_out, b_a, b_w):
    """out + a w of parts [KS, BM, K] [KS, K, BN]; out may be None.

    In float32 every piece has a sum of its own: one of thousands of terms, one after the other, loses digits.
    """
    if b_out is None:
        return tl.dot(b_a.to(b_w.dtype), b_w, input_precision="ieee")
    elif b_w.dtype == tl.float32:
        # The limit means nothing to float32, but Triton leaves a product that has one as it is written.
        return b_out + tl.dot(b_a.to(b_w.dtype), b_w, input_precision="ieee", max_num_imprecise_acc=1)
    else:
        return tl.dot(b_a.to(b_w.dtype), b_w, b_out, input_precision="ieee")


@triton.jit
def halved(b_x):
    """[M, N, 2 * n] -> [M, N, n], sums of neighbours."""
    left, right = tl.split(tl.reshape(b_x, [b_x.shape[0], b_x.shape[1], b_x.shape[2] // 2, 2]))
    return left + right


@triton.jit
def sum_parts(b_x):
    """[parts, M, N] -> [M, N], up to 64 parts. As sums of two: they cross warps once, where tl.sum does so twice."""
    PARTS: tl.constexpr = b_x.shape[0]
    M: tl.constexpr = b_x.shape[1]
    N: tl.constexpr = b_x.shape[2]
    tl.static_assert(PARTS <= 64)
    b_x = tl.permute(b_x, (1, 2, 0))
    if PARTS > 1:
        b_x = halved(b_x)
    if PARTS > 2:
        b_x = halved(b_x)
    if PARTS > 4:
        b_x = halved(b_x)
    if PARTS > 8:
        b_x = halved(b_x)
    if PARTS > 16:
        b_x = halved(b_x)
    if PARTS > 32:
        b_x = halved(b_x)
    return tl.reshape(b_x, [M, N])
