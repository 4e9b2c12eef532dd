"""The memory of World Models: an LSTM whose output is a mixture of normals for every latent dimension.

Sizes: N rows, D units, Z latent dimensions, A action width, K components of each mixture.
Source: Ha & Schmidhuber 2018, `rnn.py` and `doomrnn.py` of the authors' experiments.
"""

import torch
from torch import Tensor

from fastdream.ops.params import MDNRNN, MDNStep
from fastdream.ops.reference.categorical import inverse_cdf
from fastdream.ops.reference.layers import linear, match, upcast


def lstm_gates(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM after its products: gates [N, 4D] = in | cand | forget | out, cell [N, D] -> (hidden, cell) [N, D].

    cell' = sigmoid(forget + 1) * cell + sigmoid(in) * tanh(cand), hidden' = sigmoid(out) * tanh(cell').
    """
    enter, cand, forget, out = gates.chunk(4, -1)
    cell = torch.sigmoid(forget + 1) * cell + torch.sigmoid(enter) * torch.tanh(cand)
    return torch.sigmoid(out) * torch.tanh(cell), cell


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
