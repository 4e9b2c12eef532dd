"""What lies between the products of dense layers: bias, norm and activation, and all gradients, in one pass each.

z = x + bias,    y = act(norm(z))

x       [M, W]          what the weights gave, rows `stride(0)` apart: N columns, and W - N that mean nothing
y       [M, W]          written, contiguous: zeros beyond N
grad    [M, N]          of y, rows `stride(0)` apart
d_x     [M, W]          written, rows `stride(0)` apart: zeros beyond N
sums    [P, columns]    written: what each of P programs has added up of the gradients of bias, scale and shift

W is `padding.padded(N)`.

`add_rows` adds the programs' sums in an order that is always the same.
"""

from collections.abc import Sequence
from itertools import accumulate

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.config import entry, row_tile, warp_tile
from fastdream.ops.triton.library import capability, contiguous, launch, launch_tiles
from fastdream.ops.triton.math import own_rows
from fastdream.ops.triton.norm_kernels import activate_grad, affine, norm_act, normalize, normalize_grad
from fastdream.ops.triton.padding import padded, readable
from fastdream.ops.triton.rowwise import load_vector

# Programs of a backward pass, by capability: eight on an SM.
PROGRAMS = {0: 864, 80: 864, 90: 1056}
ONE_WARP = 512  # the widest rows of which a program has one warp: it adds up rows without waiting for others
ADDED = 512, 8  # rows and columns of a program that adds up sums


@triton.jit
def tile_of(x, i_m, o_m, o_n, s_x, M, READ: tl.constexpr):
    """A tile of rows s_x apart, and zeros where it has none."""
    return tl.load(x + (i_m + o_m) * s_x + o_n, mask=(o_m < M - i_m) & (o_n < READ), other=0.0)


@triton.jit
def biased(b_x, b_bias, m_n, N: tl.constexpr):
    """z of a tile, 0 beyond N. In rows that are not there it is the bias, which nothing reads."""
    b_x = b_x.to(tl.float32) + b_bias
    if b_x.shape[1] > N:
        b_x = tl.where(m_n, b_x, 0.0)
    return b_x


@triton.jit(do_not_specialize=["M"])
def dense_act_kernel(
    x,  # [M, W]
    bias,  # [N] or None
    scale,  # [N] or None
    shift,  # [N] or None
    y,  # [M, W], contiguous
    eps,
    M,
    s_x,
    N: tl.constexpr,
    W: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_m, o_m, o_n, m_m, m_n = own_rows(M, N, BM, BN)
    b_x = tile_of(x, i_m, o_m, o_n, s_x, M, W)
    b_x = biased(b_x, load_vector(bias, o_n, m_n, 0.0), m_n, N)
    b_y = norm_act(b_x, scale, shift, o_n, m_n, eps, N, NORM, ACT)
    tl.store(y + (i_m + o_m) * W + o_n, b_y.to(y.dtype.element_ty), mask=m_m & (o_n < W))


@triton.jit(do_not_specialize=["M"])
def dense_act_gradient_kernel(
    x,  # [M, W] or None where nothing but the bias is added
    bias,  # [N] or None
    scale,  # [N] or None
    shift,  # [N] or None
    grad,  # [M, N]
    d_x,  # [M, W], or None where it is grad
    d_bias,  # [P, N] or None
    d_scale,  # [P, N] or None
    d_shift,  # [P, N] or None
    eps,
    M,
    s_x,
    s_grad,
    s_d,
    s_sums,
    N: tl.constexpr,
    W: tl.constexpr,
    READ: tl.constexpr,  # columns of grad, N or with its padding
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i_p = tl.program_id(0)
    o_m = tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    m_n = o_n < N
    b_bias, b_scale, b_shift = affine(bias, scale, shift, o_n, m_n)
    # Whole tiles, whose rows are added up once at the end: until then no thread waits for another.
    b_dbias = tl.zeros([BM, BN], tl.float32)
    b_dscale = tl.zeros([BM, BN], tl.float32)
    b_dshift = tl.zeros([BM, BN], tl.float32)

    # The next tile is on its way while this one is computed.
    i_m = tl.cast(i_p, tl.int64) * BM
    b_grad = tile_of(grad, i_m, o_m, o_n, s_grad, M, READ)
    if x is not None:
        b_pre = tile_of(x, i_m, o_m, o_n, s_x, M, W)
    for i_t in range(i_p, tl.cdiv(M, BM), tl.num_programs(0)):
        i_m = tl.cast(i_t, tl.int64) * BM
        i_next = i_m + tl.num_programs(0) * BM
        b_d = b_grad.to(tl.float32)
        if N < BN:
            b_d = tl.where(m_n, b_d, 0.0)
        b_grad = tile_of(grad, i_next, o_m, o_n, s_grad, M, READ)
        if x is not None:
            b_x = biased(b_pre, b_bias, m_n, N)
            b_pre = tile_of(x, i_next, o_m, o_n, s_x, M, W)
            if NORM == "none":
                b_d = activate_grad(b_x, b_d, ACT)
            else:
                b_x, b_rstd = normalize(b_x, m_n, tl.cast(eps, tl.float32), N, NORM)
                b_d = activate_grad(b_x * b_scale + b_shift, b_d, ACT)
                b_dscale += b_d * b_x
                b_dshift += b_d
                b_d = normalize_grad(b_x, b_rstd, b_d * b_scale, N, NORM)
                if NORM == "layer" and N < BN:
                    b_d = tl.where(m_n, b_d, 0.0)
        b_dbias += b_d
        if d_x is not None:
            m_d = (o_m < M - i_m) & (o_n < W)
            tl.store(d_x + (i_m + o_m) * s_d + o_n, b_d.to(d_x.dtype.element_ty), mask=m_d)

    if d_bias is not None:
        tl.store(d_bias + i_p * s_sums + o_n, tl.sum(b_dbias, 0, keep_dims=True), mask=m_n)
    if d_scale is not None:
        tl.store(d_scale + i_p * s_sums + o_n, tl.sum(b_dscale, 0, keep_dims=True), mask=m_n)
    if d_shift is not None:
        tl.store(d_shift + i_p * s_sums + o_n, tl.sum(b_dshift, 0, keep_dims=True), mask=m_n)


@triton.jit(do_not_specialize=["M", "N"])
def add_rows_kernel(
    x,  # [M, N]
    targets,  # a tuple: each the sums of some columns
    begins,  # of each, the first of its columns
    ends,  # of each, the column behind its last
    M,
    N,
    BM: tl.constexpr,
    BN: tl.constexpr,
):
    i = tl.program_id(0)
    i_begin, i_end = begins[0], ends[0]
    for j in tl.static_range(1, len(targets)):
        if i == j:
            i_begin, i_end = begins[j], ends[j]
    o_m = tl.arange(0, BM)[:, None]
    o_y = tl.program_id(1) * BN + tl.arange(0, BN)[None, :]
    o_n = i_begin + o_y.to(tl.int64)
    b_y = tl.zeros([BM, BN], tl.float32)
    for i_m in range(0, M, BM):
        o_x = (i_m + o_m) * N + o_n
        b_y += tl.load(x + o_x, mask=(i_m + o_m < M) & (o_n < i_end), other=0.0)
    b_y = tl.sum(b_y, 0, keep_dims=True)
    for j in tl.static_range(len(targets)):
        if i == j:
            tl.store(targets[j] + o_y, b_y.to(targets[j].dtype.element_ty), mask=o_n < i_end)


def dense_act(x: Tensor, layer: Layer, y: Tensor) -> None:
    """Compute y [M, W] of x [M, W] as above, N the number of the layer's outputs. Its weight is not looked at."""
    rows, wide = x.shape
    width, tile = len(layer.weight), warp_tile(wide, capability(x.device))
    launch_tiles(
        dense_act_kernel,
        (triton.cdiv(rows, tile.rows),),
        tile,
        x,
        *contiguous(*layer[1:4]),
        y,
        layer.eps,
        rows,
        x.stride(0),
        N=width,
        W=wide,
        NORM=layer.norm,
        ACT=layer.act,
    )


def dense_act_gradient(
    x: Tensor | None, layer: Layer, grad: Tensor, d_x: Tensor | None, sums: list[Tensor | None]
) -> None:
    """Compute d_x, if it is there, and those of the sums for bias, scale and shift [P, N] that are.

    x None: the layer has neither norm nor activation.
    """
    rows, width = grad.shape
    present = [p for p in sums if p is not None]
    wide = padded(width)
    cut = warp_tile(wide, capability(grad.device), 2) if wide <= ONE_WARP else None
    tile = cut or row_tile(wide, capability(grad.device), tensors=4)
    launch_tiles(
        dense_act_gradient_kernel,
        (len(present[0]) if present else programs(grad),),
        tile,
        x,
        *contiguous(*layer[1:4]),
        grad,
        d_x,
        *sums,
        layer.eps,
        rows,
        0 if x is None else x.stride(0),
        grad.stride(0),
        0 if d_x is None else d_x.stride(0),
        present[0].stride(0) if present else 0,
        N=width,
        W=wide,
        READ=readable(grad),
        NORM=layer.norm,
        ACT=layer.act,
    )


def programs(x: Tensor) -> int:
    """How many of them a pass over the gradient of x [M, ...] has, whatever its width: none where there are no rows."""
    return min(entry(PROGRAMS, capability(x.device)), triton.cdiv(len(x), 2))


def add_rows(x: Tensor) -> Tensor:
    """x [M, N] float32, contiguous -> [N]."""
    y = x.new_empty(x.shape[1])
    add_rows_into(x, [y])
    return y


def add_rows_into(x: Tensor, targets: Sequence[Tensor]) -> None:
    """As `add_rows`, the sums of all columns into the targets one after the other, each in its dtype."""
    rows, width = x.shape
    ends = tuple(accumulate(map(len, targets)))
    begins, (bm, bn) = (0, *ends[:-1]), ADDED
    grid = len(ends), triton.cdiv(max(map(len, targets)), bn)
    args = tuple(targets), begins, ends, rows, width
    launch(add_rows_kernel, grid, x, *args, BM=bm, BN=bn, num_warps=8)
