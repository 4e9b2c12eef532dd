"""Every op traces as one graph: no host sync, no branch on data."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastdream.ops import reference as ops
from fastdream.ops.params import Categorical, Gaussian, Latent

from .ops_tools import A, C, CoreName, E, Maker, S, leaves, worst

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def compiled(fn: Callable[..., Any]) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(fn, fullgraph=True, backend="aot_eager")


def same(got: Any, want: Any) -> bool:
    pairs = zip(leaves(got), leaves(want), strict=True)
    return all(worst(a, b) < 1e-6 for a, b in pairs)


@pytest.mark.parametrize(
    ("core", "latent"),
    [("block", Categorical(S, C, 0.01)), ("layernorm", Categorical(S, C)), ("gru", Gaussian(S))],
)
def test_observe_forward_and_backward(core: CoreName, latent: Latent) -> None:
    make = Maker(0, torch.float32)
    rssm, (deter, stoch) = make.rssm(core, latent), make.state(2, latent)
    inputs = (deter, stoch, make.normal(2, 2, A), make.normal(2, 2, E), make.uniform(2, 2) < 0.3)
    noise = make.uniform(2, 2, S)
    results = []
    for fn in (ops.observe, compiled(ops.observe)):
        step = fn(rssm, *inputs, noise)
        results.append(
            (tuple(step[:3]), torch.autograd.grad(step.logit.square().sum(), [deter, rssm.post[0].weight]))
        )
    assert same(*results)


def test_imagine() -> None:
    make = Maker(1, torch.float32)
    args = make.rssm(), make.actor(), *make.state(3), 2, make.uniform(3, 2, S), make.uniform(3, 3, 2)
    with torch.no_grad():
        assert same(compiled(ops.imagine)(*args), ops.imagine(*args))


def test_losses_and_returns() -> None:
    make = Maker(2, torch.float32)
    bins = ops.twohot_bins(9, lo=-2, hi=2)
    args = make.normal(4, S, C), make.normal(4, S, C), make.normal(4, 9), make.normal(4, 3)

    def fn(post: Any, prior: Any, logit: Any, value: Any) -> Any:
        dyn, rep = ops.categorical_kl(post, prior, 0.01, 0.1)
        ret = ops.lambda_return(value, torch.ones_like(value), torch.full_like(value, 0.9), ops.symexp(value))
        loss = ops.twohot_loss(logit, ret[:, 0], bins)
        sample, _ = ops.gumbel_sample(post, torch.full_like(post, 0.3))
        return dyn, rep, loss, ops.twohot_mean(logit, bins), sample

    assert same(compiled(fn)(*args), fn(*args))


def test_laprop() -> None:
    make = Maker(3, torch.float32)
    params = [make.normal(3, 2).detach(), make.normal(4).detach()]
    grads = [make.normal(3, 2).detach(), make.normal(4).detach()]
    results = []
    for fn in (ops.laprop_, compiled(ops.laprop_)):
        state = [
            [x.clone() for x in params],
            [torch.zeros_like(x) for x in params],
            [torch.zeros_like(x) for x in params],
        ]
        norm = fn(state[0], grads, *state[1:], torch.tensor(1), torch.tensor(0.1), decay=0.1)
        results.append((norm, *(x for tensors in state for x in tensors)))
    assert same(*results)


def test_gather_sequences() -> None:
    storage, start = torch.arange(10).view(5, 2), torch.tensor([4, 1])
    assert same(compiled(ops.gather_sequences)(storage, start, 3), ops.gather_sequences(storage, start, 3))
