"""The tail of wide layers: their products are launches of their own, and what lies between two of them is a kernel.

Same layers, same memory and same device functions as in `tail`, whose program could not hold rows that wide.
"""

from typing import TYPE_CHECKING

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.block_product import block_product, product_tiles
from fastdream.ops.triton.core_inputs import enter_core, stoch_product
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.packing import Row, part
from fastdream.ops.triton.rows import row_load, row_norm_act, row_product, row_store
from fastdream.ops.triton.tail import ACTOR, act_heads
from fastdream.ops.triton.tail_draw import draw_stoch

if TYPE_CHECKING:
    from fastdream.ops.triton.step import Draws, StepKernels

FEW, MANY = 4, 16  # rows of a program without and with products


@triton.jit(do_not_specialize=["n"])
def rows_kernel(
    pre,  # [n, s_pre]
    embed,  # [n, out] or None: added
    y,  # [n, s_y]
    vector,
    n,
    s_pre,
    s_y,
    LAYER: tl.constexpr,
    BM: tl.constexpr,
):
    """Norm and activation of a layer."""
    o_m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)[:, None]
    m_m = o_m < n
    b_x = row_load(pre, s_pre, o_m, m_m, LAYER)
    if embed is not None:
        b_x += row_load(embed, LAYER.out, o_m, m_m, LAYER)
    row_store(y, s_y, row_norm_act(b_x, vector, LAYER), o_m, m_m, LAYER)


@triton.jit(do_not_specialize=["n", "time", "length", "states"])
def draw_kernel(
    product,  # as in `tail_kernel`, all but the next
    entered,  # [n, out]: out, stoch times the core's layer on it
    hidden,
    weight,
    vector,
    noise,
    given,
    index,
    logit,  # read
    stoch,
    n,
    time,
    length,
    states,
    TAIL: tl.constexpr,
    ACT: tl.constexpr,
    ENTER: tl.constexpr,
    BM: tl.constexpr,
):
    """Draws from the logits, the actor's first layer, and the core's product with what was drawn."""
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = i_m + tl.arange(0, BM)[:, None]
    m_m = o_m < n
    draw_stoch(logit, noise, given, index, stoch, n, length, states, time, i_m, BM, TAIL)
    rows, stride = None, 0
    if TAIL.std != "none":
        rows, stride = stoch + (states - length + time) * TAIL.stoch, states * TAIL.stoch
    if ACT:
        layer: tl.constexpr = TAIL.chains[ACTOR][0]
        b_x = row_load(product + TAIL.columns[0], TAIL.columns[2], o_m, m_m, layer)
        b_x += stoch_product(rows, stride, index, length, time, weight, o_m, m_m, TAIL, layer)
        row_store(hidden, TAIL.wide, row_norm_act(b_x, vector, layer), o_m, m_m, layer)
    if ENTER:
        enter: tl.constexpr = TAIL.enter
        b_s = stoch_product(rows, stride, index, length, time, weight, o_m, m_m, TAIL, enter)
        row_store(entered, enter.out, b_s, o_m, m_m, enter)


@triton.jit(do_not_specialize=["n", "time", "length", "actions", "at"])
def act_kernel(
    product,  # as in `tail_kernel`, all but the next
    entered,  # [n, out]: stoch times the core's layer on it
    reset,
    hidden,
    outs,
    x,
    weight,
    vector,
    index,
    action_noise,
    action,
    n,
    time,
    length,
    actions,
    at,
    TAIL: tl.constexpr,
    ACT: tl.constexpr,
    ENTER: tl.constexpr,
    BM: tl.constexpr,
):
    """The action, and the core's inputs."""
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = i_m + tl.arange(0, BM)[:, None]
    m_m = o_m < n
    if ACT:
        out: tl.constexpr = TAIL.out[0]
        o_n = tl.arange(0, out.cols)[None, :]
        b_y = row_product(hidden, TAIL.wide, weight, o_m, m_m, o_n, o_n < out.out, out)
        act_heads(b_y, outs, vector, action_noise, action, n, actions, at, i_m, o_m, m_m, BM, TAIL)
    if ENTER:
        enter_core(
            product,
            entered,
            None,
            0,
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


def in_parts(
    k: "StepKernels",
    draws: "Draws",
    time: int,
    at: int,
    start: Tensor | None,
    embed: Tensor | None,
    reset: Tensor | None,
    acts: bool,
    enter: bool,
) -> None:
    """As `StepKernels.finish`."""
    tail, rows = k.tail, len(k.x)
    prior, actor = tail.chains
    if start is None:
        _norm_act(k, k.product, prior[0], embed)
        _later(k, prior[1:])
        logit = draws.logit[:, time].flatten(1)
        bias = (
            part(k.vectors, tail.logit.bias, tail.logit.out).expand(rows, -1)
            if tail.logit.bias >= 0
            else None
        )
        _product(k, k.hidden[0, :, : tail.logit.inp], tail.logit, logit, bias)
        # Of classes what follows is a sum of rows, of normals a product.
        count, warps, stages = (FEW, 4, 1) if tail.std == "none" else (MANY, 16, 2)
        launch(
            draw_kernel,
            (triton.cdiv(rows, count),),
            k.product,
            k.entered,
            k.hidden,
            k.weights,
            k.vectors,
            *draws[:5],
            rows,
            time,
            draws.index.shape[1],
            draws.stoch.shape[1],
            TAIL=tail,
            ACT=acts,
            ENTER=enter,
            BM=count,
            num_warps=warps,
            num_stages=stages,
        )
    elif acts:
        columns = k.product[:, tail.columns[0] : tail.columns[0] + actor[0].out]
        _product(k, start, actor[0], columns, columns)
        _norm_act(k, columns, actor[0])
    if start is not None and enter:
        _product(k, start, tail.enter, k.entered, None, reset)
    if acts:
        _later(k, actor[1:])
    if acts or enter:
        # In float32, whose products have no tensor cores, sixteen rows of the core's inputs ran out of registers.
        count = FEW if enter and k.weights.itemsize == 4 else MANY
        launch(
            act_kernel,
            (triton.cdiv(rows, count),),
            k.product,
            k.entered,
            reset,
            k.hidden,
            k.outs,
            k.x,
            k.weights,
            k.vectors,
            draws.index,
            draws.action_noise,
            draws.action,
            rows,
            time,
            draws.index.shape[1],
            draws.action.shape[1],
            at,
            TAIL=tail,
            ACT=acts,
            ENTER=enter,
            BM=count,
            num_warps=16,
            num_stages=2,
        )


def _later(k: "StepKernels", layers: tuple[Row, ...]) -> None:
    """Layers one after the other on hidden[0]; hidden[1] has the products."""
    for layer in layers:
        pre = k.hidden[1, :, : layer.out]
        _product(k, k.hidden[0, :, : layer.inp], layer, pre, None)
        _norm_act(k, pre, layer)


def _product(
    k: "StepKernels", x: Tensor, layer: Row, out: Tensor, base: Tensor | None, reset: Tensor | None = None
) -> None:
    """x [n, inp] times the layer's weight, and base, into out [n, out]; rows of x count as zero where reset."""
    shape = (layer.inp, layer.out) if layer.gathered else (layer.out, layer.inp)
    weight = part(k.weights, layer.weight, *shape)
    weight = (weight if layer.gathered else weight.t()).unsqueeze(0)
    tiles = product_tiles(len(x), layer.out, layer.out, weight.element_size())
    block_product(x, reset, weight, None, None, base, out, None, "none", tiles)


def _norm_act(k: "StepKernels", pre: Tensor, layer: Row, embed: Tensor | None = None) -> None:
    """Norm and activation of the layer on pre into hidden[0]."""
    y, rows = k.hidden[0], len(pre)
    args = pre, embed, y, k.vectors, rows, pre.stride(0), y.stride(0)
    launch(rows_kernel, (triton.cdiv(rows, FEW),), *args, LAYER=layer, BM=FEW, num_warps=4)
