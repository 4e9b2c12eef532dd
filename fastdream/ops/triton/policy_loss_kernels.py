"""REINFORCE's kernels: a program has a few rows of a dream's N * K, of which N * H are learned from."""

import math

import triton
import triton.language as tl

from fastdream.ops.triton.categorical import log_mixed
from fastdream.ops.triton.math import load_logits

HALF_LOG_TWO_PI = tl.constexpr(0.5 * math.log(2 * math.pi))


@triton.jit
def chosen(action, p_a, m_a, o_c, C: tl.constexpr):
    """Which class an action is, [BM, 1]."""
    b_a = tl.load(action + p_a, mask=m_a, other=0.0).to(tl.float32)
    return tl.argmax(tl.where(o_c < C, b_a, float("-inf")), 1, keep_dims=True)


@triton.jit
def normal_of(first, second, action, s_x, s_a, i_r, m_r, E: tl.constexpr, BC: tl.constexpr):
    """Distance from the mean in standard deviations, and std, [BM, BC]: 0 and 1 where there is none."""
    o_e = tl.arange(0, BC)[None, :]
    m_x = m_r & (o_e < E)
    b_std = tl.load(second + i_r * s_x + o_e, mask=m_x, other=1.0).to(tl.float32)
    b_off = tl.load(action + i_r * s_a + o_e, mask=m_x, other=0.0).to(tl.float32)
    b_off -= tl.load(first + i_r * s_x + o_e, mask=m_x, other=0.0).to(tl.float32)
    return b_off / b_std, b_std


@triton.jit(do_not_specialize=["M", "H", "K", "s_weight"])
def reinforce_fwd_kernel(
    first,  # [N * K, E * C] logits, or [N * K, E] means
    second,  # [N * K, E] stds, or None
    action,  # [N * K, ...]
    adv,  # [M], M = N * H
    weight,  # [N, H], rows s_weight apart
    loss,  # [M], of the last key
    log_prob,  # [M], what the keys before added up, or of the first one nothing
    entropy,  # [keys, M]
    actent,
    M,
    H,
    K,
    s_x,
    s_a,
    s_weight,
    KEY: tl.constexpr,
    KEYS: tl.constexpr,
    E: tl.constexpr,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
    m_m = i_m < M
    i_r = i_m // H * K + i_m % H
    b_log = tl.zeros([BM, 1], tl.float32)
    b_entropy = tl.zeros([BM, 1], tl.float32)
    if second is None:
        o_c = tl.arange(0, BC)[None, :]
        m_x = m_m & (o_c < C)
        for i_e in range(E):
            o_x = i_e * C + o_c
            _, b_l = log_mixed(load_logits(first + i_r * s_x + o_x, m_x, o_c < C), C, UNIMIX)
            b_i = chosen(action, i_r * s_a + o_x, m_x, o_c, C)
            b_log += tl.sum(tl.where(o_c == b_i, b_l, 0.0), 1, keep_dims=True)
            b_entropy -= tl.sum(tl.where(o_c < C, tl.exp(b_l) * b_l, 0.0), 1, keep_dims=True)
    else:
        b_z, b_std = normal_of(first, second, action, s_x, s_a, i_r, m_m, E, BC)
        b_spread = tl.log(b_std) + HALF_LOG_TWO_PI
        m_e = tl.arange(0, BC)[None, :] < E
        b_log -= tl.sum(tl.where(m_e, 0.5 * b_z * b_z + b_spread, 0.0), 1, keep_dims=True)
        b_entropy += tl.sum(tl.where(m_e, b_spread + 0.5, 0.0), 1, keep_dims=True)
    tl.store(entropy + KEY * M + i_m, b_entropy, mask=m_m)
    if KEY > 0:
        b_log += tl.load(log_prob + i_m, mask=m_m, other=0.0)
        tl.debug_barrier()  # several threads have read each number
    tl.store(log_prob + i_m, b_log, mask=m_m)
    if KEY == KEYS - 1:
        for i_key in range(KEY):
            b_entropy += tl.load(entropy + i_key * M + i_m, mask=m_m, other=0.0)
        b_loss = b_log * tl.load(adv + i_m, mask=m_m, other=0.0).to(tl.float32) + actent * b_entropy
        b_weight = tl.load(weight + i_m // H * s_weight + i_m % H, mask=m_m, other=0.0).to(tl.float32)
        tl.store(loss + i_m, -b_weight * b_loss, mask=m_m)


@triton.jit(do_not_specialize=["R", "H", "K", "s_weight"])
def reinforce_bwd_kernel(
    first,  # [R, E * C] logits, or [R, E] means, R = N * K
    second,  # [R, E] stds, or None
    action,  # [R, ...]
    adv,  # [N * H]
    weight,  # [N, H], rows s_weight apart
    grad,  # [N * H], of the loss
    d_first,  # [R, ...], rows s_d apart
    d_second,  # [R, E] or None, likewise
    s_d,
    actent,
    R,
    H,
    K,
    s_x,
    s_a,
    s_weight,
    E: tl.constexpr,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    BM: tl.constexpr,
    BC: tl.constexpr,
):
    i_r = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
    m_r = i_r < R
    # Steps that are not learned from get zeros.
    m_m = m_r & (i_r % K < H)
    i_m = i_r // K * H + i_r % K
    b_g = tl.load(grad + i_m, mask=m_m, other=0.0).to(tl.float32)
    b_g *= tl.load(weight + i_r // K * s_weight + i_r % K, mask=m_m, other=0.0).to(tl.float32)
    b_dlog = -b_g * tl.load(adv + i_m, mask=m_m, other=0.0).to(tl.float32)
    b_dentropy = -b_g * actent
    o_c = tl.arange(0, BC)[None, :]
    if second is None:
        m_x = m_r & (o_c < C)
        for i_e in range(E):
            o_x = i_e * C + o_c
            b_p, b_l = log_mixed(load_logits(first + i_r * s_x + o_x, m_x, o_c < C), C, UNIMIX)
            b_i = chosen(action, i_r * s_a + o_x, m_x, o_c, C)
            b_d = tl.where(o_c == b_i, b_dlog, 0.0)
            # Of log probabilities; then of probabilities before they are mixed, times these.
            b_d -= tl.where(o_c < C, b_dentropy * tl.exp(b_l) * (b_l + 1), 0.0)
            if UNIMIX > 0:
                b_d *= tl.where(o_c < C, (1 - UNIMIX) * b_p * tl.exp(-b_l), 0.0)
            b_d -= b_p * tl.sum(b_d, 1, keep_dims=True)
            tl.store(d_first + i_r * s_d + o_x, b_d.to(d_first.dtype.element_ty), mask=m_x)
    else:
        b_z, b_std = normal_of(first, second, action, s_x, s_a, i_r, m_r, E, BC)
        m_x = m_r & (o_c < E)
        b_d = b_dlog * b_z / b_std
        tl.store(d_first + i_r * s_d + o_c, b_d.to(d_first.dtype.element_ty), mask=m_x)
        b_d = (b_dlog * (b_z * b_z - 1) + b_dentropy) / b_std
        tl.store(d_second + i_r * s_d + o_c, b_d.to(d_second.dtype.element_ty), mask=m_x)
