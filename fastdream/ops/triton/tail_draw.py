"""How a tail draws stoch of whole rows from their logits: device functions."""

import triton
import triton.language as tl

from fastdream.ops.triton.draw import draw, std_of


@triton.jit
def draw_stoch(
    logit, noise, given, index, stoch, n, length, states, time, i_m, BM: tl.constexpr, TAIL: tl.constexpr
):
    """stoch of BM rows from i_m on, from their logits, and of classes their index."""
    if TAIL.std == "none":
        draw_classes(logit, noise, given, index, stoch, n, length, states, time, i_m, BM, TAIL)
    else:
        draw_normals(logit, noise, stoch, n, length, states, time, i_m, BM, TAIL)
    tl.debug_barrier()


@triton.jit
def draw_normals(logit, noise, stoch, n, length, states, time, i_m, BM: tl.constexpr, TAIL: tl.constexpr):
    """Of means and raw deviations, `groups` variables at a time."""
    S: tl.constexpr = TAIL.stoch
    STD: tl.constexpr = TAIL.std
    MIN_STD: tl.constexpr = TAIL.min_std
    o_r = i_m + tl.arange(0, BM)[:, None]
    for i_s in tl.range(0, S, TAIL.groups):
        o_s = i_s + tl.arange(0, TAIL.groups)[None, :]
        m_s = (o_r < n) & (o_s < S)
        p_mean = logit + (o_r * length + time) * 2 * S + o_s
        b_mean = tl.load(p_mean, mask=m_s, other=0.0).to(tl.float32)
        b_raw = tl.load(p_mean + S, mask=m_s, other=0.0).to(tl.float32)
        b_noise = tl.load(noise + (o_r * length + time) * S + o_s, mask=m_s, other=0.0).to(tl.float32)
        b_x = b_mean + std_of(b_raw, MIN_STD, STD) * b_noise
        p_stoch = stoch + (o_r * states + states - length + time) * S + o_s
        tl.store(p_stoch, b_x.to(stoch.dtype.element_ty), mask=m_s)


@triton.jit
def draw_classes(
    logit, noise, given, index, stoch, n, length, states, time, i_m, BM: tl.constexpr, TAIL: tl.constexpr
):
    """Classes and one-hots, `groups` variables at a time."""
    S: tl.constexpr = TAIL.stoch
    C: tl.constexpr = TAIL.classes
    o_g = tl.arange(0, BM * TAIL.groups)[:, None]
    o_r = i_m + o_g // TAIL.groups
    o_c = tl.arange(0, TAIL.padded)[None, :]
    for i_s in tl.range(0, S, TAIL.groups):
        o_s = i_s + o_g % TAIL.groups
        m_s = (o_r < n) & (o_s < S)
        p_s = (o_r * length + time) * S + o_s
        if given is not None:
            b_i = tl.load(given + p_s, mask=m_s, other=0).to(tl.int32)
        else:
            b_u = tl.load(noise + p_s, mask=m_s, other=0.0).to(tl.float32)
            b_y = tl.load(logit + p_s * C + o_c, mask=m_s & (o_c < C), other=0.0).to(tl.float32)
            b_i = draw(b_y, b_u, o_c, 1 - TAIL.unimix, TAIL.unimix / C, C, 1)
        tl.store(index + p_s, b_i.to(index.dtype.element_ty), mask=m_s)
        p_stoch = stoch + ((o_r * states + states - length + time) * S + o_s) * C + o_c
        tl.store(p_stoch, (o_c == b_i).to(stoch.dtype.element_ty), mask=m_s & (o_c < C))
