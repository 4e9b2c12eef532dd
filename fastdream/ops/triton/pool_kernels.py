"""Kernels between an image and one of half its size: 2x2 pixels are pooled, then norm and activation."""

import triton
import triton.language as tl

from fastdream.ops.triton.norm_kernels import affine, norm_act, norm_act_grad


@triton.jit
def first_pixel(i_r, H: tl.constexpr, W: tl.constexpr, FOLDED: tl.constexpr):
    """Number of the first of the four pixels of [B, H, W] that pixel i_r of [B, H // 2, W // 2] is made of, int64.

    Folded ones follow each other; their image is [B, H // 2, W // 2, 2 * 2].
    """
    if FOLDED:
        return i_r.to(tl.int64) * 4
    i_l = i_r // (W // 2)  # line of the small images
    return ((i_l // (H // 2) * H + i_l % (H // 2) * 2) * W + i_r % (W // 2) * 2).to(tl.int64)


@triton.jit
def next_pixel(q: tl.constexpr, W: tl.constexpr, FOLDED: tl.constexpr):
    """How far the q-th of the four is from the first."""
    if FOLDED:
        return q
    return q // 2 * W + q % 2


@triton.jit(do_not_specialize=["M"])
def pool_norm_act_fwd_kernel(
    x,  # [B, H, W, N], or folded
    bias,  # [N]
    scale,  # [N] or None
    shift,  # [N] or None
    y,  # [M, N], M = B * (H // 2) * (W // 2)
    top,  # [M, N], the maxima without bias
    place,  # [M, N], which of four each is
    eps,
    M,
    H: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    FOLDED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_m = tl.program_id(0) * BM
    o_m = tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    m_n = o_n < N
    m_x = (o_m < M - i_m) & m_n
    o_x = o_m * N + o_n  # inside of the tile: 32 bits are enough

    o_y = tl.cast(i_m, tl.int64) * N + o_x
    p_x = x + first_pixel(i_m + o_m, H, W, FOLDED) * N + o_n
    b_top = tl.load(p_x, mask=m_x, other=0.0).to(tl.float32)
    b_place = tl.zeros([BM, BN], tl.int32)
    for q in tl.static_range(1, 4):
        b_x = tl.load(p_x + next_pixel(q, W, FOLDED) * N, mask=m_x, other=0.0).to(tl.float32)
        m_q = (b_x > b_top) | (b_x != b_x)  # NaN wins
        b_top = tl.where(m_q, b_x, b_top)
        b_place = tl.where(m_q, q, b_place)
    tl.store(top + o_y, b_top.to(top.dtype.element_ty), mask=m_x)
    tl.store(place + o_y, b_place.to(tl.uint8), mask=m_x)

    b_x = b_top + tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    b_y = norm_act(b_x, scale, shift, o_n, m_n, eps, N, NORM, ACT)
    tl.store(y + o_y, b_y.to(y.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["M"])
def pool_norm_act_bwd_kernel(
    top,  # [M, N], M = B * (H // 2) * (W // 2)
    place,  # [M, N]
    bias,  # [N]
    scale,  # [N] or None
    shift,  # [N] or None
    grad,  # [M, N]
    d_x,  # [B, H, W, N], or folded
    partial,  # [programs, 3, N]: gradients of bias, scale and shift
    eps,
    M,
    H: tl.constexpr,
    W: tl.constexpr,
    N: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    FOLDED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_p = tl.program_id(0)
    o_m = tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    m_n = o_n < N
    o_x = o_m * N + o_n
    b_bias, b_scale, b_shift = affine(bias, scale, shift, o_n, m_n)
    # Rows are added up at the end alone: a thread has one or two of them, and warps need not wait for each other.
    b_dbias = tl.zeros([BM, BN], tl.float32)
    b_dscale = tl.zeros([BM, BN], tl.float32)
    b_dshift = tl.zeros([BM, BN], tl.float32)

    for i_t in range(i_p, tl.cdiv(M, BM), tl.num_programs(0)):
        i_m = i_t * BM
        o_y = tl.cast(i_m, tl.int64) * N + o_x
        m_x = (o_m < M - i_m) & m_n
        b_x = tl.load(top + o_y, mask=m_x, other=0.0).to(tl.float32) + b_bias
        b_g = tl.load(grad + o_y, mask=m_x, other=0.0).to(tl.float32)
        b_place = tl.load(place + o_y, mask=m_x, other=0)
        b_dx, b_ds, b_dt = norm_act_grad(b_x, b_g, b_scale, b_shift, m_n, eps, N, NORM, ACT)
        if scale is not None:
            b_dscale += b_ds
        if shift is not None:
            b_dshift += b_dt
        b_dbias += b_dx
        p_dx = d_x + first_pixel(i_m + o_m, H, W, FOLDED) * N + o_n
        for q in tl.static_range(4):
            b_q = tl.where(b_place == q, b_dx, 0.0).to(d_x.dtype.element_ty)
            tl.store(p_dx + next_pixel(q, W, FOLDED) * N, b_q, mask=m_x)

    p_partial = partial + i_p * 3 * N + o_n
    tl.store(p_partial, tl.sum(b_dbias, 0, keep_dims=True), mask=m_n)
    tl.store(p_partial + N, tl.sum(b_dscale, 0, keep_dims=True), mask=m_n)
    tl.store(p_partial + 2 * N, tl.sum(b_dshift, 0, keep_dims=True), mask=m_n)
