"""World Models' memory step against NumPy in float64, and what its draws do."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream.ops import MDNRNN, Layer
from fastdream.ops import reference as ops

from .ops_tools import Maker, arrays, worst

Z, D, A, K, N = 3, 6, 2, 5, 4


def memory(m: Maker, restart: bool = True, end: bool = True) -> MDNRNN:
    out = Layer(m.normal(end + 3 * Z * K, D), m.normal(end + 3 * Z * K))
    weights = m.normal(4 * D, Z + A + restart), m.normal(4 * D, D), m.normal(4 * D)
    return MDNRNN(*weights, out, K, restart)


def inputs(m: Maker) -> tuple[Tensor, ...]:
    """hidden, cell, latent, action, restart, uniform, normal; the second row restarts."""
    shapes = (N, D), (N, D), (N, Z), (N, A)
    restart = torch.tensor([False, True, False, False])
    return *(m.normal(*shape).detach() for shape in shapes), restart, m.uniform(N, Z), m.normal(N, Z).detach()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def expected(model: MDNRNN, args: tuple[Tensor, ...], tau: float) -> list[np.ndarray]:
    """Row by row and dimension by dimension, as the paper has it."""
    w_x, w_h, bias, (w_out, b_out, *_), *_ = arrays(model)
    rows = []
    for h, c, z, a, restart, u, eps in zip(*(x.numpy().astype(np.float64) for x in args), strict=True):
        if restart:
            h, c = 0 * h, 0 * c
        x = np.concatenate([z, a, [restart]] if model.restart else [z, a])
        i, g, f, o = np.split(w_x @ x + w_h @ h + bias, 4)
        c = sigmoid(f + 1) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        y = w_out @ h + b_out
        ends, y = (y[0], y[1:]) if len(y) % 3 else (-np.inf, y)
        drawn = []
        for (logit, mean, logstd), point, e in zip(y.reshape(Z, 3, K), u, eps, strict=True):
            p = np.exp(logit / tau - (logit / tau).max())
            k = min(np.searchsorted(np.cumsum(p / p.sum()), point, side="right"), K - 1)
            drawn.append(mean[k] + np.exp(logstd[k]) * np.sqrt(tau) * e)
        rows.append((h, c, np.array(drawn), ends))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("tau", [0.1, 1.0, 1.3])
@pytest.mark.parametrize(("restart", "end"), [(True, True), (False, False)])
def test_step_matches_numpy(restart: bool, end: bool, tau: float) -> None:
    m = Maker(0)
    model, args = memory(m, restart, end), inputs(m)
    got = ops.lstm_mdn_step(model, *args, tau)
    want = expected(model, args, tau)
    assert all(worst(x, y) < 1e-13 for x, y in zip(got[:3], want[:3], strict=True))
    np.testing.assert_allclose(got.ends.numpy(), want[3], rtol=1e-12)
    assert not any(x.requires_grad for x in got)


def test_the_lstm_is_torchs_with_one_more_on_the_forget_gate() -> None:
    m = Maker(1)
    model, (hidden, cell, latent, action, *_) = memory(m, restart=False), inputs(m)
    i, g, f, o = (torch.arange(n * D, (n + 1) * D) for n in range(4))
    order = torch.cat([i, f, g, o])
    theirs = torch.nn.LSTMCell(Z + A, D, dtype=torch.float64)
    bias = model.bias[order] + torch.cat([torch.zeros(D), torch.ones(D), torch.zeros(2 * D)])
    state = dict(
        weight_ih=model.weight_ih[order], weight_hh=model.weight_hh[order], bias_ih=bias, bias_hh=0 * bias
    )
    theirs.load_state_dict(state)
    want = theirs(torch.cat([latent, action], -1), (hidden, cell))
    never = torch.zeros(N, dtype=torch.bool)
    got = ops.lstm_mdn_step(model, hidden, cell, latent, action, never, *inputs(m)[-2:])
    assert all(worst(x, y) < 1e-13 for x, y in zip(got[:2], want, strict=True))


def test_cold_dreams_take_the_likeliest_component_s_mean() -> None:
    m = Maker(2)
    model, args = memory(m), inputs(m)
    cold = ops.lstm_mdn_step(model, *args, 1e-12)
    out = cold.hidden @ model.out.weight.T + model.out.bias
    _, logit, mean, _ = ops.mdn_split(out, Z, K)
    likeliest = mean.gather(-1, logit.argmax(-1, keepdim=True)).squeeze(-1)
    assert worst(cold.latent, likeliest.detach()) < 1e-4


def test_draws_follow_the_mixture() -> None:
    """Mean and variance of 200,000 draws at tau 1.5, against those of the mixture."""
    m, tau, n = Maker(3), 1.5, 200_000
    logit, mean, logstd = (m.normal(K).detach() for _ in range(3))
    draws = ops.mdn_sample(
        *(x.expand(n, K) for x in (logit, mean, logstd)), m.uniform(n), m.normal(n).detach(), tau
    )
    p = torch.softmax(logit / tau, -1)
    center = (p * mean).sum()
    variance = (p * (logstd.exp().square() * tau + (mean - center).square())).sum()
    assert abs(draws.mean() - center) < 5 * (variance / n) ** 0.5
    assert abs(draws.var() / variance - 1) < 0.05


def test_half_precision_draws_in_float32() -> None:
    m = Maker(4, torch.bfloat16)
    step = ops.lstm_mdn_step(memory(m), *inputs(m))
    assert step.hidden.dtype == step.cell.dtype == torch.bfloat16
    assert step.latent.dtype == step.ends.dtype == torch.float32
