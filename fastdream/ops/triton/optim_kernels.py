"""LaProp's kernels: a program takes a piece of one tensor, whose addresses it reads from tables."""

import torch
import triton
import triton.language as tl

from fastdream.ops.triton.math import expm1

TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def pointer(table, i, ALIGNED: tl.constexpr, TYPE: tl.constexpr = tl.float32):
    """The tensor of this type whose address is entry i of the table."""
    p_x = tl.load(table + i).to(tl.pointer_type(TYPE))
    if ALIGNED:
        p_x = tl.multiple_of(p_x, 16)
    return p_x


@triton.jit
def gradient(table, halves, i, o_x, m_x, HALF: tl.constexpr, ALIGNED: tl.constexpr):
    """Elements o_x where m_x of the gradient whose address is entry i of the table, float32.

    HALF: the type of those that `halves` says are in half precision; None if none is.
    """
    p_g = pointer(table, i, ALIGNED)
    if HALF is None:
        b_g = tl.load(p_g + o_x, mask=m_x, other=0.0)
    else:
        if tl.load(halves + i) != 0:
            b_g = tl.load(pointer(table, i, ALIGNED, HALF) + o_x, mask=m_x, other=0.0).to(tl.float32)
        else:
            b_g = tl.load(p_g + o_x, mask=m_x, other=0.0)
    return b_g


@triton.jit
def bounds(owner, begin, count, PIECE: tl.constexpr, BLOCK: tl.constexpr):
    """The tensor of this program's piece, where the piece begins, ends, and where its last whole block ends."""
    i_p = tl.program_id(0)
    i_t = tl.load(owner + i_p)
    i_from = tl.multiple_of(tl.load(begin + i_p), PIECE)
    i_to = tl.minimum(i_from + PIECE, tl.load(count + i_t))
    return i_t, i_from, i_to, i_from + (i_to - i_from) // BLOCK * BLOCK


@triton.jit(do_not_specialize=["N"])
def square_sums_kernel(
    changed,  # [N] addresses of params, with those of nu and mu behind them
    grads,  # [N] addresses
    owner,  # [P]
    begin,  # [P]
    count,  # [N]
    halves,  # [N], whether the gradient is in half precision
    sums,  # [2, P], of grads and of params
    N,
    ALIGNED: tl.constexpr,
    HALF: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_t, i_from, i_to, i_whole = bounds(owner, begin, count, PIECE, BLOCK)
    p_p = pointer(changed, i_t, ALIGNED)
    o_b = tl.arange(0, BLOCK)
    m_all = o_b < BLOCK
    b_gg, b_pp = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for i in range(i_from, i_whole, BLOCK):
        b_g = gradient(grads, halves, i_t, i + o_b, m_all, HALF, ALIGNED)
        b_p = tl.load(p_p + i + o_b)
        b_gg += b_g * b_g
        b_pp += b_p * b_p
    m_b = i_whole + o_b < i_to
    b_g = gradient(grads, halves, i_t, i_whole + o_b, m_b, HALF, ALIGNED)
    b_p = tl.load(p_p + i_whole + o_b, mask=m_b, other=0.0)
    tl.store(sums + tl.program_id(0), tl.sum(b_gg + b_g * b_g))
    tl.store(sums + tl.num_programs(0) + tl.program_id(0), tl.sum(b_pp + b_p * b_p))


@triton.jit
def sum_between(p_x, i_from, i_to, BLOCK: tl.constexpr):
    b_sum = tl.zeros([BLOCK], tl.float32)
    for i in range(i_from, i_to, BLOCK):
        o_b = i + tl.arange(0, BLOCK)
        b_sum += tl.load(p_x + o_b, mask=o_b < i_to, other=0.0)
    return tl.sum(b_sum)


@triton.jit(do_not_specialize=["P"])
def factors_kernel(
    sums,  # [2, P], of grads and of params
    first,  # [N + 1]
    factor,  # [N], to multiply the gradients with
    square,  # [N], of their norms
    agc,
    pmin,
    P,
    AGC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_t = tl.program_id(0)
    i_from, i_to = tl.load(first + i_t), tl.load(first + i_t + 1)
    gg = sum_between(sums, i_from, i_to, BLOCK)
    tl.store(square + i_t, gg)
    if AGC:
        norm = tl.sqrt_rn(sum_between(sums + P, i_from, i_to, BLOCK))
        limit = tl.cast(agc, tl.float32) * tl.maximum(norm, tl.cast(pmin, tl.float32))
        ratio = tl.sqrt_rn(gg) / limit
        tl.store(factor + i_t, 1 / tl.where(ratio < 1, 1.0, ratio))  # which keeps NaN
    else:
        tl.store(factor + i_t, 1.0)


@triton.jit
def stepped(b_p, b_g, b_nu, b_mu, c, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr):
    """New parameters, moments and the update of some elements. c: what all of a tensor share."""
    lr, beta1, beta2, eps, decay, unbias1, unbias2 = c
    b_nu = beta2 * b_nu + (1 - beta2) * b_g * b_g
    # Rounded and not flushed: were the root of a tiny nu 0, the update would be the gradient over eps.
    b_u = b_g / (tl.sqrt_rn(b_nu) * unbias2 + eps)
    if MOMENTUM:
        b_mu += (1 - beta1) * (b_u - b_mu)
        b_u = (b_mu + (1 - beta1) * (b_u - b_mu) if NESTEROV else b_mu) * unbias1
    b_u = lr * (b_u + decay * b_p)
    return b_p - b_u, b_nu, b_mu, b_u


@triton.jit(do_not_specialize=["N"])
def laprop_kernel(
    changed,  # [N] addresses of params, with those of nu and mu behind them
    grads,  # [N] addresses
    owner,  # [P]
    begin,  # [P]
    count,  # [N]
    halves,  # [N], whether the gradient is in half precision
    factor,  # [N]
    mask,  # [N], whether decay is for it
    step,  # []
    lr,  # []
    sums,  # [2, P], of the squares of updates and of new parameters
    beta1,
    beta2,
    log_beta1,
    log_beta2,
    eps,
    decay,
    N,
    MOMENTUM: tl.constexpr,
    NESTEROV: tl.constexpr,
    ALIGNED: tl.constexpr,
    HALF: tl.constexpr,
    PIECE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_t, i_from, i_to, i_whole = bounds(owner, begin, count, PIECE, BLOCK)
    p_p = pointer(changed, i_t, ALIGNED)
    p_nu, p_mu = pointer(changed, N + i_t, ALIGNED), pointer(changed, 2 * N + i_t, ALIGNED)
    steps = tl.load(step).to(tl.float32)
    c = (
        tl.load(lr),
        tl.cast(beta1, tl.float32),
        tl.cast(beta2, tl.float32),
        tl.cast(eps, tl.float32),
        tl.cast(decay, tl.float32) * tl.load(mask + i_t),
        -1 / expm1(steps * tl.cast(log_beta1, tl.float32)),
        1 / tl.sqrt_rn(-expm1(steps * tl.cast(log_beta2, tl.float32))),
    )
    scale = tl.load(factor + i_t)
    o_b = tl.arange(0, BLOCK)
    m_all = o_b < BLOCK
    b_uu, b_pp = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for i in range(i_from, i_whole, BLOCK):
        o_x = i + o_b
        b_g = gradient(grads, halves, i_t, o_x, m_all, HALF, ALIGNED)
        b_p, b_nu, b_mu = tl.load(p_p + o_x), tl.load(p_nu + o_x), tl.load(p_mu + o_x)
        b_p, b_nu, b_mu, b_u = stepped(b_p, scale * b_g, b_nu, b_mu, c, MOMENTUM, NESTEROV)
        tl.store(p_p + o_x, b_p)
        tl.store(p_nu + o_x, b_nu)
        if MOMENTUM:
            tl.store(p_mu + o_x, b_mu)
        b_uu += b_u * b_u
        b_pp += b_p * b_p

    o_x = i_whole + o_b
    m_x = o_x < i_to
    b_g = gradient(grads, halves, i_t, o_x, m_x, HALF, ALIGNED)
    b_p = tl.load(p_p + o_x, mask=m_x, other=0.0)
    b_nu, b_mu = tl.load(p_nu + o_x, mask=m_x, other=0.0), tl.load(p_mu + o_x, mask=m_x, other=0.0)
    b_p, b_nu, b_mu, b_u = stepped(b_p, scale * b_g, b_nu, b_mu, c, MOMENTUM, NESTEROV)
    tl.store(p_p + o_x, b_p, mask=m_x)
    tl.store(p_nu + o_x, b_nu, mask=m_x)
    if MOMENTUM:
        tl.store(p_mu + o_x, b_mu, mask=m_x)
    b_uu += tl.where(m_x, b_u * b_u, 0.0)
    b_pp += tl.where(m_x, b_p * b_p, 0.0)
    tl.store(sums + tl.program_id(0), tl.sum(b_uu))
    tl.store(sums + tl.num_programs(0) + tl.program_id(0), tl.sum(b_pp))


@triton.jit(do_not_specialize=["N", "P"])
def norms_kernel(
    square,  # [N]
    sums,  # [2, P]
    update_norm,  # [], like the next two
    grad_norm,
    param_norm,
    N,
    P,
    BLOCK: tl.constexpr,
):
    tl.store(update_norm, tl.sqrt_rn(sum_between(sums, 0, P, BLOCK)))
    tl.store(grad_norm, tl.sqrt_rn(sum_between(square, 0, N, BLOCK)))
    tl.store(param_norm, tl.sqrt_rn(sum_between(sums + P, 0, P, BLOCK)))
