"""Kernels of a convolution with its 2x2 max-pool, norm and activation, for images of few channels.

A program has BM pixels of the pooled image. What the four outputs that are pooled for one see of the image is a window
of (K + 1) x (K + 1) pixels, each line of which is in one piece; its numbers are a row of a matrix [BM, BK]. An image
with zeros around it, in lines of an even number P of numbers, needs no masks.
"""

import triton
import triton.language as tl

from fastdream.ops.triton.norm_kernels import affine, norm_act, norm_act_grad


@triton.jit(do_not_specialize=["M", "T", "s_run"])
def surround_kernel(
    x,  # [B / T, T, H, W, N], uint8 where SCALED
    y,  # [M, P], M = B * (H + K - 1)
    M,
    T,  # images that follow each other in memory
    s_run,  # from one such run to the next
    H: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    SCALED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    AHEAD: tl.constexpr = (K - 1) // 2
    i_m = tl.program_id(0) * BM + tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    i_b = i_m // (H + K - 1)
    i_r = i_m % (H + K - 1) - AHEAD
    i_c = o_n - AHEAD * N
    m_x = (i_m < M) & (i_r >= 0) & (i_r < H) & (i_c >= 0) & (i_c < W * N)
    i_x = (i_b // T).to(tl.int64) * s_run + (i_b % T * H + i_r).to(tl.int64) * (W * N)
    b_x = tl.load(x + i_x + i_c, mask=m_x, other=0)
    if SCALED:
        b_x = tl.where(m_x, b_x.to(tl.float32) / 255 - 0.5, 0.0)
    tl.store(y + i_m * P + o_n, b_x.to(y.dtype.element_ty), mask=(i_m < M) & (o_n < P))


@triton.jit
def windows(
    image,
    i_m,
    M,
    H: tl.constexpr,
    W: tl.constexpr,
    LINE: tl.constexpr,
    LINES: tl.constexpr,
    P: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BK: tl.constexpr,
):
    """Those of pixels i_m to i_m + BM of [B, H, W], which start at every second line and column. [BM, BK].

    Beyond the last pixel, or tile, it is that of the last, beyond the last number of a window one of its first. EVEN
    tiles are so many pixels of a line, or so many lines of an image, and all alike.
    """
    o_m = tl.arange(0, BM)
    if EVEN:
        i_m = tl.minimum(i_m, M - BM)
        image += place_of(i_m, H, W, LINE, LINES, P)
        o_m = o_m // W * (2 * P) + o_m % W * (2 * LINE // LINES)
    else:
        o_m = place_of(tl.minimum(i_m + o_m, M - 1), H, W, LINE, LINES, P)
    o_k = tl.arange(0, BK)
    o_k = tl.where(o_k < LINES * LINE, o_k // LINE * P + o_k % LINE, o_k % 2)
    # Numbers are read in pairs, which no line divides.
    o_m = tl.multiple_of(o_m, 2)
    o_k = tl.max_contiguous(tl.multiple_of(o_k, 2), 2)
    return tl.load(image + (o_m[:, None] + o_k[None, :]))


@triton.jit
def place_of(i_m, H: tl.constexpr, W: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr, P: tl.constexpr):
    """Where the window of pixel i_m begins in the image: at an even number."""
    i_l = i_m // W
    i_p = (i_l // H * (2 * H + LINES - 2) + i_l % H * 2) * P + i_m % W * (2 * LINE // LINES)
    return tl.multiple_of(i_p, 2)


@triton.jit(do_not_specialize=["OUT"])
def window_filters_kernel(
    weight,  # [OUT, N, K, K]
    y,  # [BK, 4, BN]
    OUT,
    N: tl.constexpr,
    K: tl.constexpr,
    BN: tl.constexpr,
):
    i_k = tl.program_id(0)
    o_q = tl.arange(0, 4)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    i_r = i_k // ((K + 1) * N) - o_q // 2
    i_c = i_k // N % (K + 1) - o_q % 2
    m_w = (o_n < OUT) & (i_r >= 0) & (i_r < K) & (i_c >= 0) & (i_c < K)
    b_w = tl.load(weight + ((o_n * N + i_k % N) * K + i_r) * K + i_c, mask=m_w, other=0.0)
    tl.store(y + (i_k * 4 + o_q) * BN + o_n, b_w.to(y.dtype.element_ty))


@triton.jit(do_not_specialize=["OUT"])
def window_d_weight_kernel(
    sums,  # [BK, BN, 4] float32
    d_weight,  # [OUT, N, K, K]
    OUT,
    N: tl.constexpr,
    K: tl.constexpr,
    BN: tl.constexpr,
):
    i_w = tl.program_id(0)  # of the kernels' numbers, as (row, column, channel)
    o_n = tl.arange(0, BN)
    b_d = tl.zeros([BN], tl.float32)
    for q in tl.static_range(4):
        i_k = ((i_w // N // K + q // 2) * (K + 1) + i_w // N % K + q % 2) * N + i_w % N
        b_d += tl.load(sums + (i_k * BN + o_n) * 4 + q)
    p_w = d_weight + (o_n * N + i_w % N) * (K * K) + i_w // N
    tl.store(p_w, b_d.to(d_weight.dtype.element_ty), mask=o_n < OUT)


@triton.jit(do_not_specialize=["M"])
def window_pool_fwd_kernel(
    image,  # [B, 2 * H + LINES - 2, P]
    filters,  # [BK, 4, BN]
    bias,  # [N]
    scale,  # [N] or None
    shift,  # [N] or None
    y,  # [M, N], M = B * H * W
    top,  # [M, N], the maxima without bias
    place,  # [M, N], which of four each is
    eps,
    M,
    H: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    LINE: tl.constexpr,
    LINES: tl.constexpr,
    P: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    i_m = tl.program_id(0) * BM
    b_w = tl.load(filters + tl.arange(0, BK)[:, None] * (4 * BN) + tl.arange(0, 4 * BN)[None, :])
    b_x = tl.dot(windows(image, i_m, M, H, W, LINE, LINES, P, EVEN, BM, BK), b_w)
    # A thread has all four outputs of its pixels: nothing moves between threads.
    b_x = tl.reshape(tl.permute(tl.reshape(b_x, [BM, 4, BN]), [0, 2, 1]), [BM, BN, 2, 2])
    b_even, b_odd = tl.split(b_x)  # columns
    b_0, b_2 = tl.split(b_even)
    b_1, b_3 = tl.split(b_odd)
    b_top, b_place = greater(b_1, 1, b_0, tl.zeros([BM, BN], tl.int32))
    b_top, b_place = greater(b_2, 2, b_top, b_place)
    b_top, b_place = greater(b_3, 3, b_top, b_place)

    o_m = tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    m_n = o_n < N
    m_y = m_n if EVEN else (o_m < M - i_m) & m_n
    o_y = i_m * N + (o_m * N + o_n)
    tl.store(top + o_y, b_top.to(top.dtype.element_ty), mask=m_y)
    tl.store(place + o_y, b_place.to(tl.uint8), mask=m_y)
    b_x = b_top + tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_y = norm_act(b_x, scale, shift, o_n, m_n, eps, N, NORM, ACT)
    tl.store(y + o_y, b_y.to(y.dtype.element_ty), mask=m_y)


@triton.jit
def greater(b_x, q: tl.constexpr, b_top, b_place):
    """The greater ones and where they are: of equal ones the first. Of NaN and a number it is NaN."""
    b_place = tl.where(b_x > b_top, q, b_place)
    return tl.maximum(b_x, b_top, propagate_nan=tl.PropagateNan.ALL), b_place


@triton.jit
def pooled(top, grad, place, i_m, M, N: tl.constexpr, EVEN: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Maxima, gradients of what follows, and places of pixels i_m to i_m + BM, [BM, BN] each; as `windows` reads."""
    o_m = tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    if EVEN:
        i_m = tl.minimum(i_m, M - BM)
        m_y = o_n < N
    else:
        m_y = (o_m < M - i_m) & (o_n < N)
    o_y = i_m * N + (o_m * N + o_n)
    b_top = tl.load(top + o_y, mask=m_y, other=0.0)
    b_grad = tl.load(grad + o_y, mask=m_y, other=0.0)
    return b_top, b_grad, tl.load(place + o_y, mask=m_y, other=0)


@triton.jit
def at(b_x, b_place, q: tl.constexpr, dtype: tl.constexpr):
    """Those whose place is q, and zeros."""
    return tl.where(b_place == q, b_x, 0.0).to(dtype)


@triton.jit(do_not_specialize=["M"])
def window_pool_bwd_kernel(
    image,  # [B, 2 * H + LINES - 2, P]
    top,  # [M, N], M = B * H * W
    place,  # [M, N]
    bias,  # [N]
    scale,  # [N] or None
    shift,  # [N] or None
    grad,  # [M, N]
    partial,  # [programs, 3 * N + BK * BN * 4]: gradients of bias, scale, shift and filters [BK, BN, 4]
    eps,
    M,
    H: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    LINE: tl.constexpr,
    LINES: tl.constexpr,
    P: tl.constexpr,
    EVEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    i_p = tl.program_id(0)
    o_n = tl.arange(0, BN)[None, :]
    m_n = o_n < N
    b_bias, b_scale, b_shift = affine(bias, scale, shift, o_n, m_n)
    # Rows are added up at the end alone: until then warps need not wait for each other.
    b_dbias = tl.zeros([BM, BN], tl.float32)
    b_dscale = tl.zeros([BM, BN], tl.float32)
    b_dshift = tl.zeros([BM, BN], tl.float32)
    b_dw = tl.zeros([BK, 4 * BN], tl.float32)
    # What the next tile needs is on its way while this one is computed.
    b_w = windows(image, i_p * BM, M, H, W, LINE, LINES, P, EVEN, BM, BK)
    b_top, b_grad, b_place = pooled(top, grad, place, i_p * BM, M, N, EVEN, BM, BN)
    for i_t in range(i_p, tl.cdiv(M, BM), tl.num_programs(0)):
        i_m = (i_t + tl.num_programs(0)) * BM
        b_next = windows(image, i_m, M, H, W, LINE, LINES, P, EVEN, BM, BK)
        b_next_top, b_next_grad, b_next_place = pooled(top, grad, place, i_m, M, N, EVEN, BM, BN)
        b_x, b_g = b_top.to(tl.float32) + b_bias, b_grad.to(tl.float32)
        b_dx, b_ds, b_dt = norm_act_grad(b_x, b_g, b_scale, b_shift, m_n, eps, N, NORM, ACT)
        b_dbias += b_dx
        if scale is not None:
            b_dscale += b_ds
        if shift is not None:
            b_dshift += b_dt
        b_even = tl.join(at(b_dx, b_place, 0, b_w.dtype), at(b_dx, b_place, 2, b_w.dtype))  # columns
        b_odd = tl.join(at(b_dx, b_place, 1, b_w.dtype), at(b_dx, b_place, 3, b_w.dtype))
        b_dw = tl.dot(tl.trans(b_w), tl.reshape(tl.join(b_even, b_odd), [BM, 4 * BN]), b_dw)
        b_w, b_top, b_grad, b_place = b_next, b_next_top, b_next_grad, b_next_place

    p_sums = partial + i_p * (3 * N + BK * 4 * BN)
    tl.store(p_sums + o_n, tl.sum(b_dbias, 0, keep_dims=True), mask=m_n)
    tl.store(p_sums + N + o_n, tl.sum(b_dscale, 0, keep_dims=True), mask=m_n)
    tl.store(p_sums + 2 * N + o_n, tl.sum(b_dshift, 0, keep_dims=True), mask=m_n)
    o_w = tl.arange(0, BK)[:, None] * (4 * BN) + tl.arange(0, 4 * BN)[None, :]
    tl.store(p_sums + 3 * N + o_w, b_dw)
