"""The kernel of `posterior`, which says what it computes."""

import triton
import triton.language as tl

from fastdream.ops.triton.draw import draw, std_of
from fastdream.ops.triton.enter import enter_own, enter_stoch, gather, weigh
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rowwise import load_planes, load_vector, moments_of
from fastdream.ops.triton.split import (
    add_product,
    load_inputs,
    load_weights,
    normalize_inputs,
    split_inputs,
    sum_parts,
    vector_inputs,
)


@triton.jit
def chosen(b_logit, b_draw, given, o_class, keep, floor, C: tl.constexpr):
    """[BR, BV], classes of logits [BR, BV, BC], drawn by noise or given."""
    if given is None:
        b_keep, b_floor = tl.cast(keep, tl.float32), tl.cast(floor, tl.float32)
        return tl.reshape(draw(b_logit, b_draw[:, :, None], o_class, b_keep, b_floor, C, 2), b_draw.shape)
    else:
        return b_draw


@triton.jit
def stoch_product(
    index,
    sample,
    weight,
    s_index,
    s_sample,
    o_row,
    m_row,
    S: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    BS: tl.constexpr,
    BH: tl.constexpr,
    STD: tl.constexpr,
):
    """[BR, BH], the sample times the weight: rows of its classes, or of normals."""
    if STD == "none":
        return gather(index, weight, s_index, o_row, m_row, S, C, H, BS, BH)
    else:
        return weigh(sample, weight, s_sample, o_row, m_row, S, H, BS, BH)


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
    logit,  # [M, S*C]; of normals C = 2, all means before all raw deviations
    sample,  # [M, S*C] one-hots, or [M, S] normals
    index,  # [M, S], int64, or None
    arrived,  # [row tiles], zero before and after
    of_stoch,  # [S*C, H] or [S, H], or None after the last step; then as in `enter`
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
    floor,  # of probabilities, or of deviations
    s_hidden,
    s_noise,
    s_given,
    s_logit,
    s_sample,
    s_index,
    U: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    STD: tl.constexpr,  # "none" of classes
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
    o_n = o_v * C + o_c if STD == "none" else o_c * S + o_v
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
        b_draw = tl.load(noise + o_r64[:, None] * s_noise + o_s[None, :], mask=m_s, other=0.0).to(tl.float32)
    else:
        b_draw = tl.load(given + o_r64[:, None] * s_given + o_s[None, :], mask=m_s, other=0).to(tl.int32)

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
    b_group = tl.reshape(b_logit.to(tl.float32), [BR, BV, BC])
    if STD != "none":
        b_mean, b_raw = tl.split(b_group)
        b_drawn = b_mean + std_of(b_raw, floor, STD) * b_draw
        p_sample = sample + o_r64[:, None] * s_sample + o_s[None, :]
        tl.store(p_sample, b_drawn.to(sample.dtype.element_ty), mask=m_s)
    else:
        b_index = chosen(b_group, b_draw, given, o_class, keep, floor, C)
        tl.store(index + o_r64[:, None] * s_index + o_s[None, :], b_index.to(tl.int64), mask=m_s)
    if of_stoch is not None:
        # Samples of all the program's threads are written before it arrives, and read after the last has arrived.
        tl.debug_barrier()
        last = tl.atomic_add(arrived + i_m, 1, sem="acq_rel", scope="gpu") == (S + BV - 1) // BV - 1
    tl.store(logit + p_logit, b_logit, mask=m_logit)
    if STD == "none":
        b_onehot = tl.reshape((o_class == b_index[:, :, None]).to(tl.float32), [BR, BV * BC])
        p_sample = sample + o_r64[:, None] * s_sample + o_n[None, :]
        tl.store(p_sample, b_onehot.to(sample.dtype.element_ty), mask=m_logit)

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
            m_kept = m_r & ~b_reset
            b_stoch = stoch_product(
                index, sample, of_stoch, s_index, s_sample, o_r64, m_kept, S, C, H, BS, BH, STD
            )
            enter_stoch(
                b_stoch, b_base, b_xscale, b_xshift, o_r, pre, x_sums, p_x, s_pre, s_x, M, eps, H, NORM, ACT
            )
