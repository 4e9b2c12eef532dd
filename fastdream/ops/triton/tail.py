"""What follows a new deter, row by row: prior, draw, actor, action, and the inputs of the core's next step.

One program does all of it for some rows. Between layers the rows go through memory, where the program's own threads
find them again after a barrier; weights stream from the L2 cache.
"""

import triton
import triton.language as tl

from fastdream.ops.triton.core_inputs import enter_core, stoch_product
from fastdream.ops.triton.draw import draw
from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.rows import row_load, row_norm_act, row_product, row_store

PRIOR = tl.constexpr(0)  # of Tail.chains
ACTOR = tl.constexpr(1)


@triton.jit
def _first(b_x, hidden, vector, o_m, m_m, TAIL: tl.constexpr, CHAIN: tl.constexpr):
    layer: tl.constexpr = TAIL.chains[CHAIN][0]
    row_store(hidden, TAIL.wide, row_norm_act(b_x, vector, layer), o_m, m_m, layer)
    tl.debug_barrier()


@triton.jit
def _later(hidden, n, weight, vector, o_m, m_m, TAIL: tl.constexpr, CHAIN: tl.constexpr, i_l: tl.constexpr):
    layer: tl.constexpr = TAIL.chains[CHAIN][i_l]
    o_n = tl.arange(0, layer.cols)[None, :]
    x = hidden + (i_l - 1) % 2 * n * TAIL.wide
    b_y = row_product(x, TAIL.wide, weight, o_m, m_m, o_n, o_n < layer.out, layer)
    row_store(hidden + i_l % 2 * n * TAIL.wide, TAIL.wide, row_norm_act(b_y, vector, layer), o_m, m_m, layer)
    tl.debug_barrier()


@triton.jit
def _hidden(b_x, hidden, n, weight, vector, o_m, m_m, TAIL: tl.constexpr, CHAIN: tl.constexpr):
    """The chain's hidden layers from products b_x of the first. Returns where the last one is, [n, wide]."""
    _first(b_x, hidden, vector, o_m, m_m, TAIL, CHAIN)
    for i_l in tl.static_range(1, len(TAIL.chains[CHAIN])):
        _later(hidden, n, weight, vector, o_m, m_m, TAIL, CHAIN, i_l)
    return hidden + (len(TAIL.chains[CHAIN]) - 1) % 2 * n * TAIL.wide


@triton.jit
def draw_stoch(
    b_y, i_s, noise, given, index, stoch, n, length, states, time, i_m, BM: tl.constexpr, TAIL: tl.constexpr
):
    """Classes and one-hots of `groups` variables from i_s on, from logits b_y [BM * groups, padded] float32."""
    S: tl.constexpr = TAIL.stoch
    C: tl.constexpr = TAIL.classes
    o_g = tl.arange(0, BM * TAIL.groups)[:, None]
    o_r, o_s = i_m + o_g // TAIL.groups, i_s + o_g % TAIL.groups
    o_c = tl.arange(0, TAIL.padded)[None, :]
    m_s = (o_r < n) & (o_s < S)
    p_s = (o_r * length + time) * S + o_s
    if given is not None:
        b_i = tl.load(given + p_s, mask=m_s, other=0).to(tl.int32)
    else:
        b_u = tl.load(noise + p_s, mask=m_s, other=0.0).to(tl.float32)
        b_i = draw(b_y, b_u, o_c, 1 - TAIL.unimix, TAIL.unimix / C, C, 1)
    tl.store(index + p_s, b_i.to(index.dtype.element_ty), mask=m_s)
    p_stoch = stoch + ((o_r * states + states - length + time) * S + o_s) * C + o_c
    tl.store(p_stoch, (o_c == b_i).to(stoch.dtype.element_ty), mask=m_s & (o_c < C))


@triton.jit
def _logits(
    h,
    weight,
    vector,
    noise,
    given,
    index,
    logit,
    stoch,
    n,
    length,
    states,
    time,
    i_m,
    o_m,
    m_m,
    BM: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Logits of the latent at hidden rows h [n, wide], and what is drawn from them."""
    layer: tl.constexpr = TAIL.logit
    C: tl.constexpr = TAIL.classes
    o_j = tl.arange(0, TAIL.groups * TAIL.padded)[None, :]
    o_g, o_c = o_j // TAIL.padded, o_j % TAIL.padded
    for i_s in tl.range(0, TAIL.stoch, TAIL.groups):
        m_n = (i_s + o_g < TAIL.stoch) & (o_c < C)
        o_n = (i_s + o_g) * C + o_c
        b_y = row_product(h, TAIL.wide, weight, o_m, m_m, o_n, m_n, layer)
        if layer.bias >= 0:
            b_y += tl.load(vector + layer.bias + o_n, mask=m_n, other=0.0)
        # What is drawn is drawn from the logits that are returned, which are rounded.
        b_y = b_y.to(logit.dtype.element_ty)
        tl.store(logit + (o_m * length + time) * layer.out + o_n, b_y, mask=m_m & m_n)
        b_y = tl.reshape(b_y.to(tl.float32), [BM * TAIL.groups, TAIL.padded])
        draw_stoch(b_y, i_s, noise, given, index, stoch, n, length, states, time, i_m, BM, TAIL)
    tl.debug_barrier()


@triton.jit
def _act(
    outs, action, action_noise, n, actions, at, i_m, BM: tl.constexpr, TAIL: tl.constexpr, i_l: tl.constexpr
):
    """The action of head i_l, from the outputs of all heads."""
    head: tl.constexpr = TAIL.heads[i_l]
    E: tl.constexpr = head.rows
    C: tl.constexpr = head.classes
    o_r = i_m + tl.arange(0, BM * E)[:, None] // E
    o_e = tl.arange(0, BM * E)[:, None] % E
    o_c = tl.arange(0, head.cols)[None, :]
    m_e = (o_r < n) & (o_e < head.elements)
    width: tl.constexpr = TAIL.out[0].out
    p_out = outs + o_r * width + head.output + o_e * C + o_c
    o_noise = (o_r * actions + at) * TAIL.noise + head.noise + o_e
    b_y = tl.load(p_out, mask=m_e & (o_c < C), other=0.0)
    if head.discrete:
        if action_noise is None:
            b_i = tl.argmax(tl.where(o_c < C, b_y, -float("inf")), 1, keep_dims=True)
        else:
            b_u = tl.load(action_noise + o_noise, mask=m_e, other=0.0).to(tl.float32)
            b_i = draw(b_y, b_u, o_c, 1 - head.unimix, head.unimix / C, C, 1)
        b_a = (o_c == b_i).to(tl.float32)
    else:
        b_a = tanh(b_y)
        if action_noise is not None:
            b_std = tl.load(p_out + head.elements, mask=m_e & (o_c < C), other=0.0)
            b_std = (head.max_std - head.min_std) * tl.sigmoid(b_std + 2.0) + head.min_std
            b_a += b_std * tl.load(action_noise + o_noise, mask=m_e, other=0.0).to(tl.float32)
    p_a = action + (o_r * actions + at) * TAIL.width + head.action + o_e * C + o_c
    tl.store(p_a, b_a, mask=m_e & (o_c < C))


@triton.jit
def act_heads(
    h,
    outs,
    weight,
    vector,
    action_noise,
    action,
    n,
    actions,
    at,
    i_m,
    o_m,
    m_m,
    BM: tl.constexpr,
    TAIL: tl.constexpr,
):
    """Outputs of all heads at hidden rows h [n, wide], and their actions."""
    out: tl.constexpr = TAIL.out[0]
    o_n = tl.arange(0, out.cols)[None, :]
    b_y = row_product(h, TAIL.wide, weight, o_m, m_m, o_n, o_n < out.out, out)
    row_store(outs, out.out, row_norm_act(b_y, vector, out), o_m, m_m, out)
    tl.debug_barrier()
    for i_h in tl.static_range(len(TAIL.heads)):
        _act(outs, action, action_noise, n, actions, at, i_m, BM, TAIL, i_h)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["n", "time", "length", "states", "actions", "at"])
def tail_kernel(
    product,  # [n, columns[2]]: deter times the first layers of prior and actor, and the core's layer on it
    embed,  # [n, out] or None: what more the first layer of prior sees
    start,  # [n, S * C]: stoch, or None where it is drawn
    reset,  # [n] or None: rows where start and action count as zero
    hidden,  # [2, n, wide]
    outs,  # [n, out] float32
    x,  # [n, inputs]: out
    weight,
    vector,
    noise,  # [n, length, S] uniform
    given,  # [n, length, S] or None: classes instead of a draw
    index,  # [n, length, S]: out
    logit,  # [n, length, S * C]: out
    stoch,  # [n, states, S * C]: out, its last `length` states
    action_noise,  # [n, actions, M], or None for the most likely action
    action,  # [n, actions, A]: out if ACT, else in
    n,
    time,
    length,
    states,
    actions,
    at,
    TAIL: tl.constexpr,
    ACT: tl.constexpr,
    ENTER: tl.constexpr,
    BM: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = i_m + tl.arange(0, BM)[:, None]
    m_m = o_m < n

    if start is None:
        first: tl.constexpr = TAIL.chains[PRIOR][0]
        b_x = row_load(product, TAIL.columns[2], o_m, m_m, first)
        if embed is not None:
            b_x += row_load(embed, first.out, o_m, m_m, first)
        h = _hidden(b_x, hidden, n, weight, vector, o_m, m_m, TAIL, PRIOR)
        _logits(
            h,
            weight,
            vector,
            noise,
            given,
            index,
            logit,
            stoch,
            n,
            length,
            states,
            time,
            i_m,
            o_m,
            m_m,
            BM,
            TAIL,
        )
    if ACT:
        acts: tl.constexpr = TAIL.chains[ACTOR][0]
        b_x = row_load(product + TAIL.columns[0], TAIL.columns[2], o_m, m_m, acts)
        b_x += stoch_product(start, index, length, time, weight, o_m, m_m, TAIL, acts)
        h = _hidden(b_x, hidden, n, weight, vector, o_m, m_m, TAIL, ACTOR)
        act_heads(h, outs, weight, vector, action_noise, action, n, actions, at, i_m, o_m, m_m, BM, TAIL)
    if ENTER:
        enter_core(
            product,
            None,
            start,
            reset,
            x,
            weight,
            vector,
            index,
            action,
            time,
            length,
            actions,
            at,
            o_m,
            m_m,
            TAIL,
        )
