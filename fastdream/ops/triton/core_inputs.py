"""The layers of a core that read stoch and action, and the norm of the one that reads deter, as device functions."""

import triton
import triton.language as tl

from fastdream.ops.triton.rows import row_gather, row_load, row_norm_act, row_product, row_store


@triton.jit
def stoch_product(
    rows, stride, index, length, time, weight, o_m, m_m, TAIL: tl.constexpr, layer: tl.constexpr
):
    """stoch times the layer's weight: rows [n, stride] of it, or if None the one-hots of the classes drawn."""
    if rows is None:
        b_y = row_gather(
            index + time * TAIL.stoch, length * TAIL.stoch, weight, o_m, m_m, TAIL.stoch, TAIL.classes, layer
        )
    else:
        o_n = tl.arange(0, layer.cols)[None, :]
        b_y = row_product(rows, stride, weight, o_m, m_m, o_n, o_n < layer.out, layer)
    return b_y


@triton.jit
def action_product(action, actions, at, weight, o_m, m_m, TAIL: tl.constexpr):
    """The action as the core takes it, times the weight of the core's layer."""
    layer: tl.constexpr = TAIL.action
    BM: tl.constexpr = o_m.shape[0]
    BN: tl.constexpr = layer.cols
    o_n = tl.arange(0, BN)[None, :]
    b_y = tl.zeros([BM, BN], tl.float32)
    for i_k in tl.range(0, layer.inp, layer.depth):
        o_k = i_k + tl.arange(0, layer.depth)
        p_a = action + (o_m * actions + at) * layer.inp + o_k[None, :]
        b_a = tl.load(p_a, mask=m_m & (o_k < layer.inp)[None, :], other=0.0).to(tl.float32)
        if TAIL.clipped:
            b_a = b_a / tl.maximum(tl.abs(b_a), 1.0)
        p_w = weight + layer.weight + o_n * layer.inp + o_k[:, None]
        b_w = tl.load(p_w, mask=(o_k < layer.inp)[:, None] & (o_n < layer.out), other=0.0)
        b_y = tl.dot(b_a.to(b_w.dtype), b_w, b_y, input_precision="ieee")
    return b_y


@triton.jit
def enter_state(product, b_stoch, x, vector, o_m, m_m, TAIL: tl.constexpr):
    """A block core's layers on deter and on stoch, of the products of both."""
    deter: tl.constexpr = TAIL.deter[0]
    layer: tl.constexpr = TAIL.enter
    row_store(x + deter.out, TAIL.inputs, row_norm_act(b_stoch, vector, layer), o_m, m_m, layer)
    b_deter = row_load(product + TAIL.columns[1], TAIL.columns[2], o_m, m_m, deter)
    row_store(x, TAIL.inputs, row_norm_act(b_deter, vector, deter), o_m, m_m, deter)


@triton.jit
def enter_action(action, actions, at, x, weight, vector, o_m, m_m, m_kept, TAIL: tl.constexpr):
    """A block core's layer on the action, which is zero outside m_kept."""
    layer: tl.constexpr = TAIL.action
    b_y = row_norm_act(action_product(action, actions, at, weight, o_m, m_kept, TAIL), vector, layer)
    row_store(x + TAIL.inputs - layer.out, TAIL.inputs, b_y, o_m, m_m, layer)


@triton.jit
def enter_core(
    product,
    entered,
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
    TAIL: tl.constexpr,
):
    """The core's inputs [n, inputs]: its layers on deter, stoch and action side by side, or one on the latter two.

    entered [n, out]: stoch's product if it was made elsewhere. rows, stride: as in `stoch_product`.
    """
    layer: tl.constexpr = TAIL.enter
    m_kept = m_m
    if reset is not None:
        m_kept = m_m & (tl.load(reset + o_m, mask=m_m, other=1) == 0)
    if entered is not None:
        b_stoch = row_load(entered, layer.out, o_m, m_m, layer)
    else:
        b_stoch = stoch_product(rows, stride, index, length, time, weight, o_m, m_kept, TAIL, layer)
    if len(TAIL.deter) == 1:
        enter_state(product, b_stoch, x, vector, o_m, m_m, TAIL)
        enter_action(action, actions, at, x, weight, vector, o_m, m_m, m_kept, TAIL)
    else:
        b_x = b_stoch + action_product(action, actions, at, weight, o_m, m_kept, TAIL)
        row_store(x, TAIL.inputs, row_norm_act(b_x, vector, layer), o_m, m_m, layer)
