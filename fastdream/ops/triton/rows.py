"""Layers on whole rows, as device functions: a program holds some rows of all features, and streams the weights.

layer   a `packing.Row`
o_m     [BM, 1] int64, numbers of the program's rows; m_m which of them there are
o_n     [1, BN], outputs of the layer in the order of the tile's columns; m_n which of them there are
"""

import triton
import triton.language as tl

from fastdream.ops.triton.norm_kernels import activate, normalize


@triton.jit
def row_product(x, stride, weight, o_m, m_m, o_n, m_n, layer: tl.constexpr):
    """Rows of x [n, stride], cast to the weight's dtype, times the layer's weight: [BM, BN] float32."""
    BM: tl.constexpr = o_m.shape[0]
    BN: tl.constexpr = o_n.shape[1]
    b_y = tl.zeros([BM, BN], tl.float32)
    for i_k in tl.range(0, layer.inp, layer.depth):
        o_k = i_k + tl.arange(0, layer.depth)
        b_x = tl.load(x + o_m * stride + o_k[None, :], mask=m_m & (o_k < layer.inp)[None, :], other=0.0)
        if layer.gathered:
            p_w = weight + layer.weight + o_k[:, None] * layer.out + o_n
        else:
            p_w = weight + layer.weight + o_n * layer.inp + o_k[:, None]
        b_w = tl.load(p_w, mask=(o_k < layer.inp)[:, None] & m_n, other=0.0)
        b_y = tl.dot(b_x.to(b_w.dtype), b_w, b_y, input_precision="ieee")
    return b_y


@triton.jit
def row_inputs(x, stride, o_m, m_m, layer: tl.constexpr):
    """All inputs of the layer, [BM, depth], where depth is not below their number."""
    o_k = tl.arange(0, layer.depth)[None, :]
    return tl.load(x + o_m * stride + o_k, mask=m_m & (o_k < layer.inp), other=0.0)


@triton.jit
def row_weights(weight, o_n, m_n, layer: tl.constexpr):
    """The layer's weights for all inputs, [depth, BN], where depth is not below their number, and which are there."""
    o_k = tl.arange(0, layer.depth)[:, None]
    m_w = (o_k < layer.inp) & m_n
    return tl.load(weight + layer.weight + o_n * layer.inp + o_k, mask=m_w, other=0.0), m_w


@triton.jit
def row_gather(index, stride, weight, o_m, m_m, S: tl.constexpr, C: tl.constexpr, layer: tl.constexpr):
    """One-hots [S, C] of index [n, stride] times the layer's weight: the sum of S of its rows, [BM, cols] float32.

    The dense product would read all S * C rows once for BM of x, and so as much from C = BM on.
    """
    BM: tl.constexpr = o_m.shape[0]
    BN: tl.constexpr = layer.cols
    o_n = tl.arange(0, BN)[None, :]
    b_y = tl.zeros([BM, BN], tl.float32)
    for i_s in tl.range(0, S, loop_unroll_factor=4):
        b_i = tl.load(index + o_m * stride + i_s, mask=m_m, other=0).to(tl.int32)
        p_w = weight + layer.weight + (i_s * C + b_i) * layer.out + o_n
        b_y += tl.load(p_w, mask=(b_i >= 0) & (b_i < C) & (o_n < layer.out), other=0.0).to(tl.float32)
    return b_y


@triton.jit
def _vector(vector, place: tl.constexpr, layer: tl.constexpr):
    BN: tl.constexpr = layer.cols
    o_n = tl.arange(0, BN)[None, :]
    if place >= 0:
        b_v = tl.load(vector + place + o_n, mask=o_n < layer.out, other=0.0)
    else:
        b_v = tl.zeros([1, BN], tl.float32)
    return b_v


@triton.jit
def row_vectors(vector, layer: tl.constexpr):
    """Bias, scale and shift of the layer, [1, cols] each; zeros for what is not there, which nothing reads."""
    b_bias = _vector(vector, layer.bias, layer)
    b_scale = _vector(vector, layer.scale, layer)
    return b_bias, b_scale, _vector(vector, layer.shift, layer)


@triton.jit
def row_normed(b_x, b_bias, b_scale, b_shift, layer: tl.constexpr):
    """Bias, norm and activation of the layer on products b_x [BM, cols], which are 0 beyond out."""
    NORM: tl.constexpr = layer.norm
    ACT: tl.constexpr = layer.act
    if layer.bias >= 0:
        b_x += b_bias
    if NORM != "none":
        b_x, _ = normalize(b_x, tl.arange(0, layer.cols)[None, :] < layer.out, layer.eps, layer.out, NORM)
    if layer.scale >= 0:
        b_x *= b_scale
    if layer.shift >= 0:
        b_x += b_shift
    return activate(b_x, ACT)


@triton.jit
def row_norm_act(b_x, vector, layer: tl.constexpr):
    """As `row_normed`, of vectors that are still to be read."""
    b_bias, b_scale, b_shift = row_vectors(vector, layer)
    return row_normed(b_x, b_bias, b_scale, b_shift, layer)


@triton.jit
def row_load(x, stride, o_m, m_m, layer: tl.constexpr):
    """Products of the layer that another kernel made: the first columns of x [n, stride], float32."""
    o_n = tl.arange(0, layer.cols)[None, :]
    return tl.load(x + o_m * stride + o_n, mask=m_m & (o_n < layer.out), other=0.0).to(tl.float32)


@triton.jit
def row_store(y, stride, b_y, o_m, m_m, layer: tl.constexpr):
    """b_y [BM, cols] into the first columns of y [n, stride]."""
    o_n = tl.arange(0, layer.cols)[None, :]
    tl.store(y + o_m * stride + o_n, b_y.to(y.dtype.element_ty), mask=m_m & (o_n < layer.out))
