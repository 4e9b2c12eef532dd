"""From the backward scan's gradients at every step to those of parameters and inputs: flat products over B * T rows."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native.resident_pack import Params, Shape


class Kept(NamedTuple):
    """Results of the forward scan; layers before their norms and functions, features after them."""

    deter: Tensor  # [B, T, D]
    stoch: Tensor  # [B, T, S, C]
    logit: Tensor
    index: Tensor  # type: ignore[assignment]  # [B, T, S]
    pre: Tensor  # [B, T, 2H], the layers of deter | stoch
    hidden: Tensor  # [B, T, D]
    gates: Tensor  # [B, T, 3D]
    post: Tensor  # [B, T, H]
    pre_feat: Tensor
    hidden_feat: Tensor
    post_feat: Tensor
    roots: Tensor  # [B, T, 4], the norms' 1 / root mean square
    weights: Tensor  # `backward_weights` of `resident_pack`
    vectors: Tensor  # `vectors` of it
    words: Tensor  # [tiles, T + 1] int32, bits of reset


class Slopes(NamedTuple):
    """Results of the backward scan: gradients of what the forward scan kept, shaped like it."""

    logit: Tensor
    pre: Tensor
    hidden: Tensor
    gates: Tensor
    post: Tensor
    totals: Tensor  # [tiles, n], those of biases and norms' scales: `Totals` of csrc/common/resident/backward_data.h


def _shifted(first: Tensor, rest: Tensor, reset: Tensor) -> Tensor:
    """What the steps began with: first [B, n], then rest [B, T, n] but for its last; zeros at resets."""
    return torch.cat([first.unsqueeze(1), rest[:, :-1]], 1).masked_fill_(reset.unsqueeze(-1), 0.0)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def _blocked(x: Tensor, blocks: int) -> Tensor:
    """[B, T, n] -> [blocks, B * T, n / blocks]."""
    return _rows(x).unflatten(-1, (blocks, -1)).transpose(0, 1)


def gradients(
    p: Params,
    shape: Shape,
    deter: Tensor,
    stoch: Tensor,
    reset: Tensor,
    kept: Kept,
    slopes: Slopes,
    carried: Tensor,
) -> list[Tensor]:
    """Gradients of the parameters, of deter [B, D] and stoch [B, S, C], and of entered and embedded.

    carried [B, D]: what reaches deter, but for what comes through its features.
    """
    before = _shifted(deter, kept.deter, reset)
    drawn = _shifted(stoch.flatten(1), kept.stoch.flatten(2), reset)
    d_deter, d_stoch = slopes.pre.split(shape.hidden, -1)
    g, h = shape.blocks, shape.hidden
    totals = slopes.totals[0] if len(slopes.totals) == 1 else slopes.totals.sum(0)
    biases, scales = totals.split([len(p.logits_bias) + len(p.gates_bias) + 2 * h, 3 * h + shape.deter])
    logits_bias, gates_bias, deter_bias, stoch_bias = biases.to(p.gates_bias.dtype).split(
        [len(p.logits_bias), len(p.gates_bias), h, h]
    )
    deter_scale, stoch_scale, post_scale, hidden_scale = scales.split([h, h, h, shape.deter])
    hidden, gates = _blocked(slopes.hidden, g), _blocked(slopes.gates, g)
    of_params = Params(
        deter=_rows(d_deter).t() @ _rows(before),
        deter_bias=deter_bias,
        deter_scale=deter_scale,
        stoch=_rows(d_stoch).t() @ _rows(drawn),
        stoch_bias=stoch_bias,
        stoch_scale=stoch_scale,
        of_deter=_blocked(before, g).mT @ hidden,
        of_state=_rows(slopes.hidden).t() @ _rows(kept.pre_feat),
        hidden_scale=hidden_scale,
        gates=_blocked(kept.hidden_feat, g).mT @ gates,
        gates_bias=gates_bias,
        post=_rows(slopes.post).t() @ _rows(kept.deter),
        post_scale=post_scale,
        logits=_rows(slopes.logit.flatten(2)).t() @ _rows(kept.post_feat),
        logits_bias=logits_bias,
    )
    forgets = reset[:, :1]
    to_deter = (carried + d_deter[:, 0] @ p.deter).masked_fill(forgets, 0.0)
    to_stoch = (d_stoch[:, 0] @ p.stoch).masked_fill(forgets, 0.0).view_as(stoch)
    inputs = to_deter, to_stoch, slopes.hidden, slopes.post
    wanted = *p, deter, stoch, slopes.hidden, slopes.post
    return [x.to(y.dtype) for x, y in zip((*of_params, *inputs), wanted, strict=True)]
