"""Back through a sample of normals: the gradient of their statistics, from that of the sample and the caller's own.

d_stoch = given + d_pre W, where d_pre is the gradient of the pre-activations of the next step's stoch layer
d_logit = given + [d_stoch | d_stoch * noise * std'(raw)]

d_n, dots  of that layer as `rowwise_gradient` says, None after the last step; rows where reset is True add nothing
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Gaussian, Layer
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.draw import std_slope
from fastdream.ops.triton.gates_gradient import through_layer
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.posterior import split_piece
from fastdream.ops.triton.rowwise_gradient import Later

COLUMNS = 16  # variables of a program


@triton.jit(do_not_specialize=["M"])
def normal_gradient_kernel(
    logit,  # [M, 2*S], mean | raw std
    noise,  # [M, S]
    given_stoch,  # [M, S] or None
    given_logit,  # [M, 2*S] or None
    d_logit,  # [M, 2*S]
    weight,  # [H, S], rows ROW apart
    scale,  # [H] or None
    d_n,  # [M, H] or None
    x,  # [M, H]
    sums,  # [1, planes, M] or None
    dots,  # [tiles, planes, M] or None
    reset,  # [M]
    s_dn,
    s_x,
    s_reset,
    M,
    eps,
    s_logit,
    s_noise,
    s_stoch,
    s_given,
    s_d,
    S: tl.constexpr,
    H: tl.constexpr,
    ROW: tl.constexpr,
    STD: tl.constexpr,
    NORM: tl.constexpr,
    TILES: tl.constexpr,
    BT: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    o_m = tl.program_id(1) * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    o_n = tl.program_id(0) * BN + tl.arange(0, BN)
    m_m, m_n = o_m < M, o_n < S
    m_x = m_m[:, None] & m_n[None, :]
    b_raw = tl.load(logit + o_row[:, None] * s_logit + S + o_n[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_noise = tl.load(noise + o_row[:, None] * s_noise + o_n[None, :], mask=m_x, other=0.0).to(tl.float32)
    b_d = tl.zeros([BM, BN], tl.float32)
    if given_stoch is not None:
        p_given = given_stoch + o_row[:, None] * s_stoch + o_n[None, :]
        b_d = tl.load(p_given, mask=m_x, other=0.0).to(tl.float32)
    b_dmean, b_draw = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
    if given_logit is not None:
        p_given = given_logit + o_row[:, None] * s_given + o_n[None, :]
        b_dmean = tl.load(p_given, mask=m_x, other=0.0).to(tl.float32)
        b_draw = tl.load(p_given + S, mask=m_x, other=0.0).to(tl.float32)
    if d_n is None:
        begin(PDL)
    else:
        m_kept = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
        b_d += through_layer(
            weight,
            d_n,
            x,
            sums,
            dots,
            scale,
            eps,
            o_m,
            m_kept,
            o_n,
            m_n,
            s_dn,
            s_x,
            M,
            H,
            ROW,
            NORM,
            H,
            1,
            TILES,
            BT,
            BK,
            KS,
            PDL,
        )
    p_d = d_logit + o_row[:, None] * s_d + o_n[None, :]
    DTYPE: tl.constexpr = d_logit.dtype.element_ty
    tl.store(p_d, (b_d + b_dmean).to(DTYPE), mask=m_x)
    tl.store(p_d + S, (b_d * b_noise * std_slope(b_raw, STD) + b_draw).to(DTYPE), mask=m_x)


def normal_gradient(
    logit: Tensor,
    noise: Tensor,
    given_stoch: Tensor | None,
    given_logit: Tensor | None,
    d_logit: Tensor,
    weight: Tensor,
    latent: Gaussian,
    layer: Layer,
    later: Later | None,
) -> None:
    """Write d_logit [M, 2S]. layer: stoch's of the core; weight [H, S]: its own, in the dtype of products."""
    (rows, count), units, itemsize = noise.shape, len(weight), weight.element_size()
    tiles, split = later.tiles() if later else 0, split_piece(units, COLUMNS, itemsize)
    launch(
        normal_gradient_kernel,
        (triton.cdiv(count, COLUMNS), triton.cdiv(rows, 16)),
        logit,
        noise,
        given_stoch,
        given_logit,
        d_logit,
        weight,
        layer.scale,
        *(later or (None,) * 5),
        *(later.strides() if later else (0, 0, 0)),
        rows,
        layer.eps,
        logit.stride(0),
        noise.stride(0),
        0 if given_stoch is None else given_stoch.stride(0),
        0 if given_logit is None else given_logit.stride(0),
        d_logit.stride(0),
        S=count,
        H=units,
        ROW=weight.stride(0),
        STD=latent.std,
        NORM=layer.norm,
        TILES=tiles,
        BT=power_of_two(tiles),
        BM=16,
        BN=COLUMNS,
        BK=split.k,
        KS=split.parts,
        num_warps=split.warps,
        num_stages=split.stages,
    )
