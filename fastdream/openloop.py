"""What a world model would have predicted: the first half of a sequence observed, the second half dreamed."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdream.decoder import Decoder
from fastdream.encoder import Encoder
from fastdream.ops import Ops
from fastdream.rssm import RSSM
from fastdream.strided import StridedDecoder, StridedEncoder

SEQUENCES = 6  # shown side by side
GREEN, RED = (0, 255, 0), (255, 0, 0)  # borders while observing and while dreaming


@torch.no_grad()
def open_loop(
    ops: Ops,
    enc: Encoder | StridedEncoder,
    dyn: RSSM,
    dec: Decoder | StridedDecoder,
    carry: Mapping[str, Tensor],
    batch: Mapping[str, Tensor],
    action: Tensor,
    generator: torch.Generator,
) -> dict[str, np.ndarray]:
    """Posterior reconstructions of steps 0 to T/2, then open-loop predictions from the actions alone.

    batch entries [B, T, ...], action [B, T, A] flat. Returns by observation key, for at most six sequences: an
    image key gives a video uint8 [T, height, width, 3] with truth, prediction and error below each other; a
    continuous vector key gives float32 [2, T, N], truth and prediction of the first sequence.
    """
    count, half = min(SEQUENCES, len(action)), action.shape[1] // 2
    batch = {k: v[:count] for k, v in batch.items()}
    deter, stoch, action = carry["deter"][:count], carry["stoch"][:count], action[:count]
    latent, params = dyn.latent, dyn.params
    first = {k: v[:, :half] for k, v in batch.items()}
    noise = latent.noise(*action.shape[:2], generator=generator)
    post = ops.observe(params, deter, stoch, action[:, :half], enc(first), first["is_first"], noise[:, :half])
    dream = ops.rollout(params, post.deter[:, -1], post.stoch[:, -1], action[:, half:], noise[:, half:])
    deter = torch.cat([post.deter, dream.deter], 1)
    stoch = torch.cat([dyn.flat(post.stoch), dyn.flat(dream.stoch)], 1)
    pictures = {}
    for key, pred in dec.pred(dec(deter, stoch)).items():
        kind = dec.spaces[key].kind
        if kind == "image":
            pictures[key] = clip(batch[key], pred, half)
        elif kind == "vector":
            pair = torch.stack([batch[key][0].float(), pred[0].float()]).reshape(2, action.shape[1], -1)
            pictures[key] = pair.cpu().numpy()
    return pictures


def clip(truth: Tensor, pred: Tensor, half: int) -> np.ndarray:
    """Truth, prediction and error below each other, framed in red where nothing but the prediction goes on.

    truth in 0..255 and pred in 0..1, [B, T, H, W, C] each -> uint8 [T, 3 (H + 4), B (W + 4), 3]; the first `half`
    steps are framed in green.
    """
    true = truth.short()
    model = (pred.float() * 255).clamp(0, 255).to(torch.int16)
    error = (model - true + 255) // 2
    rows = torch.stack([true, model, error], 1)[..., :3]  # [B, 3, T, H, W, C]
    if rows.shape[-1] == 2:
        rows = F.pad(rows, (0, 1))
    framed = F.pad(rows, (0, 0, 2, 2, 2, 2), value=-1)
    border = torch.tensor([GREEN] * half + [RED] * (rows.shape[2] - half), device=rows.device)
    # Where there is one channel, the colours of the frame make three of it.
    framed = torch.where(framed < 0, border[None, None, :, None, None, :].short(), framed)
    B, R, T, H, W, C = framed.shape
    return framed.permute(2, 1, 3, 0, 4, 5).reshape(T, R * H, B * W, C).to(torch.uint8).cpu().numpy()
