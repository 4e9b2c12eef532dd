"""What follows a new deter, row by row: prior, draw, actor, action, and the inputs of the core's next step.

One program does all of it for some rows, and weights stream from the L2 cache. Between layers that are too deep to be
multiplied at once the rows go through memory, where the program's own threads find them again after a barrier.
"""

import triton
import triton.language as tl

from fastdream.ops.triton.core_inputs import enter_core, stoch_product
from fastdream.ops.triton.draw import draw, std_of, truncated
from fastdream.ops.triton.math import tanh
from fastdream.ops.triton.rows import (
    row_inputs,
    row_load,
    row_norm_act,
    row_normed,
    row_product,
    row_store,
    row_vectors,
    row_weights,
)
from fastdream.ops.triton.tail_draw import draw_stoch

PRIOR = tl.constexpr(0)  # of Tail.chains
ACTOR = tl.constexpr(1)


@triton.jit
def _deeper(
    b_y,
    hidden,
    n,
    weight,
    vector,
    o_m,
    m_m,
    TAIL: tl.constexpr,
    before: tl.constexpr,
    layer: tl.constexpr,
    i_l,
):
    """Products of the i_l-th layer of a chain, from products b_y of the one before it.

    The rows go through memory, one half of `hidden` after the other. Weights that are multiplied by at once are on
    their way meanwhile.
    """
    o_n = tl.arange(0, layer.cols)[None, :]
    m_n = o_n < layer.out
    x = hidden + i_l % 2 * n * TAIL.wide
    b_bias, b_scale, b_shift = row_vectors(vector, before)
    if layer.depth >= layer.inp:
        b_w, m_w = row_weights(weight, o_n, m_n, layer)
        row_store(x, TAIL.wide, row_normed(b_y, b_bias, b_scale, b_shift, before), o_m, m_m, before)
        tl.debug_barrier()
        b_h = row_inputs(x, TAIL.wide, o_m, m_m, layer)
        # A choice that changes nothing, for which the weights are waited for here, and not where they are loaded.
        b_out = tl.dot(b_h, tl.where(m_w, b_w, 0.0), input_precision="ieee")
    else:
        row_store(x, TAIL.wide, row_normed(b_y, b_bias, b_scale, b_shift, before), o_m, m_m, before)
        tl.debug_barrier()
        b_out = row_product(x, TAIL.wide, weight, o_m, m_m, o_n, m_n, layer)
    return b_out


@triton.jit
def _next_in_chain(
    b_y, hidden, n, weight, vector, o_m, m_m, TAIL: tl.constexpr, CHAIN: tl.constexpr, i_l: tl.constexpr
):
    """As `_deeper`, of the chain's i_l-th layer. Not a loop's body: in a function a constexpr has one value."""
    before: tl.constexpr = TAIL.chains[CHAIN][i_l - 1]
    layer: tl.constexpr = TAIL.chains[CHAIN][i_l]
    return _deeper(b_y, hidden, n, weight, vector, o_m, m_m, TAIL, before, layer, i_l)


@triton.jit
def _deepest(b_y, hidden, n, weight, vector, o_m, m_m, TAIL: tl.constexpr, CHAIN: tl.constexpr):
    """Products of the chain's last hidden layer from those of its first."""
    for i_l in tl.static_range(1, len(TAIL.chains[CHAIN])):
        b_y = _next_in_chain(b_y, hidden, n, weight, vector, o_m, m_m, TAIL, CHAIN, i_l)
    return b_y


@triton.jit
def _logits(
    b_y, hidden, weight, vector, logit, length, time, o_m, m_m, TAIL: tl.constexpr, before: tl.constexpr
):
    """Logits of the latent from products b_y of the last hidden layer, as many at a time as the layer's tile has."""
    layer: tl.constexpr = TAIL.logit
    row_store(hidden, TAIL.wide, row_norm_act(b_y, vector, before), o_m, m_m, before)
    tl.debug_barrier()
    for i_n in tl.range(0, layer.out, layer.cols):
        o_n = i_n + tl.arange(0, layer.cols)[None, :]
        m_n = o_n < layer.out
        b_l = row_product(hidden, TAIL.wide, weight, o_m, m_m, o_n, m_n, layer)
        if layer.bias >= 0:
            b_l += tl.load(vector + layer.bias + o_n, mask=m_n, other=0.0)
        p_logit = logit + (o_m * length + time) * layer.out + o_n
        tl.store(p_logit, b_l.to(logit.dtype.element_ty), mask=m_m & m_n)
    tl.debug_barrier()


@triton.jit
def _act(
    outs, action, action_noise, n, actions, at, i_m, BM: tl.constexpr, TAIL: tl.constexpr, i_l: tl.constexpr
):
    """The action of head i_l, from the outputs of all heads."""
    head: tl.constexpr = TAIL.heads[i_l]
    E: tl.constexpr = head.rows
    C: tl.constexpr = head.classes
    MIN_STD: tl.constexpr = head.min_std
    o_r = i_m + tl.arange(0, BM * E)[:, None] // E
    o_e = tl.arange(0, BM * E)[:, None] % E
    o_c = tl.arange(0, head.cols)[None, :]
    m_e = (o_r < n) & (o_e < head.elements)
    width: tl.constexpr = TAIL.out[0].out
    p_out = outs + o_r * width + head.output + o_e * C + o_c
    o_noise = (o_r * actions + at) * TAIL.noise + head.noise + o_e
    b_y = tl.load(p_out, mask=m_e & (o_c < C), other=0.0)
    if head.kind == "categorical":
        if action_noise is None:
            b_i = tl.argmax(tl.where(o_c < C, b_y, -float("inf")), 1, keep_dims=True)
        else:
            b_u = tl.load(action_noise + o_noise, mask=m_e, other=0.0).to(tl.float32)
            b_i = draw(b_y, b_u, o_c, 1 - head.unimix, head.unimix / C, C, 1)
        b_a = (o_c == b_i).to(tl.float32)
    elif head.kind == "tanh_normal":
        b_raw = tl.load(p_out + head.elements, mask=m_e, other=0.0) + head.offset
        b_noise = tl.load(action_noise + o_noise, mask=m_e, other=0.0).to(tl.float32)
        b_a = tanh(5 * tanh(b_y / 5) + std_of(b_raw, MIN_STD, "softplus") * b_noise)
    else:
        b_a = tanh(b_y)
        if action_noise is not None:
            b_raw = tl.load(p_out + head.elements, mask=m_e & (o_c < C), other=0.0)
            b_noise = tl.load(action_noise + o_noise, mask=m_e, other=0.0).to(tl.float32)
            if head.kind == "trunc_normal":
                b_a = truncated(b_a, std_of(b_raw, MIN_STD, "sigmoid2"), b_noise)
            else:
                b_std = (head.max_std - head.min_std) * tl.sigmoid(b_raw + 2.0) + head.min_std
                b_a += b_std * b_noise
    p_a = action + (o_r * actions + at) * TAIL.width + head.action + o_e * C + o_c
    tl.store(p_a, b_a, mask=m_e & (o_c < C))


@triton.jit
def act_heads(
    b_y,
    outs,
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
    """The actions of all heads from products b_y of their outputs' layer."""
    out: tl.constexpr = TAIL.out[0]
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

    rows, stride = start, TAIL.stoch * TAIL.classes
    if start is None:
        first: tl.constexpr = TAIL.chains[PRIOR][0]
        latest: tl.constexpr = TAIL.chains[PRIOR][len(TAIL.chains[PRIOR]) - 1]
        b_x = row_load(product, TAIL.columns[2], o_m, m_m, first)
        if embed is not None:
            b_x += row_load(embed, first.out, o_m, m_m, first)
        b_x = _deepest(b_x, hidden, n, weight, vector, o_m, m_m, TAIL, PRIOR)
        _logits(
            b_x,
            hidden + len(TAIL.chains[PRIOR]) % 2 * n * TAIL.wide,
            weight,
            vector,
            logit,
            length,
            time,
            o_m,
            m_m,
            TAIL,
            latest,
        )
        draw_stoch(logit, noise, given, index, stoch, n, length, states, time, i_m, BM, TAIL)
        if TAIL.dense:
            rows, stride = stoch + (states - length + time) * TAIL.stoch * TAIL.classes, states * stride
    if ACT:
        acts: tl.constexpr = TAIL.chains[ACTOR][0]
        last: tl.constexpr = TAIL.chains[ACTOR][len(TAIL.chains[ACTOR]) - 1]
        out: tl.constexpr = TAIL.out[0]
        b_y = row_load(product + TAIL.columns[0], TAIL.columns[2], o_m, m_m, acts)
        b_y += stoch_product(rows, stride, index, length, time, weight, o_m, m_m, TAIL, acts)
        b_y = _deepest(b_y, hidden, n, weight, vector, o_m, m_m, TAIL, ACTOR)
        b_y = _deeper(b_y, hidden, n, weight, vector, o_m, m_m, TAIL, last, out, len(TAIL.chains[ACTOR]))
        act_heads(b_y, outs, vector, action_noise, action, n, actions, at, i_m, o_m, m_m, BM, TAIL)
    if ENTER:
        enter_core(
            product,
            None,
            rows,
            stride,
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
