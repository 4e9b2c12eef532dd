"""Functions of single numbers, in float32: what Triton itself has not, or has slower or with less precision near 0."""

import triton
import triton.language as tl


@triton.jit
def exp(x):
    """exp(x) to the last bits where x is large: tl.exp rounds x * log2(e), whose error then grows with x."""
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) + n * 2.12194440e-4  # ln 2 in two parts, the first of few bits
    return tl.exp2(n) * tl.exp(r)


@triton.jit
def expm1(x):
    """exp(x) - 1."""
    series = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))))
    return tl.where(tl.abs(x) < 0.25, series, exp(x) - 1)


@triton.jit
def log1p(x):
    """log(1 + x) of x >= 0."""
    u = 1 + x
    # The rounding error of 1 + x cancels between log(u) and u - 1.
    near = tl.log(u) * (x / tl.where(u == 1, 1.0, u - 1))
    return tl.where(u == 1, x, tl.where(x < 1, near, tl.log(u)))


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) in 5 instructions, of which a division alone takes more for numbers that do not come."""
    root = tl.rsqrt(1 + tl.exp2(x * -1.4426950408889634))
    return root * root


@triton.jit
def tanh(x):
    square = x * x
    series = x * (1 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    return tl.where(square < 0.0625, series, tl.where(x < 0, -far, far))


@triton.jit
def own_rows(M, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """A program's tile of [M, N], of whole rows: the first of them, in 64 bits, rows [BM, 1] from there on, columns
    [1, BN], which of the rows there are, and which of the columns.
    """
    i_m = tl.program_id(0).to(tl.int64) * BM
    o_m = tl.arange(0, BM)[:, None]
    o_n = tl.arange(0, BN)[None, :]
    return i_m, o_m, o_n, o_m < M - i_m, o_n < N


@triton.jit
def load_logits(p_x, m_x, m_n):
    """Rows of logits: columns that are not there are -inf, rows that are not there 0."""
    return tl.where(m_n, tl.load(p_x, mask=m_x, other=0.0).to(tl.float32), float("-inf"))


@triton.jit
def softmax(b_x, AXIS: tl.constexpr = 1):
    """Of rows [BM, BN], or along another axis; columns that are not there are -inf."""
    b_e = tl.exp(b_x - tl.max(b_x, AXIS, keep_dims=True))
    return b_e / tl.sum(b_e, AXIS, keep_dims=True)
