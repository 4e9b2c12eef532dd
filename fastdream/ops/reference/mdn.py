"""The memory of World Models: an LSTM whose output is a mixture of normals for every latent dimension.

Sizes: N rows, T steps, D units, Z latent dimensions, A action width, K components of each mixture.
Source: Ha & Schmidhuber 2018, `rnn.py` and `doomrnn.py` of the authors' experiments.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastdream.ops.params import MDNRNN, Control, MDNDream, MDNStep, need_steps
from fastdream.ops.reference.categorical import inverse_cdf
from fastdream.ops.reference.layers import added, linear, match, upcast


def lstm_gates(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM after its products: gates [N, 4D] = in | cand | forget | out, cell [N, D] -> (hidden, cell) [N, D].

    cell' = sigmoid(forget + 1) * cell + sigmoid(in) * tanh(cand), hidden' = sigmoid(out) * tanh(cell').
    """
    enter, cand, forget, out = gates.chunk(4, -1)
    cell = torch.sigmoid(forget + 1) * cell + torch.sigmoid(enter) * torch.tanh(cand)
    return torch.sigmoid(out) * torch.tanh(cell), cell


def lstm_scan(
    entered: Tensor, weight: Tensor, restart: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """The LSTM over T steps, zeroed before those at which an episode begins.

    entered [N, T, 4D] is what enters the gates beside hidden: their inputs' product with the bias. weight [4D, D] of
    hidden, restart [N, T] bool; hidden, cell [N, D] from before. Returns (hidden [N, T, D], the last cell [N, D]) in
    entered's dtype.
    """
    need_steps("lstm_scan", entered.shape[1])
    dtype = entered.dtype
    weight, hidden, cell = (match(x, dtype) for x in (weight, hidden, cell))
    keep, outputs = match(~restart[..., None], dtype), []
    for gates, kept in zip(entered.unbind(1), keep.unbind(1), strict=True):
        hidden, cell = lstm_gates(added(gates, hidden * kept, weight), cell * kept)
        outputs.append(hidden)
    return torch.stack(outputs, 1), cell


def mdn_split(out: Tensor, latents: int, mixtures: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output [..., 3ZK or 1 + 3ZK] as (logit [...] of the episode's end, then logit, mean, logstd [..., Z, K]).

    A model without the first column has no end: its logit is -infinity. Behind it stand, dimension by dimension, K
    logits, K means and K logarithms of standard deviations. All in float32 at least.
    """
    out, width = upcast(out), 3 * latents * mixtures
    ends = out[..., 0] if out.shape[-1] > width else out.new_full(out.shape[:-1], -torch.inf)
    logit, mean, logstd = out[..., -width:].unflatten(-1, (latents, 3, mixtures)).unbind(-2)
    return ends, logit, mean, logstd


def mdn_sample(
    logit: Tensor, mean: Tensor, logstd: Tensor, uniform: Tensor, normal: Tensor, temperature: float = 1.0
) -> Tensor:
    """A draw from each mixture [..., K] -> [...], at a temperature tau > 0.

    uniform [...] in [0, 1) chooses the component by the inverse CDF of softmax(logit / tau); normal [...] is the
    standard normal number: mean + exp(logstd) * sqrt(tau) * normal.
    """
    chosen = inverse_cdf(torch.softmax(logit / temperature, -1), uniform)[..., None]
    std = logstd.gather(-1, chosen).squeeze(-1).exp() * temperature**0.5
    return mean.gather(-1, chosen).squeeze(-1) + std * match(normal, mean.dtype)


def lstm_mdn_step(
    model: MDNRNN,
    hidden: Tensor,
    cell: Tensor,
    latent: Tensor,
    action: Tensor,
    restart: Tensor,
    uniform: Tensor,
    normal: Tensor,
    temperature: float = 1.0,
) -> MDNStep:
    """One step of a dream, without gradient: the state and latent that an action leads to, and whether it ends there.

    hidden, cell [N, D]; latent [N, Z] and action [N, A] of now. restart [N] bool: hidden and cell are zeroed where
    True, before the step; the flag is also the last input of a model whose weight has Z + A + 1 columns.
    uniform, normal [N, Z] and temperature as in `mdn_sample`.
    Returns MDNStep(hidden, cell [N, D] in hidden.dtype; latent [N, Z] and ends [N] in float32 at least). The dream
    of a row is over where ends > 0; it is -infinity for a model that knows no end (see `mdn_split`).
    """
    with torch.no_grad():
        dtype, keep = hidden.dtype, ~restart[:, None]
        flag = [match(restart[:, None], dtype)] if model.restart else []
        x = torch.cat([match(latent, dtype), match(action, dtype), *flag], -1)
        gates = linear(x, model.weight_ih, model.bias) + linear(hidden * keep, model.weight_hh)
        hidden, cell = lstm_gates(gates, match(cell, dtype) * keep)
        out = linear(hidden, model.out.weight, model.out.bias)
        ends, logit, mean, logstd = mdn_split(out, latent.shape[-1], model.mixtures)
        drawn = mdn_sample(logit, mean, logstd, uniform, normal, temperature)
        return MDNStep(hidden, cell, drawn, ends)


def controlled(control: Control, latent: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
    """Actions [N, A] in [-1, 1], in float32 at least, from latent [N, Z] and hidden, cell [N, D].

    Parameters without their first axis are of one controller for all rows.
    """
    action = control_sums(control.weight, latent, hidden, cell)
    return torch.tanh(action if control.bias is None else action + match(control.bias, action.dtype))


def control_sums(weight: Tensor, latent: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
    """The products alone [N, A] of what the controllers see."""
    seen = weight.shape[-2] > latent.shape[-1] + hidden.shape[-1]
    feat = upcast(torch.cat([latent, cell, hidden] if seen else [latent, hidden], -1))
    weight = match(weight, feat.dtype)
    action = feat @ weight if weight.dim() == 2 else torch.bmm(feat[:, None], weight)[:, 0]
    return match(action, feat.dtype)


def lstm_mdn_dream(
    model: MDNRNN,
    control: Control,
    hidden: Tensor,
    cell: Tensor,
    latent: Tensor,
    restart: Tensor,
    uniform: Tensor,
    normal: Tensor,
    temperature: float = 1.0,
) -> MDNDream:
    """T steps of a dream, without gradient, whose actions the controllers choose; T is 1 at least.

    control   one of each row. hidden, cell [N, D]; latent [N, Z] to begin with. restart [N] bool is of the first step.
    uniform, normal [N, T, Z] and temperature as in `mdn_sample`.
    Returns MDNDream(hidden, cell [N, D] in hidden.dtype; latent [N, T, Z] and ends [N, T] in float32 at least). A dream
    goes on after its end.
    """
    return dreamt(lstm_mdn_step, model, control, hidden, cell, latent, restart, uniform, normal, temperature)


def dreamt(
    step: Callable[..., MDNStep],
    model: MDNRNN,
    control: Control,
    hidden: Tensor,
    cell: Tensor,
    latent: Tensor,
    restart: Tensor,
    uniform: Tensor,
    normal: Tensor,
    temperature: float,
) -> MDNDream:
    """`lstm_mdn_dream` by any backend's `lstm_mdn_step`."""
    need_steps("lstm_mdn_dream", uniform.shape[1])
    latents, ends = [], []
    with torch.no_grad():
        for draws in zip(uniform.unbind(1), normal.unbind(1), strict=True):
            action = controlled(control, latent, hidden, cell)
            hidden, cell, latent, end = step(
                model, hidden, cell, latent, action, restart, *draws, temperature
            )
            latents.append(latent)
            ends.append(end)
            restart = torch.zeros_like(restart)
        return MDNDream(hidden, cell, torch.stack(latents, 1), torch.stack(ends, 1))
