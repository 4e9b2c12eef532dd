"""latent_entropy: a program a row of latents, which reads its logits once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdream.ops.triton.categorical import log_mixed
from fastdream.ops.triton.kl import latent_tile
from fastdream.ops.triton.library import check_floats, launch, register
from fastdream.ops.triton.math import load_logits


@triton.jit
def latent_entropy_kernel(
    logit,  # [M, S, C]
    entropy,  # [M]
    S: tl.constexpr,
    C: tl.constexpr,
    UNIMIX: tl.constexpr,
    BS: tl.constexpr,
    BC: tl.constexpr,
):
    i_m = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BC)[None, :]
    b_sum = tl.zeros([BS, 1], tl.float32)
    for i_s in range(0, S, BS):
        o_s = i_s + tl.arange(0, BS)[:, None]
        m_x = (o_s < S) & (o_c < C)
        b_p, b_log = log_mixed(load_logits(logit + i_m * (S * C) + o_s * C + o_c, m_x, o_c < C), C, UNIMIX)
        if UNIMIX > 0:
            b_p = b_p * (1 - UNIMIX) + UNIMIX / C
        b_sum += tl.sum(tl.where(m_x & (b_p != 0), b_p * b_log, 0.0), 1, keep_dims=True)
    tl.store(entropy + i_m, -tl.sum(b_sum))


def latent_entropy(logit: Tensor, unimix: float = 0.0) -> Tensor:
    """As `fastdream.ops.reference.latent_entropy`, float32 or half precision; the result is float32."""
    return torch.ops.fastdream.triton_latent_entropy(logit.detach(), unimix)


def _fake(logit: Tensor, unimix: float) -> Tensor:
    check_floats("latent_entropy", logit=logit)
    if logit.dim() < 2:
        raise ValueError(f"latent_entropy: logit has shape {list(logit.shape)}, expected [..., S, C]")
    return logit.new_empty(logit.shape[:-2], dtype=torch.float32)


def _kernel(logit: Tensor, unimix: float) -> Tensor:
    entropy = _fake(logit, unimix)
    stoch, classes = logit.shape[-2:]
    tile = latent_tile(stoch, classes)
    constants = {"S": stoch, "C": classes, "BS": tile.rows, "BC": tile.cols, "num_warps": tile.warps}
    args = logit.contiguous(), entropy
    launch(latent_entropy_kernel, (entropy.numel(),), *args, UNIMIX=unimix, **constants)
    return entropy


register("latent_entropy(Tensor logit, float unimix) -> Tensor", _kernel, _fake)
