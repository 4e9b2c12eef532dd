"""The layer of a core that reads actions, for all time steps at once: they are known before a scan begins.

    clipped = action / max(1, |action|), zero where reset; pre = clipped weight^T + bias; x = act(norm(pre))

A core without such a layer adds `pre` to another product: then nothing is clipped, and x is None.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Layer
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.enter import norm_act_row
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.rowwise import load_vector

BM = 16  # rows of a program
COLUMNS = 512  # of a program, where no norm needs whole rows


@triton.jit(do_not_specialize=["M"])
def actions_kernel(
    action,  # [M, A]
    reset,  # [M]
    weight,  # [H, A]
    bias,  # [H] or None
    scale,  # [H] or None
    shift,  # [H] or None
    clipped,  # [M, A]
    pre,  # [M, H]
    x,  # [M, H] or None
    M,
    eps,
    s_weight,
    s_x,
    A: tl.constexpr,
    H: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BH: tl.constexpr,
    BK: tl.constexpr,
):
    i_h = tl.program_id(1)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    o_h = i_h * BH + tl.arange(0, BH)
    m_m, m_h, m_first = o_m < M, o_h < H, o_m < tl.where(i_h == 0, M, 0)
    m_kept = m_m & (tl.load(reset + o_row, mask=m_m, other=1) == 0)
    b_pre = tl.zeros([BM, BH], tl.float32)
    for i_k in range(0, A, BK):
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < A
        p_a = o_row[:, None] * A + o_k[None, :]
        b_a = tl.load(action + p_a, mask=m_kept[:, None] & m_k[None, :], other=0.0).to(tl.float32)
        if x is not None:
            b_a = b_a / tl.maximum(tl.abs(b_a), 1.0)
        b_a = b_a.to(clipped.dtype.element_ty)
        tl.store(clipped + p_a, b_a, mask=m_first[:, None] & m_k[None, :])
        p_w = weight + o_h[None, :] * s_weight + o_k[:, None]
        b_w = tl.load(p_w, mask=m_k[:, None] & m_h[None, :], other=0.0)
        b_pre = tl.dot(b_a, b_w, b_pre, input_precision="ieee")
    if bias is not None:
        b_pre += tl.load(bias + o_h, mask=m_h, other=0.0).to(tl.float32)[None, :]
    b_pre = b_pre.to(pre.dtype.element_ty)
    m_x = m_m[:, None] & m_h[None, :]
    tl.store(pre + o_row[:, None] * H + o_h[None, :], b_pre, mask=m_x)
    if x is not None:
        b_scale, b_shift = load_vector(scale, o_h, m_h, 1.0), load_vector(shift, o_h, m_h, 0.0)
        b_x = norm_act_row(b_pre.to(tl.float32), b_scale, b_shift, None, o_m, M, eps, H, NORM, ACT)
        tl.store(x + o_row[:, None] * s_x + o_h[None, :], b_x.to(x.dtype.element_ty), mask=m_x)


def actions(
    action: Tensor,
    reset: Tensor,
    layer: Layer,
    weight: Tensor,
    clipped: Tensor,
    pre: Tensor,
    x: Tensor | None,
) -> None:
    """Compute clipped [M, A], pre [M, H] and x [M, H], whose rows may be apart. weight [H, A]: in clipped's dtype."""
    rows, count = action.shape
    width = weight.shape[0]
    wide = power_of_two(width) if x is not None else min(COLUMNS, power_of_two(width))
    launch(
        actions_kernel,
        (triton.cdiv(rows, BM), triton.cdiv(width, wide)),
        action,
        reset,
        weight,
        layer.bias,
        layer.scale,
        layer.shift,
        clipped,
        pre,
        x,
        rows,
        layer.eps,
        weight.stride(0),
        0 if x is None else x.stride(0),
        A=count,
        H=width,
        NORM=layer.norm,
        ACT=layer.act,
        BM=BM,
        BH=wide,
        BK=max(16, min(power_of_two(count), 2**14 // wide)),
        num_warps=16 if wide > 1024 else 8,
    )
