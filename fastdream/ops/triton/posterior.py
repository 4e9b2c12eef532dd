"""The last kernel of a posterior step: hidden layer's norm, logits, sample, and the next step's layers that read it.

    logit = act(norm(hidden)) weight^T + bias,  sample by the inverse CDF of the unimixed probabilities
    next step: x = [act(norm(own)) | act(norm(base + sum of rows of of_stoch))], see `enter`

A program has `tiles.rows` rows and some whole latent variables. The next step's layer needs all latent variables of a
row, so the program that arrives last at its rows' counter goes on with them: a kernel less a step, and as sums
are taken in a fixed order by whoever comes last, the same bits at every run.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.params import Categorical, Layer
from fastdream.ops.triton.block_product import Normed, piece, split_warps
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.draw import draw
from fastdream.ops.triton.enter import Entering, enter_own, enter_stoch, gather
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import load_planes, load_vector, moments_of, row_tiles
from fastdream.ops.triton.split import (
    add_product,
    load_inputs,
    load_weights,
    normalize_inputs,
    split_inputs,
    sum_parts,
    vector_inputs,
)

BM = 16  # rows of a program's product, the least that tensor cores take
GATHERED = 64  # elements of rows that a thread adds up at a time


class PosteriorTiles(NamedTuple):
    """rows and latent variables of a program, depth of its product, warps and pipeline stages."""

    rows: int
    vars: int
    k: int
    warps: int
    stages: int


def posterior_tiles(units: int, stoch: int, classes: int, itemsize: int) -> PosteriorTiles:
    """Few rows a program, that the sums of rows are short; more where every row tile reads megabytes of weights."""
    columns = power_of_two(classes)
    rows = 2 if units * stoch * classes <= 2**20 else 4
    variables = max(1, min(64 // columns, power_of_two(stoch)))
    warps = split_warps(units, variables * columns, itemsize)
    k = piece(512 // itemsize, units, variables * columns, itemsize, warps)
    return PosteriorTiles(rows, variables, k, warps, 3)


@triton.jit(do_not_specialize=["M"])
def posterior_kernel(
    hidden,  # [M, U]
    sums,  # [tiles, planes, M] or None
    hidden_scale,  # [U] or None
    hidden_shift,
    weight,  # [S*C, U]
    bias,  # [S*C] or None
    noise,  # [M, S] or None
    given,  # [M, S] or None, int64
    logit,  # [M, S*C]
    onehot,  # [M, S*C]
    index,  # [M, S], int64
    arrived,  # [row tiles], zero before and after
    of_stoch,  # [S*C, H], or None after the last step; then as in `enter`
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
    x_sums,
    x,
    s_reset,
    s_own,
    s_base,
    s_pre,
    s_x,
    M,
    hidden_eps,
    eps,
    keep,
    floor,
    s_hidden,
    s_noise,
    s_given,
    s_logit,
    s_index,
    U: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    HIDDEN_NORM: tl.constexpr,
    HIDDEN_ACT: tl.constexpr,
    TILE: tl.constexpr,
    BT: tl.constexpr,
    NORM: tl.constexpr,
    ACT: tl.constexpr,
    BM: tl.constexpr,
    BR: tl.constexpr,
    BV: tl.constexpr,
    BC: tl.constexpr,
    BK: tl.constexpr,
    BS: tl.constexpr,
    BH: tl.constexpr,
    KS: tl.constexpr,
    PDL: tl.constexpr,
):
    i_v, i_m = tl.program_id(0), tl.program_id(1)
    o_m = i_m * BR + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    m_m = (tl.arange(0, BM) < BR) & (o_m < M)
    o_j = tl.arange(0, BV * BC)
    o_v, o_c = i_v * BV + o_j // BC, o_j % BC
    o_n = o_v * C + o_c
    m_n = (o_v < S) & (o_c < C)
    o_r = i_m * BR + tl.arange(0, BR)
    o_r64 = o_r.to(tl.int64)
    m_r = o_r < M
    o_s = i_v * BV + tl.arange(0, BV)
    m_s = m_r[:, None] & (o_s < S)[None, :]
    o_k = split_inputs(0, BK, KS)
    b_w = load_weights(weight, o_k, o_k < U, o_n, m_n, 1, U)
    b_bias = tl.zeros([BV * BC], tl.float32)
    if bias is not None:
        b_bias = tl.load(bias + o_n, mask=m_n, other=0.0).to(tl.float32)
    if given is None:
        b_noise = tl.load(noise + o_r64[:, None] * s_noise + o_s[None, :], mask=m_s, other=0.0).to(tl.float32)
    else:
        b_given = tl.load(given + o_r64[:, None] * s_given + o_s[None, :], mask=m_s, other=0).to(tl.int32)

    b_scale = vector_inputs(hidden_scale, o_k, o_k < U, 1.0)
    b_shift = vector_inputs(hidden_shift, o_k, o_k < U, 0.0)
    if of_stoch is not None:
        o_h = tl.arange(0, BH)
        m_x = m_r[:, None] & (o_h < H)[None, :]
        b_base = tl.load(base + o_r64[:, None] * s_base + o_h[None, :], mask=m_x, other=0.0).to(tl.float32)
        b_xscale, b_xshift = load_vector(scale, o_h, o_h < H, 1.0), load_vector(shift, o_h, o_h < H, 0.0)
        b_reset = tl.zeros([BR], tl.int1)
        if reset is not None:
            b_reset = tl.load(reset + o_r64 * s_reset, mask=m_r, other=1) != 0

    begin(PDL)
    b_sums, b_squares = load_planes(sums, o_m, M, (U + TILE - 1) // TILE, BT, HIDDEN_NORM, False)
    b_h = load_inputs(hidden, o_row, m_m, o_k, o_k < U, s_hidden)
    b_mean, b_rstd = moments_of(b_sums, b_squares, o_m, M, hidden_eps, U, U, TILE, BT, HIDDEN_NORM)
    b_y = activate(normalize_inputs(b_h, b_mean, b_rstd, b_scale, b_shift), HIDDEN_ACT)
    b_logit = add_product(None, b_y, b_w)
    for i_k in range(BK, U, BK):
        o_k = split_inputs(i_k, BK, KS)
        m_k = o_k < U
        b_h = load_inputs(hidden, o_row, m_m, o_k, m_k, s_hidden)
        b_scale = vector_inputs(hidden_scale, o_k, m_k, 1.0)
        b_shift = vector_inputs(hidden_shift, o_k, m_k, 0.0)
        b_y = activate(normalize_inputs(b_h, b_mean, b_rstd, b_scale, b_shift), HIDDEN_ACT)
        b_w = load_weights(weight, o_k, m_k, o_n, m_n, 1, U)
        b_logit = add_product(b_logit, b_y, b_w)
    # Of the rows that tensor cores take, those that are the program's own.
    b_logit = tl.where(m_m[None, :, None], b_logit, 0.0)
    b_logit = sum_parts(tl.reshape(b_logit, [KS * BM // BR, BR, BV * BC])) + b_bias[None, :]
    b_logit = b_logit.to(logit.dtype.element_ty)
    p_logit = o_r64[:, None] * s_logit + o_n[None, :]
    m_logit = m_r[:, None] & m_n[None, :]

    o_class = tl.arange(0, BC)[None, None, :]
    if given is None:
        b_group = tl.reshape(b_logit.to(tl.float32), [BR, BV, BC])
        b_keep, b_floor = tl.cast(keep, tl.float32), tl.cast(floor, tl.float32)
        b_index = tl.reshape(draw(b_group, b_noise[:, :, None], o_class, b_keep, b_floor, C, 2), [BR, BV])
    else:
        b_index = b_given
    tl.store(index + o_r64[:, None] * s_index + o_s[None, :], b_index.to(tl.int64), mask=m_s)
    if of_stoch is not None:
        # Indices of all the program's threads are written before it arrives, and read after the last has arrived.
        tl.debug_barrier()
        last = tl.atomic_add(arrived + i_m, 1, sem="acq_rel", scope="gpu") == (S + BV - 1) // BV - 1
    tl.store(logit + p_logit, b_logit, mask=m_logit)
    b_onehot = tl.reshape((o_class == b_index[:, :, None]).to(tl.float32), [BR, BV * BC])
    tl.store(onehot + p_logit, b_onehot.to(onehot.dtype.element_ty), mask=m_logit)

    if of_stoch is not None:
        if i_v == 0:
            enter_own(
                o_r,
                b_reset,
                own,
                own_bias,
                own_scale,
                own_shift,
                own_sums,
                x,
                s_own,
                s_x,
                M,
                eps,
                H,
                BH,
                NORM,
                ACT,
            )
        if last:
            tl.debug_barrier()
            tl.store(arrived + i_m, 0)
            p_x = x if own is None else x + H
            b_stoch = gather(index, of_stoch, s_index, o_r64, m_r & ~b_reset, S, C, H, BS, BH)
            enter_stoch(
                b_stoch, b_base, b_xscale, b_xshift, o_r, pre, x_sums, p_x, s_pre, s_x, M, eps, H, NORM, ACT
            )


def posterior(
    hidden: Tensor,
    normed: Normed,
    layer: Layer,
    weight: Tensor,
    latent: Categorical,
    noise: Tensor | None,
    given: Tensor | None,
    logit: Tensor,
    onehot: Tensor,
    index: Tensor,
    arrived: Tensor,
    of_stoch: Tensor | None,
    entering: Entering,
    core: Layer,
    tiles: PosteriorTiles,
) -> None:
    """One step's logit, onehot and index, [M, S*C] and [M, S], and x of the next unless of_stoch is None.

    hidden [M, U] are pre-activations that `normed` describes. layer: the posterior's last, `weight` [S*C, U] its own in
    the dtype of products. core: the layer whose norm and activation `enter` applies. Either noise or given is there.
    """
    rows, units = hidden.shape[0], weight.shape[1]
    first = normed.layer
    stoch, classes, unimix = latent
    width = entering.pre.shape[1]
    columns, wide = power_of_two(classes), power_of_two(width)
    launch(
        posterior_kernel,
        (triton.cdiv(stoch, tiles.vars), triton.cdiv(rows, tiles.rows)),
        hidden,
        normed.sums,
        first.scale,
        first.shift,
        weight,
        layer.bias,
        noise,
        given,
        logit,
        onehot,
        index,
        arrived,
        of_stoch,
        *entering,
        *entering.strides(),
        rows,
        first.eps,
        core.eps,
        1 - unimix,
        unimix / classes,
        hidden.stride(0),
        0 if noise is None else noise.stride(0),
        0 if given is None else given.stride(0),
        logit.stride(0),
        index.stride(0),
        U=units,
        S=stoch,
        C=classes,
        H=width,
        HIDDEN_NORM=first.norm,
        HIDDEN_ACT=first.act,
        TILE=normed.tile,
        BT=power_of_two(row_tiles(units, units, normed.tile)),
        NORM=core.norm,
        ACT=core.act,
        BM=BM,
        BR=tiles.rows,
        BV=tiles.vars,
        BC=columns,
        BK=tiles.k,
        BS=max(1, min(power_of_two(stoch), 32 * tiles.warps * GATHERED // (tiles.rows * wide))),
        BH=wide,
        KS=tiles.warps,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
