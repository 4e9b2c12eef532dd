"""The layers of a core that read the state before a step, and what the next step reads: x of `block_product`.

    x = [act(norm(own + own_bias)) | act(norm(base + stoch's product))]    [M, 2H]; without `own` [M, H]

own is deter's product, made where deter is. stoch's product is a sum of rows of the weight: of those of the classes
drawn, `gather`, or of all of them times normals, `weigh`; only of the first state, which may be anything, it is given.
Where reset [M] is True, deter and stoch are zero, and so are the products.

    own, pre    [M, H]    what is normed, own overwritten and pre written, with sums of their rows as `rowwise` has them
    base        [M, H]    added to stoch's product; a bias is its `expand(M, -1)`
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.rowwise import load_vector


class Entering(NamedTuple):
    """What `enter` reads and writes; norm, act and eps belong to both layers."""

    reset: Tensor | None  # [M]
    own: Tensor | None  # [M, H]
    own_bias: Tensor | None  # [H]
    own_scale: Tensor | None
    own_shift: Tensor | None
    own_sums: Tensor | None  # [1, planes, M]
    base: Tensor  # [M, H]
    pre: Tensor  # [M, H]
    scale: Tensor | None  # [H]
    shift: Tensor | None
    sums: Tensor | None  # [1, planes, M]
    x: Tensor  # [M, 2H] or [M, H]

    def strides(self) -> tuple[int, ...]:
        """Of rows: of reset, own, base, pre, x."""
        rows = self.reset, self.own, self.base, self.pre, self.x
        return tuple(0 if x is None else x.stride(0) for x in rows)


@triton.jit
def gather(
    index,  # [M, S]
    weight,  # [S*C, H]
    s_index,
    o_row,  # [BR]
    m_row,  # [BR]
    S: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    BS: tl.constexpr,  # latent variables at a time
    BH: tl.constexpr,
):
    """[BR, BH], the sum over latent variables s of row s*C + index[s] of the weight; rows outside m_row add nothing."""
    o_h = tl.arange(0, BH)
    b_sum = tl.zeros([o_row.shape[0], BH], tl.float32)
    for i_s in range(0, S, BS):
        o_s = i_s + tl.arange(0, BS)
        m_s = m_row[:, None] & (o_s < S)[None, :]
        b_i = tl.load(index + o_row[:, None] * s_index + o_s[None, :], mask=m_s, other=0)
        m_s = m_s & (b_i >= 0) & (b_i < C)
        b_i = b_i.to(tl.int32)  # one register less for every element
        p_w = weight + (o_s[None, :] * C + b_i)[:, :, None] * H + o_h[None, None, :]
        b_w = tl.load(p_w, mask=m_s[:, :, None] & (o_h < H)[None, None, :], other=0.0)
        b_sum += tl.sum(b_w.to(tl.float32), 1)
    return b_sum


@triton.jit
def weigh(
    stoch,  # [M, S]
    weight,  # [S, H]
    s_stoch,
    o_row,  # [BR]
    m_row,  # [BR]
    S: tl.constexpr,
    H: tl.constexpr,
    BS: tl.constexpr,  # latent variables at a time
    BH: tl.constexpr,
):
    """[BR, BH], stoch times the weight, for few rows of few variables; rows outside m_row are zero."""
    o_h = tl.arange(0, BH)
    b_sum = tl.zeros([o_row.shape[0], BH], tl.float32)
    for i_s in range(0, S, BS):
        o_s = i_s + tl.arange(0, BS)
        p_s = stoch + o_row[:, None] * s_stoch + o_s[None, :]
        b_s = tl.load(p_s, mask=m_row[:, None] & (o_s < S)[None, :], other=0.0).to(tl.float32)
        p_w = weight + o_s[:, None] * H + o_h[None, :]
        b_w = tl.load(p_w, mask=(o_s < S)[:, None] & (o_h < H)[None, :], other=0.0).to(tl.float32)
        # Weights first: of the other order, sixteen rows of it, Triton makes a product in tf32, of whatever depth.
        b_sum += tl.sum(b_w[None, :, :] * b_s[:, :, None], 1)
    return b_sum


@triton.jit
def norm_act_row(
    b_x,  # [BR, BH], whole rows, zero beyond H
    b_scale,  # [BH]
    b_shift,  # [BH]
    sums,  # [1, planes, M] or None
    o_m,  # [BR]
    M,
    eps,
    H: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
):
    """act(norm(x)) of whole rows, whose sums are stored if wanted, as those of one tile."""
    if NORM != "none":
        b_sum = tl.zeros_like(o_m).to(tl.float32)
        if NORM == "layer":
            b_sum = tl.sum(b_x, 1)
            b_x = tl.where((tl.arange(0, b_x.shape[1]) < H)[None, :], b_x - (b_sum / H)[:, None], 0.0)
        b_square = tl.sum(b_x * b_x, 1)
        if sums is not None:
            if NORM == "layer":
                tl.store(sums + o_m, b_sum, mask=o_m < M)
            tl.store(sums + (M if NORM == "layer" else 0) + o_m, b_square, mask=o_m < M)
        b_x = b_x * tl.rsqrt(b_square / H + tl.cast(eps, tl.float32))[:, None]
        b_x = b_x * b_scale[None, :] + b_shift[None, :]
    return activate(b_x, ACT)


@triton.jit
def enter_own(
    o_m,  # [BR]
    b_reset,  # [BR]
    own,  # [M, H] or None
    bias,  # [H] or None
    scale,
    shift,
    sums,
    x,  # [M, 2H]
    s_own,
    s_x,
    M,
    eps,
    H: tl.constexpr,
    BH: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
):
    """The first half of x, of deter's product if there is one, which is overwritten."""
    if own is not None:
        o_h = tl.arange(0, BH)
        o_row = o_m.to(tl.int64)
        m_m, m_h = o_m < M, o_h < H
        m_x = m_m[:, None] & m_h[None, :]
        p_own = own + o_row[:, None] * s_own + o_h[None, :]
        b_own = tl.load(p_own, mask=m_x, other=0.0).to(tl.float32)
        b_own = tl.where(b_reset[:, None], 0.0, b_own)
        b_own = (b_own + load_vector(bias, o_h, m_h, 0.0)[None, :]).to(own.dtype.element_ty)
        tl.debug_barrier()  # of narrow layers several threads have read each number
        tl.store(p_own, b_own, mask=m_x)
        b_scale, b_shift = load_vector(scale, o_h, m_h, 1.0), load_vector(shift, o_h, m_h, 0.0)
        b_x = norm_act_row(b_own.to(tl.float32), b_scale, b_shift, sums, o_m, M, eps, H, NORM, ACT)
        tl.store(x + o_row[:, None] * s_x + o_h[None, :], b_x.to(x.dtype.element_ty), mask=m_x)


@triton.jit
def enter_stoch(
    b_stoch,  # [BR, BH], stoch's product, zero beyond H and where reset
    b_base,  # [BR, BH]
    b_scale,  # [BH]
    b_shift,  # [BH]
    o_m,  # [BR]
    pre,  # [M, H]
    sums,
    x,  # [M, H], or the last half of it
    s_pre,
    s_x,
    M,
    eps,
    H: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
):
    """The last half of x, or all."""
    o_h = tl.arange(0, b_stoch.shape[1])
    o_row = o_m.to(tl.int64)
    m_x = (o_m < M)[:, None] & (o_h < H)[None, :]
    b_pre = (b_stoch + b_base).to(pre.dtype.element_ty)
    tl.store(pre + o_row[:, None] * s_pre + o_h[None, :], b_pre, mask=m_x)
    b_x = norm_act_row(b_pre.to(tl.float32), b_scale, b_shift, sums, o_m, M, eps, H, NORM, ACT)
    tl.store(x + o_row[:, None] * s_x + o_h[None, :], b_x.to(x.dtype.element_ty), mask=m_x)


@triton.jit(do_not_specialize=["M"])
def enter_kernel(
    product,  # [M, H]
    arrived,  # [row tiles]
    reset,
    own,
    own_bias,
    own_scale,
    own_shift,
    own_sums,
    base,
    pre,
    scale,
    shift,
    sums,
    x,
    s_reset,
    s_own,
    s_base,
    s_pre,
    s_x,
    M,
    eps,
    H: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BR: tl.constexpr,
    BH: tl.constexpr,
):
    i_m = tl.program_id(0)
    tl.store(arrived + i_m, 0)
    o_m = i_m * BR + tl.arange(0, BR)
    o_h = tl.arange(0, BH)
    m_m = o_m < M
    b_reset = tl.zeros([BR], tl.int1)
    if reset is not None:
        b_reset = tl.load(reset + o_m.to(tl.int64) * s_reset, mask=m_m, other=1) != 0
    p_stoch = product + o_m.to(tl.int64)[:, None] * H + o_h[None, :]
    m_stoch = (m_m & ~b_reset)[:, None] & (o_h < H)[None, :]
    b_stoch = tl.load(p_stoch, mask=m_stoch, other=0.0).to(tl.float32)
    enter_own(
        o_m, b_reset, own, own_bias, own_scale, own_shift, own_sums, x, s_own, s_x, M, eps, H, BH, NORM, ACT
    )
    p_x = x if own is None else x + H
    m_x = (o_m < M)[:, None] & (o_h < H)[None, :]
    b_base = tl.load(base + o_m.to(tl.int64)[:, None] * s_base + o_h[None, :], mask=m_x, other=0.0)
    b_scale, b_shift = load_vector(scale, o_h, o_h < H, 1.0), load_vector(shift, o_h, o_h < H, 0.0)
    enter_stoch(
        b_stoch,
        b_base.to(tl.float32),
        b_scale,
        b_shift,
        o_m,
        pre,
        sums,
        p_x,
        s_pre,
        s_x,
        M,
        eps,
        H,
        NORM,
        ACT,
    )


def enter_first(
    product: Tensor, arrived: Tensor, entering: Entering, rows: int, norm: str, act: str, eps: float
) -> None:
    """x of the first step, whose product with stoch is given. Zeroes `arrived`, a counter for every `rows` rows."""
    count, width = product.shape
    assert product.is_contiguous()
    launch(
        enter_kernel,
        (triton.cdiv(count, rows),),
        product,
        arrived,
        *entering,
        *entering.strides(),
        count,
        eps,
        H=width,
        NORM=norm,
        ACT=act,
        BR=rows,
        BH=power_of_two(width),
        num_warps=4,
    )
