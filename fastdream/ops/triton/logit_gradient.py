"""Back through the sample: the gradient of a step's logits, from that of its one-hots and the caller's own.

d_onehot = given + d_pre W, where d_pre is the gradient of the pre-activations of the next step's stoch layer
d_logit = given + the Jacobian of (1 - unimix) * softmax(logit), transposed, times d_onehot

d_n, dots  of that layer as `rowwise_gradient` says, None after the last step; rows where reset is True add nothing
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Categorical, Layer
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.posterior import split_piece
from fastdream.ops.triton.rowwise import load_planes, moments
from fastdream.ops.triton.rowwise_gradient import Later, gradient_inputs, hat_inputs, means_of
from fastdream.ops.triton.split import (
    add_product,
    load_inputs,
    load_weights,
    split_inputs,
    sum_parts,
    vector_inputs,
)


@triton.jit(do_not_specialize=["M"])
def logit_gradient_kernel(
    logit,  # [M, S*C]
    given_onehot,  # [M, S*C] or None
    given_logit,  # [M, S*C] or None
    d_logit,  # [M, S*C]
    weight,  # [S*C, H]
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
    keep,
    s_logit,
    s_onehot,
    s_given,
    s_d,
    S: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    NORM: tl.constexpr,
    TILES: tl.constexpr,
    BT: tl.constexpr,
    BM: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    i_v, i_m = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    m_m = o_m < M
    o_j = tl.arange(0, BV * BC)
    o_n = (i_v * BV + o_j // BC) * C + o_j % BC
    m_n = (i_v * BV + o_j // BC < S) & (o_j % BC < C)
    m_x = m_m[:, None] & m_n[None, :]
    b_logit = tl.load(logit + o_row[:, None] * s_logit + o_n[None, :], mask=m_x, other=-float("inf"))
    # Rows and variables that are not there would have no largest logit.
    b_logit = tl.where(m_n[None, :] & ~m_m[:, None], 0.0, b_logit.to(tl.float32))
    b_logit = tl.where((i_v * BV + o_j // BC >= S)[None, :], 0.0, b_logit)
    b_grad = tl.zeros([BM, BV * BC], tl.float32)
    if given_onehot is not None:
        p_onehot = given_onehot + o_row[:, None] * s_onehot + o_n[None, :]
        b_grad = tl.load(p_onehot, mask=m_x, other=0.0).to(tl.float32)
    b_given = tl.zeros([BM, BV * BC], tl.float32)
    if given_logit is not None:
        p_given = given_logit + o_row[:, None] * s_given + o_n[None, :]
        b_given = tl.load(p_given, mask=m_x, other=0.0).to(tl.float32)
    if d_n is not None:
        o_k = split_inputs(0, BK, KS)
        m_k = o_k < H
        b_w = load_weights(weight, o_k, m_k, o_n, m_n, 1, H)
        m_kept = m_m & (tl.load(reset + o_row * s_reset, mask=m_m, other=1) == 0)
        b_mean, b_rstd = moments(sums, o_m, M, eps, H, H, H, 1, NORM)
        b_scale = vector_inputs(scale, o_k, m_k, 1.0)
        b_hat = hat_inputs(x, b_mean, b_rstd, o_row, m_m, o_k, m_k, s_x, NORM)
    b_p = tl.reshape(b_logit, [BM, BV, BC])
    b_p = tl.exp(b_p - tl.max(b_p, 2, keep_dims=True))
    b_p = b_p / tl.sum(b_p, 2, keep_dims=True)

    begin(PDL)
    if d_n is not None:
        b_dots, b_sums = load_planes(dots, o_m, M, TILES, BT, NORM, True)
        b_d = load_inputs(d_n, o_row, m_kept, o_k, m_k, s_dn)
        b_dot, b_sum = means_of(b_dots, b_sums, H, NORM)
        b_g = gradient_inputs(b_d, b_hat, b_scale, b_rstd, b_dot, b_sum, m_kept, m_k, NORM)
        b_out = add_product(None, b_g, b_w)
        for i_k in range(BK, H, BK):
            o_k = split_inputs(i_k, BK, KS)
            m_k = o_k < H
            b_hat = hat_inputs(x, b_mean, b_rstd, o_row, m_m, o_k, m_k, s_x, NORM)
            b_d, b_scale = (
                load_inputs(d_n, o_row, m_kept, o_k, m_k, s_dn),
                vector_inputs(scale, o_k, m_k, 1.0),
            )
            b_g = gradient_inputs(b_d, b_hat, b_scale, b_rstd, b_dot, b_sum, m_kept, m_k, NORM)
            b_w = load_weights(weight, o_k, m_k, o_n, m_n, 1, H)
            b_out = add_product(b_out, b_g, b_w)
        b_grad += sum_parts(b_out)
    b_g = tl.reshape(b_grad, [BM, BV, BC])
    b_g = tl.cast(keep, tl.float32) * b_p * (b_g - tl.sum(b_g * b_p, 2, keep_dims=True))
    b_grad = tl.reshape(b_g, [BM, BV * BC]) + b_given
    tl.store(d_logit + o_row[:, None] * s_d + o_n[None, :], b_grad.to(d_logit.dtype.element_ty), mask=m_x)


def logit_gradient(
    logit: Tensor,
    given_onehot: Tensor | None,
    given_logit: Tensor | None,
    d_logit: Tensor,
    weight: Tensor,
    latent: Categorical,
    layer: Layer,
    later: Later | None,
) -> None:
    """Write d_logit [M, S*C]. layer: stoch's of the core; weight [S*C, H]: its own, transposed, in products' dtype."""
    rows = logit.shape[0]
    stoch, classes, unimix = latent
    columns = power_of_two(classes)
    variables = max(1, min(32 // columns, power_of_two(stoch)))
    tiles, units, itemsize = later.tiles() if later else 0, weight.shape[1], weight.element_size()
    split = split_piece(units, variables * columns, itemsize)
    launch(
        logit_gradient_kernel,
        (triton.cdiv(stoch, variables), triton.cdiv(rows, 16)),
        logit,
        given_onehot,
        given_logit,
        d_logit,
        weight,
        layer.scale,
        *(later or (None,) * 5),
        *(later.strides() if later else (0, 0, 0)),
        rows,
        layer.eps,
        1 - unimix,
        logit.stride(0),
        0 if given_onehot is None else given_onehot.stride(0),
        0 if given_logit is None else given_logit.stride(0),
        d_logit.stride(0),
        S=stoch,
        C=classes,
        H=units,
        NORM=layer.norm,
        TILES=tiles,
        BT=power_of_two(tiles),
        BM=16,
        BV=variables,
        BC=columns,
        BK=split.k,
        KS=split.parts,
        num_warps=split.warps,
        num_stages=split.stages,
    )
