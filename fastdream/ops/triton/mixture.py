"""The output of World Models' memory: the product that makes its mixtures, and a draw from each, in one launch.

out = hidden W + bias = [end, for each of Z latent dimensions: K logits | K means | K logarithms of stds]
latent = mean + exp(logstd) * sqrt(tau) * normal,  of the component that `uniform` draws from softmax(logit / tau)

hidden      [M, D]
weight      [E + 3ZK, D]    E: 1 if there is an end
bias        [E + 3ZK]       or None
uniform, normal  [M, Z]     any float
latent      [M, Z]          float32, written; with parts of the next action's sums (see `lstm.Acting`), or without
ends        [M]             float32, written; -infinity if there is no end

All have unit stride in their rows, ends any; hidden, weight and bias have one dtype. A program has some dimensions of
some rows: of each dimension as many columns as the power of two P above 3K, of which the end takes a free one.
"""

import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.draw import draw
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.lstm import PRECISION, Acting
from fastdream.ops.triton.overlap import begin

COLUMNS = 128  # of a program at the most: a dimension has fewer than so many


def mixture_tiles(rows: int, latents: int, mixtures: int, itemsize: int) -> Tiles:
    """Tiles for so many rows and latent dimensions; tiles.n are dimensions."""
    columns = power_of_two(3 * mixtures)
    depth, least = 128 // itemsize, max(1, 16 // columns)
    if rows <= 16:
        return Tiles(16, least, 2 * depth, 4, 3)  # latency counts
    most = max(least, COLUMNS // columns)
    shapes = [(m, n) for m, n in ((64, most), (32, most), (32, most // 2)) if n >= least]
    enough = [(m, n) for m, n in shapes if triton.cdiv(rows, m) * triton.cdiv(latents, n) >= 120]
    m, n = (*enough, shapes[-1])[0]
    return Tiles(m, n, depth, 8 if m * n * columns >= 2**13 else 4, 3)


@triton.jit(do_not_specialize=["M", "tau", "spread"])
def mixture_kernel(
    hidden,  # [M, D]
    weight,  # [E + 3*Z*K, D]
    bias,  # [E + 3*Z*K] or None
    uniform,  # [M, Z]
    normal,  # [M, Z]
    latent,  # [M, Z]
    ends,  # [M]
    after,  # [P, A, M] or None, like the next
    control,  # [M, F, A]
    M,
    tau,
    spread,  # sqrt(tau)
    s_uniform,
    s_normal,
    s_latent,
    s_ends,
    s_control,
    D: tl.constexpr,
    Z: tl.constexpr,
    K: tl.constexpr,
    P: tl.constexpr,
    E: tl.constexpr,
    A: tl.constexpr,
    FIRST: tl.constexpr,  # part that is the first program's
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BZ: tl.constexpr,
    BK: tl.constexpr,
    PDL: tl.constexpr,
):
    begin(PDL)
    i_z = tl.program_id(0) * BZ
    o_m = tl.program_id(1) * BM + tl.arange(0, BM)
    o_row = o_m.to(tl.int64)
    m_m = o_m < M
    o_n = tl.arange(0, BZ * P)
    o_dim, o_part = i_z + o_n // P, o_n % P
    m_end = (E == 1) & (o_dim == 0) & (o_part == 3 * K)
    m_n = m_end | ((o_dim < Z) & (o_part < 3 * K))
    o_col = tl.where(m_end, 0, E + o_dim * 3 * K + o_part)

    b_out = tl.zeros([BM, BZ * P], tl.float32)
    for i_k in range(0, D, BK):
        o_k = i_k + tl.arange(0, BK)
        m_k = o_k < D
        p_h = hidden + o_row[:, None] * D + o_k[None, :]
        p_w = weight + o_col[None, :] * D + o_k[:, None]
        b_h = tl.load(p_h, mask=m_m[:, None] & m_k[None, :], other=0.0)
        b_w = tl.load(p_w, mask=m_k[:, None] & m_n[None, :], other=0.0)
        b_out = tl.dot(b_h, b_w, b_out, input_precision=PRECISION)
    if bias is not None:
        b_out += tl.load(bias + o_col, mask=m_n, other=0.0).to(tl.float32)[None, :]

    b_out = tl.reshape(b_out, [BM, BZ, P])
    o_z = i_z + tl.arange(0, BZ)
    o_p = tl.arange(0, P)[None, None, :]
    m_z = m_m[:, None] & (o_z < Z)[None, :]
    b_u = tl.load(uniform + o_row[:, None] * s_uniform + o_z[None, :], mask=m_z, other=0.0).to(tl.float32)
    b_i = draw(b_out / tau, tl.expand_dims(b_u, 2), o_p, 1.0, 0.0, K, 2)
    b_mean = tl.sum(tl.where(o_p == K + b_i, b_out, 0.0), 2)
    b_logstd = tl.sum(tl.where(o_p == 2 * K + b_i, b_out, 0.0), 2)
    b_eps = tl.load(normal + o_row[:, None] * s_normal + o_z[None, :], mask=m_z, other=0.0).to(tl.float32)
    b_z = b_mean + tl.exp(b_logstd) * spread * b_eps
    tl.store(latent + o_row[:, None] * s_latent + o_z[None, :], b_z, mask=m_z)
    if after is not None:
        for i_a in tl.static_range(A):
            p_w = control + o_row[:, None] * s_control + o_z[None, :] * A + i_a
            b_part = tl.sum(b_z * tl.load(p_w, mask=m_z, other=0.0), 1)
            tl.store(after + ((FIRST + tl.program_id(0)) * A + i_a) * M + o_m, b_part, mask=m_m)
    if E == 1:
        b_end = tl.sum(tl.where(o_p == 3 * K, b_out, 0.0), 2)
    else:
        b_end = tl.full([BM, BZ], float("-inf"), tl.float32)
    m_first = m_m[:, None] & (o_z == 0)[None, :]
    tl.store(ends + o_row[:, None] * s_ends + 0 * o_z[None, :], b_end, mask=m_first)


def mixture(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    uniform: Tensor,
    normal: Tensor,
    latent: Tensor,
    ends: Tensor,
    mixtures: int,
    temperature: float,
    tiles: Tiles,
    action: Tensor | Acting,
) -> None:
    """Compute `latent` and `ends`, and perhaps parts of the next action, as above."""
    (rows, units), latents = hidden.shape, latent.shape[1]
    programs = triton.cdiv(latents, tiles.n)
    after, control = (action.after, action.weight) if isinstance(action, Acting) else (None, None)
    launch(
        mixture_kernel,
        (programs, triton.cdiv(rows, tiles.m)),
        hidden,
        weight,
        bias,
        uniform,
        normal,
        latent,
        ends,
        after,
        control,
        rows,
        temperature,
        temperature**0.5,
        uniform.stride(0),
        normal.stride(0),
        latent.stride(0),
        ends.stride(0),
        0 if control is None else control.stride(0),
        D=units,
        Z=latents,
        K=mixtures,
        P=power_of_two(3 * mixtures),
        E=len(weight) - 3 * latents * mixtures,
        A=0 if control is None else control.shape[2],
        FIRST=0 if after is None else len(after) - programs,
        PRECISION=PRECISION,
        BM=tiles.m,
        BZ=tiles.n,
        BK=tiles.k,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
