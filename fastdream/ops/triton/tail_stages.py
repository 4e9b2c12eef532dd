"""Stages of `spread`: what a program computes between two waits, as device functions.

i_p      number of the stage
params   (weight, vector, arrived): of `spread_kernel`; of arrived the counters of the program's group
place    (i_n, o_m, m_m): number of the program in its group, numbers [BM, 1] of its rows, which of them there are
"""

import triton
import triton.language as tl

from fastdream.ops.triton.core_inputs import enter_action, enter_core, enter_state
from fastdream.ops.triton.draw import draw
from fastdream.ops.triton.math import once
from fastdream.ops.triton.norm_kernels import activate
from fastdream.ops.triton.overlap import begin
from fastdream.ops.triton.rows import row_load, row_norm_act
from fastdream.ops.triton.tail import ACTOR, act_heads

AT_ONCE = tl.constexpr(256)  # inputs of a layer whose rows a program keeps


@triton.jit
def _arrive(arrived, i_p: tl.constexpr, RUN: tl.constexpr):
    """Tell the others that this stage's results are written, if another stage will read them."""
    if i_p + 1 < RUN.end:
        tl.debug_barrier()
        tl.atomic_add(arrived + i_p, 1, sem="release", scope="gpu")


@triton.jit
def _wait(arrived, i_p: tl.constexpr, RUN: tl.constexpr, PDL: tl.constexpr):
    """Until the others have arrived, in the first stage until the kernel before has ended."""
    if i_p == RUN.first:
        begin(PDL)
    else:
        while tl.atomic_add(arrived + (i_p - 1), 0, sem="acquire", scope="gpu") < RUN.split:
            pass
        tl.debug_barrier()


@triton.jit
def _weights(weight, o_k, o_n, m_n, layer: tl.constexpr):
    """Some of the layer's weights, [BK, BN], for inputs o_k [BK, 1] and outputs o_n [1, BN]."""
    if layer.gathered:
        p_w = weight + layer.weight + o_k * layer.out + o_n
    else:
        p_w = weight + layer.weight + o_n * layer.inp + o_k
    return tl.load(p_w, mask=(o_k < layer.inp) & m_n, other=0.0)


@triton.jit
def _biased(x, stride: tl.constexpr, vector, o_m, m_m, i_k, BK: tl.constexpr, before: tl.constexpr):
    """Columns of the layer's rows with their bias, [BM, BK] float32, and which of them there are."""
    o_k = i_k + tl.arange(0, BK)[None, :]
    m_k = o_k < before.out
    b_x = tl.load(x + o_m * stride + o_k, mask=m_m & m_k, other=0.0).to(tl.float32)
    if before.bias >= 0:
        b_x += tl.load(vector + before.bias + o_k, mask=m_k, other=0.0)
    return b_x, m_k


@triton.jit
def _moments(x, stride: tl.constexpr, vector, o_m, m_m, before: tl.constexpr):
    """Mean and 1 / deviation [BM, 1] of the layer's rows, with their bias."""
    BM: tl.constexpr = o_m.shape[0]
    BN: tl.constexpr = before.cols
    b_mean = tl.zeros([BM, 1], tl.float32)
    b_square = tl.zeros([BM, 1], tl.float32)
    if before.norm == "layer":
        for i_k in tl.static_range(0, BN, AT_ONCE):
            b_x, _ = _biased(x, stride, vector, o_m, m_m, i_k, AT_ONCE, before)
            b_mean += tl.sum(b_x, 1, keep_dims=True) / before.out
    for i_k in tl.static_range(0, BN, AT_ONCE):
        b_x, m_k = _biased(x, stride, vector, o_m, m_m, i_k, AT_ONCE, before)
        b_x = tl.where(m_k, b_x - b_mean, 0.0)
        b_square += tl.sum(b_x * b_x, 1, keep_dims=True) / before.out
    return b_mean, tl.rsqrt(b_square + before.eps)


@triton.jit
def _deep_product(
    x,
    stride: tl.constexpr,
    params,
    o_m,
    m_m,
    o_n,
    m_n,
    before: tl.constexpr,
    layer: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Products of a layer [BM, BN] whose inputs, the layer before on pre-activations x, are read piece by piece."""
    weight, vector, _ = params
    BM: tl.constexpr = o_m.shape[0]
    BN: tl.constexpr = o_n.shape[1]
    NORM: tl.constexpr = before.norm
    ACT: tl.constexpr = before.act
    if NORM != "none":
        b_mean, b_rstd = _moments(x, stride, vector, o_m, m_m, before)
    b_y = tl.zeros([BM, BN], tl.float32)
    for i_k in tl.range(0, layer.inp, DEPTH):
        b_x, m_k = _biased(x, stride, vector, o_m, m_m, i_k, DEPTH, before)
        o_k = i_k + tl.arange(0, DEPTH)
        if NORM != "none":
            b_x = (b_x - b_mean) * b_rstd
        if before.scale >= 0:
            b_x *= tl.load(vector + before.scale + o_k[None, :], mask=m_k, other=0.0)
        if before.shift >= 0:
            b_x += tl.load(vector + before.shift + o_k[None, :], mask=m_k, other=0.0)
        b_w = _weights(weight, o_k[:, None], o_n, m_n, layer)
        b_x = tl.where(m_k, activate(b_x, ACT), 0.0).to(b_w.dtype)
        b_y = tl.dot(once(b_x), b_w, b_y, input_precision="ieee")
    return b_y


@triton.jit
def _product(
    x, stride: tl.constexpr, params, o_m, m_m, o_n, m_n, before: tl.constexpr, layer: tl.constexpr,
    i_p: tl.constexpr, RUN: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Products of a layer [BM, BN] from pre-activations x of the one before it, once they are there.

    Weights of rows that the program keeps are on their way before.
    """
    weight, vector, arrived = params
    if before.cols <= AT_ONCE:
        b_w = _weights(weight, tl.arange(0, before.cols)[:, None], o_n, m_n, layer)
        _wait(arrived, i_p, RUN, PDL)
        b_x = row_norm_act(row_load(x, stride, o_m, m_m, before), vector, before).to(b_w.dtype)
        b_y = tl.dot(once(b_x), b_w, input_precision="ieee")
    else:
        _wait(arrived, i_p, RUN, PDL)
        b_y = _deep_product(x, stride, params, o_m, m_m, o_n, m_n, before, layer, RUN.depth)
    return b_y


@triton.jit
def later_layer(
    x, stride: tl.constexpr, out, params, place, before: tl.constexpr, layer: tl.constexpr,
    i_p: tl.constexpr, TAIL: tl.constexpr, RUN: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """The program's columns of a later layer of a chain, from pre-activations x of the one before it."""
    i_n, o_m, m_m = place
    PER: tl.constexpr = layer.cols // RUN.split
    o_n = i_n * PER + tl.arange(0, PER)[None, :]
    m_n = o_n < layer.out
    b_y = _product(x, stride, params, o_m, m_m, o_n, m_n, before, layer, i_p, RUN, PDL)
    tl.store(out + o_m * TAIL.wide + o_n, b_y.to(out.dtype.element_ty), mask=m_m & m_n)
    _arrive(params[2], i_p, RUN)


@triton.jit
def draws(
    x, stride: tl.constexpr, params, place, drawn, time, length, states, before: tl.constexpr,
    i_p: tl.constexpr, TAIL: tl.constexpr, RUN: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Logits and draws of the program's latent variables. drawn: (noise, given, index, logit, stoch)."""
    i_n, o_m, m_m = place
    noise, given, index, logit, stoch = drawn
    S: tl.constexpr = TAIL.stoch
    C: tl.constexpr = TAIL.classes
    BM: tl.constexpr = o_m.shape[0]
    BV: tl.constexpr = RUN.variables
    BC: tl.constexpr = TAIL.padded
    layer: tl.constexpr = TAIL.logit
    o_j = tl.arange(0, BV * BC)[None, :]
    o_v, o_c = i_n * BV + o_j // BC, o_j % BC
    o_n, m_n = o_v * C + o_c, (o_v < S) & (o_c < C)
    b_y = _product(x, stride, params, o_m, m_m, o_n, m_n, before, layer, i_p, RUN, PDL)
    if layer.bias >= 0:
        b_y += tl.load(params[1] + layer.bias + o_n, mask=m_n, other=0.0)
    b_y = b_y.to(logit.dtype.element_ty)
    tl.store(logit + (o_m * length + time) * S * C + o_n, b_y, mask=m_m & m_n)

    o_s = i_n * BV + tl.arange(0, BV)[None, :]
    m_s = m_m & (o_s < S)
    p_s = (o_m * length + time) * S + o_s
    o_class = tl.arange(0, BC)[None, None, :]
    if given is not None:
        b_i = tl.load(given + p_s, mask=m_s, other=0).to(tl.int32)
    else:
        b_u = tl.load(noise + p_s, mask=m_s, other=0.0).to(tl.float32)[:, :, None]
        b_group = tl.reshape(b_y.to(tl.float32), [BM, BV, BC])
        b_i = draw(b_group, b_u, o_class, 1 - TAIL.unimix, TAIL.unimix / C, C, 2)
        b_i = tl.reshape(b_i, [BM, BV])
    tl.store(index + p_s, b_i.to(index.dtype.element_ty), mask=m_s)
    b_onehot = tl.reshape((o_class == b_i[:, :, None]).to(tl.float32), [BM, BV * BC])
    p_stoch = stoch + (o_m * states + states - length + time) * S * C + o_n
    tl.store(p_stoch, b_onehot.to(stoch.dtype.element_ty), mask=m_m & m_n)
    _arrive(params[2], i_p, RUN)


@triton.jit
def on_stoch(
    rows, stride, product, out, entered, reset, params, place,
    i_p: tl.constexpr, TAIL: tl.constexpr, RUN: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """The program's columns of both layers that read stoch, rows [n, stride]: they go through it together."""
    weight, _, arrived = params
    i_n, o_m, m_m = place
    BM: tl.constexpr = o_m.shape[0]
    enter: tl.constexpr = TAIL.enter
    acts: tl.constexpr = TAIL.chains[ACTOR][0] if RUN.act else enter
    PER_ACT: tl.constexpr = acts.cols // RUN.split
    PER_ENTER: tl.constexpr = enter.cols // RUN.split
    o_a = i_n * PER_ACT + tl.arange(0, PER_ACT)[None, :]
    o_e = i_n * PER_ENTER + tl.arange(0, PER_ENTER)[None, :]
    m_a, m_e = o_a < acts.out, o_e < enter.out
    _wait(arrived, i_p, RUN, PDL)
    b_a = tl.zeros([BM, PER_ACT], tl.float32)
    b_e = tl.zeros([BM, PER_ENTER], tl.float32)
    for i_k in tl.range(0, enter.inp, RUN.depth):
        o_k = i_k + tl.arange(0, RUN.depth)
        b_x = tl.load(rows + o_m * stride + o_k[None, :], mask=m_m & (o_k < enter.inp)[None, :], other=0.0)
        if RUN.act:
            b_w = _weights(weight, o_k[:, None], o_a, m_a, acts)
            b_a = tl.dot(b_x.to(b_w.dtype), b_w, b_a, input_precision="ieee")
        if RUN.enter:
            b_v = _weights(weight, o_k[:, None], o_e, m_e, enter)
            b_e = tl.dot(b_x.to(b_v.dtype), b_v, b_e, input_precision="ieee")
    if RUN.act:
        p_deter = product + TAIL.columns[0] + o_m * TAIL.columns[2] + o_a
        b_a += tl.load(p_deter, mask=m_m & m_a, other=0.0).to(tl.float32)
        tl.store(out + o_m * TAIL.wide + o_a, b_a.to(out.dtype.element_ty), mask=m_m & m_a)
    if RUN.enter:
        b_e = tl.where(_kept(reset, o_m, m_m), b_e, 0.0)
        tl.store(entered + o_m * enter.out + o_e, b_e.to(entered.dtype.element_ty), mask=m_m & m_e)
    _arrive(arrived, i_p, RUN)


@triton.jit
def _kept(reset, o_m, m_m):
    """Which rows start with what is given, and not with zeros."""
    return m_m if reset is None else m_m & (tl.load(reset + o_m, mask=m_m, other=1) == 0)


@triton.jit
def end(
    x_in, stride: tl.constexpr, product, entered, reset, outs, x, params, index, action_noise, action,
    n, time, length, actions, at, i_m, i_n,
    i_p: tl.constexpr, TAIL: tl.constexpr, RUN: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Action and core's inputs of the program's own rows, of those that its group has from i_m on.

    What waits for no action is first, if it is sure to be there: two stages after it was written.
    """
    weight, vector, arrived = params
    BR: tl.constexpr = RUN.rows // RUN.split
    BM: tl.constexpr = 16 if BR < 16 else BR
    enter: tl.constexpr = TAIL.enter
    i_r = i_m + i_n * BR
    n = tl.minimum(n, i_r + BR)
    o_m = i_r + tl.arange(0, BM)[:, None]
    m_m = o_m < n
    DEEP: tl.constexpr = i_p > RUN.first and len(TAIL.chains[ACTOR]) > 1
    EARLY: tl.constexpr = RUN.act and RUN.enter and len(TAIL.deter) == 1 and DEEP
    if EARLY:
        enter_state(product, row_load(entered, enter.out, o_m, m_m, enter), x, vector, o_m, m_m, TAIL)
    if RUN.act:
        last: tl.constexpr = TAIL.chains[ACTOR][len(TAIL.chains[ACTOR]) - 1]
        out: tl.constexpr = TAIL.out[0]
        o_n = tl.arange(0, out.cols)[None, :]
        b_y = _product(x_in, stride, params, o_m, m_m, o_n, o_n < out.out, last, out, i_p, RUN, PDL)
        act_heads(b_y, outs, vector, action_noise, action, n, actions, at, i_r, o_m, m_m, BM, TAIL)
    else:
        _wait(arrived, i_p, RUN, PDL)
    if EARLY:
        enter_action(action, actions, at, x, weight, vector, o_m, m_m, _kept(reset, o_m, m_m), TAIL)
    elif RUN.enter:
        enter_core(
            product, entered, None, 0, reset, x, weight, vector, index, action, time, length, actions, at,
            o_m, m_m, TAIL
        )  # fmt: skip
