"""Kernels between what a convolution is given and what is convolved: pixels as channels, and weights for them.

Along an axis FOLD pixels are channels of a place, and the kernel of a place's p-th output begins at the (FIRST + p)-th
of the pixels that the taps reach.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M", "T", "s_run", "H", "W"])
def fold_kernel(
    x,  # [B / T, T, H, W, N], uint8 where SCALED
    y,  # [M, C], M = B * H / FOLD_R * W / FOLD_C
    M,
    T,  # images that follow each other in memory
    s_run,  # from one such run to the next
    H,
    W,
    N: tl.constexpr,
    C: tl.constexpr,  # FOLD_R * FOLD_C * N, and zeros
    FOLD_R: tl.constexpr,
    FOLD_C: tl.constexpr,
    SCALED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = tl.arange(0, BM)[:, None]
    o_c = tl.arange(0, BN)[None, :]
    m_m = o_m < M - i_m
    places = W // FOLD_C  # of a line
    i_l = (i_m + o_m) // places  # line of them
    i_b = i_l // (H // FOLD_R)
    i_r = i_l % (H // FOLD_R) * FOLD_R + o_c // (FOLD_C * N)
    i_c = (i_m + o_m) % places * FOLD_C + o_c // N % FOLD_C
    m_x = m_m & (o_c < FOLD_R * FOLD_C * N)
    p_x = x + i_b // T * s_run + ((i_b % T * H + i_r) * W + i_c) * N + o_c % N
    b_x = tl.load(p_x, mask=m_x, other=0)
    if SCALED:
        b_x = tl.where(m_x, b_x.to(tl.float32) / 255 - 0.5, 0.0)
    tl.store(y + i_m * C + o_m * C + o_c, b_x.to(y.dtype.element_ty), mask=m_m & (o_c < C))


@triton.jit(do_not_specialize=["OUT"])
def filters_kernel(
    weight,  # [OUT, N, K, K]
    y,  # [FOLD_R * FOLD_C * OUT, TAPS_R, TAPS_C, C]
    OUT,
    N: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    FOLD_R: tl.constexpr,
    TAPS_R: tl.constexpr,
    FIRST_R: tl.constexpr,
    FOLD_C: tl.constexpr,
    TAPS_C: tl.constexpr,
    FIRST_C: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_m = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    o_c = tl.arange(0, BN)[None, :]
    i_f = i_m // (TAPS_R * TAPS_C)  # output, as (row, column, channel)
    i_o = i_f % OUT
    i_p = i_f // OUT
    # Which number of the kernel lies here, if one does.
    i_r = i_m // TAPS_C % TAPS_R * FOLD_R + o_c // (FOLD_C * N) - i_p // FOLD_C - FIRST_R
    i_c = i_m % TAPS_C * FOLD_C + o_c // N % FOLD_C - i_p % FOLD_C - FIRST_C
    m_y = (i_p < FOLD_R * FOLD_C) & (o_c < C)
    m_w = m_y & (o_c < FOLD_R * FOLD_C * N) & (i_r >= 0) & (i_r < K) & (i_c >= 0) & (i_c < K)
    b_w = tl.load(weight + (i_o * N + o_c % N) * (K * K) + i_r * K + i_c, mask=m_w, other=0.0)
    tl.store(y + i_m * C + o_c, b_w.to(y.dtype.element_ty), mask=m_y)


@triton.jit(do_not_specialize=["OUT"])
def d_weight_kernel(
    d_filters,  # [FOLD_R * FOLD_C * OUT, TAPS_R, TAPS_C, C]
    d_weight,  # [OUT, N, K, K]
    OUT,
    N: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    FOLD_R: tl.constexpr,
    TAPS_R: tl.constexpr,
    FIRST_R: tl.constexpr,
    FOLD_C: tl.constexpr,
    TAPS_C: tl.constexpr,
    FIRST_C: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_m = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    i_o = i_m // (K * K)
    m_w = (i_o < OUT) & (o_n < N)
    b_d = tl.zeros([BM, BN], tl.float32)
    for p in tl.static_range(FOLD_R * FOLD_C):
        i_r = i_m // K % K + p // FOLD_C + FIRST_R
        i_c = i_m % K + p % FOLD_C + FIRST_C
        i_f = ((p * OUT + i_o) * TAPS_R + i_r // FOLD_R) * TAPS_C + i_c // FOLD_C
        p_d = d_filters + i_f * C + (i_r % FOLD_R * FOLD_C + i_c % FOLD_C) * N + o_n
        b_d += tl.load(p_d, mask=m_w, other=0.0).to(tl.float32)
    p_w = d_weight + (i_o * N + o_n) * (K * K) + i_m % (K * K)
    tl.store(p_w, b_d.to(d_weight.dtype.element_ty), mask=m_w)
