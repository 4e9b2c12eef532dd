"""Dreams in Triton that gradients flow through, beyond the parity matrix: drawn classes, scores, launches, refusals."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import auto, reference
from fastdream.ops import triton as backend
from fastdream.ops.params import Actor, Dream
from fastdream.ops.triton import library, posterior

from . import parity_cases
from .graph_tools import Watch
from .launch_tools import Launches
from .ops_tools import A, Maker, Sizes, leaves, mapped
from .test_triton_dream import DEVICE, MIXED, SIZES, certain, model, noises, plain

# What is masked out may be infinite, and its differences not a number.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


def learning(actor: Actor) -> Actor:
    """The same, whose parameters learn from features without gradient."""
    return mapped(lambda x: x.clone().requires_grad_(), actor)._replace(detach=True)


def actor_gradients(dream: Dream, actor: Actor, rows: Tensor) -> list[Tensor]:
    """Of a random sum of everything in some of the dreams."""
    draw = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(x.shape, generator=draw).to(DEVICE) * rows.view(-1, *[1] * (x.dim() - 1)) for x in dream
    ]
    total = sum((x * weight).sum() for x, weight in zip(dream, weights, strict=True))
    assert isinstance(total, Tensor)
    return list(torch.autograd.grad(total, list(leaves(actor))))


@pytest.mark.parametrize(("core", "many"), [("gru", posterior.MANY), ("gru_block_cell", 1), ("layernorm", 1)])
def test_actors_of_every_kind_learn_from_what_is_drawn(
    core: Any, many: int, poison: list[str], monkeypatch: pytest.MonkeyPatch
):
    """In a model that does not: gradients of classes in the state, of scores, of actions after one another.

    many: rows from which there are as many in a program as it takes.
    """
    monkeypatch.setattr(posterior, "MANY", many)
    n, length = 9, 2
    rssm, actor = model(core, MIXED, m := Maker(6, torch.float32, SIZES))
    state, draws, actor = plain(m.state(n)), noises(n, length, MIXED), learning(actor)
    ours = backend.imagine(rssm, actor, *state, length, *draws)
    true = reference.imagine(rssm, actor, *state, length, *draws)
    rows = certain(rssm, actor, true, *draws)
    assert rows.float().mean() > 0.8 and poison
    for got, want in zip(ours, true, strict=True):
        torch.testing.assert_close(got[rows], want[rows], rtol=1e-4, atol=1e-5)
    grads = (actor_gradients(dream, actor, rows) for dream in (ours, true))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * float(want.abs().max()))


def dreamer_v1(length: int, core: str = "gru") -> tuple:
    """Arguments as of the agent: states in half precision, a model that does not learn, four layers."""
    m = Maker(0, torch.float32, Sizes(40, 24, 6, 0, 9, units=24))
    rssm, actor, deter, stoch, *_ = parity_cases.learned(core, "softplus", "tanh_normal", True, m, 20)
    flat = [layer._replace(scale=None, norm="none", act="elu") for layer in (*actor.layers, *rssm.prior[:1])]
    actor = actor._replace(layers=(flat[0], *3 * flat[1:2]))
    rssm = plain(rssm._replace(prior=(flat[2], rssm.prior[1]), post=()))
    state = (x.detach().to(DEVICE, torch.bfloat16) for x in (deter, stoch))
    noise = m.uniform(20, length, 6).to(DEVICE), m.uniform(20, length + 1, A).to(DEVICE)
    return rssm, learning(plain(actor)), *state, length, *noise


def launches(function: Callable[..., Dream], length: int, core: str) -> tuple[int, int, Launches]:
    """Of a dream, and of its gradient as DreamerV1 wants it; all kernels by name."""
    args = dreamer_v1(length, core)
    with Launches(compute=False) as found, Watch():
        dream = function(*args)
        forward = found.count
        roots = dream.deter, dream.stoch
        torch.autograd.grad(roots, list(leaves(args[1])), [torch.ones_like(x) for x in roots])
    return forward, found.count - forward - len(roots), found


@pytest.mark.parametrize(
    ("core", "there", "back", "of_reference"), [("gru", 6, 4, (43, 73)), ("gru_block_cell", 8, 5, (44, 74))]
)
def test_launches_of_dreamer_v1(core: str, there: int, back: int, of_reference: tuple[int, int]):
    """Ten a step, three of the dream, three of the scan and four back; of the reference over a hundred.

    With PlaNet's core thirteen: four, four and five.
    """
    ours, theirs = (
        [launches(function, length, core) for length in (2, 3)]
        for function in (backend.imagine, reference.imagine)
    )
    (few, few_back, _), (more, more_back, found) = ours
    assert (more - few, more_back - few_back) == (there, back), found.names.most_common()
    assert few <= there * 2 + 47 and few_back <= back * 2 + 41, (few, few_back, found.names.most_common())
    assert not found.names["norm_act_bwd_kernel"], (
        "the model, which does not learn, costs gradients of weights"
    )
    (few, few_back, _), (more, more_back, _) = theirs
    assert (more - few, more_back - few_back) == of_reference


def test_compiles_as_one_graph(monkeypatch: pytest.MonkeyPatch):
    """With its gradient; what kernels compute is the same as without."""
    rssm, actor, *others = dreamer_v1(1)
    torch._dynamo.reset()
    monkeypatch.setattr(library, "run", lambda *_: None)
    dream = torch.compile(backend.imagine, fullgraph=True, backend="aot_eager")(rssm, actor, *others)
    grads = torch.autograd.grad(dream.deter.sum(), list(leaves(actor)))
    assert [x.shape for x in grads] == [x.shape for x in leaves(actor)]


def test_features_that_an_actor_sees_with_gradient_are_refused():
    m = Maker(3, torch.float32)
    args = parity_cases.learned("gru", "softplus", "tanh_normal", False, m, 2)
    args = tuple(mapped(lambda x: x.detach().to(DEVICE).requires_grad_(x.requires_grad), arg) for arg in args)
    serves = auto.LIMITS["triton", "cuda"].rules["imagine"].serves
    assert not serves(*args) and serves(args[0], args[1]._replace(detach=True), *args[2:])
    with pytest.raises(
        ValueError, match="only of actors that detach the features they see; use the reference"
    ):
        backend.imagine(*args)
    with torch.no_grad():
        assert serves(*args) and not backend.imagine(*args).deter.requires_grad
