"""Imagination in Triton beyond the parity matrix: drawn samples, every kind of head, depth, launches, bad input."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastdream import ops
from fastdream.ops import reference
from fastdream.ops.params import RSSM, ActionHead, Actor, Categorical, Dream, Gaussian
from fastdream.ops.triton import config, dream, library, step
from fastdream.ops.triton.config import TailCut

from .ops_tools import A, Maker, Sizes, leaves, mapped
from .parity_tools import far
from .triton_cases import Blank, drawn, sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = Sizes(deter=48, hidden=20, stoch=5, classes=6, embed=9, blocks=8, units=24)
# How the tail is cut: in parts, or one kernel that takes in layers in pieces of some widths, or at once.
CUTS: dict[str, TailCut | None] = {
    "in parts": None,
    "usual": config.PRECISE_TAIL,
    "pieces": config.PRECISE_TAIL._replace(stage=2048, depth=16, drawn=16),
    "at once": config.TAIL_CUTS[90],
}


def plain(tree: Any) -> Any:
    return mapped(lambda x: x.detach().to(DEVICE), tree)


def cut_tail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = CUTS[name]
    if cut:
        monkeypatch.setattr(step, "tail_cut", lambda *_: cut)
    else:
        monkeypatch.setattr(step, "FUSED", 0)


@pytest.fixture(params=CUTS)
def tail(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_tail(request.param, monkeypatch)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are launched, which then do not run."""
    found: list[str] = []
    monkeypatch.setattr(library, "run", lambda kernel, *_: found.append(kernel.fn.__name__))
    return found


def model(core: Any, kinds: tuple[tuple[int, int], ...], m: Maker) -> tuple[RSSM, Actor]:
    """Heads of (elements, classes), 0 classes for continuous ones; deeper than usual, and some biases missing."""

    def out(width: int) -> Any:
        layer = m.layer(m.sizes.units, width, "none", "none")
        return layer._replace(bias=None) if width % 2 else layer

    heads = tuple(
        ActionHead("score" if c == 2 else "categorical", n, c, (out(n * c),), 0.05)
        if c
        else ActionHead("bounded_normal", n, 0, (out(n), out(n)), min_std=0.2)
        for n, c in kinds
    )
    width = sum(n * max(1, c) for n, c in kinds)
    rssm, units = m.rssm(core), m.sizes.units
    made = m.core(core, later=1)
    if core == "block":
        made = made._replace(action=m.layer(width, m.sizes.hidden)._replace(bias=None))
    else:
        inputs = m.sizes.stoch * m.sizes.classes + width
        made = made._replace(inputs=m.layer(inputs, m.sizes.hidden, "layer", "elu"))
    first, last = rssm.prior
    hidden = m.sizes.hidden
    prior = first._replace(bias=None), m.layer(hidden, hidden, "layer", "gelu"), last
    feat = m.sizes.deter + m.sizes.stoch * m.sizes.classes
    layers = m.layer(feat, units), m.layer(units, units, "none", "tanh"), m.layer(units, units)
    return plain(rssm._replace(core=made, prior=prior)), plain(Actor(layers, heads))


def noises(n: int, length: int, kinds: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    parts = [(torch.rand if c else torch.randn)(n, length + 1, k) for k, c in kinds]
    return torch.rand(n, length, SIZES.stoch).to(DEVICE), torch.cat(parts, -1).to(DEVICE)


def certain(rssm: RSSM, actor: Actor, true: Dream, noise: Tensor, action_noise: Tensor) -> Tensor:
    """[N] rows in which nothing was drawn by rounding."""
    assert isinstance(rssm.latent, Categorical)
    rows = far(true.logit, noise, rssm.latent.unimix)
    outputs = reference.actor_outputs(actor, torch.cat([true.deter, true.stoch.flatten(-2)], -1))
    parts = action_noise.split([head.elements for head in actor.heads], -1)
    for head, out, eps in zip(actor.heads, outputs, parts, strict=True):
        if head.classes:
            rows &= far(out[0], eps, head.unimix)
    return rows


MIXED = (1, 0), (2, 5), (4, 0), (1, 2)


@pytest.mark.parametrize(
    ("core", "kinds", "cut"),
    [
        ("block", ((1, 4),), "usual"),
        ("block", ((3, 0),), "at once"),
        ("block", MIXED, "usual"),
        ("layernorm", MIXED, "usual"),
        ("block", MIXED, "at once"),
        ("layernorm", MIXED, "at once"),
        ("block", MIXED, "pieces"),
        ("block", MIXED, "in parts"),
        ("layernorm", ((1, 4),), "in parts"),
    ],
)
def test_drawn_dreams_agree_for_every_kind_of_head(
    core: Any, kinds: Any, cut: str, poison: list[str], monkeypatch: pytest.MonkeyPatch
):
    cut_tail(cut, monkeypatch)
    n, length = 19, 2
    rssm, actor = model(core, kinds, m := Maker(len(kinds), torch.float32, SIZES))
    state, draws = plain(m.state(n)), noises(n, length, kinds)
    ours = dream.imagine(rssm, actor, *state, length, *draws)
    true = reference.imagine(rssm, actor, *state, length, *draws)
    rows = certain(rssm, actor, true, *draws)
    assert rows.float().mean() > 0.9 and poison
    for got, want in zip(ours, true, strict=True):
        torch.testing.assert_close(got[rows], want[rows], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("tail")
def test_rollouts_start_anywhere_and_stop(poison: list[str]):
    """A start that is no one-hot, views of larger tensors, and classes drawn along given actions."""
    rssm, _ = model("block", ((A, 0),), m := Maker(1, torch.float32, SIZES))
    n, length = 5, 3
    deter, stoch = m.normal(SIZES.deter, n), m.normal(n, SIZES.classes, SIZES.stoch)
    inputs = plain((deter.t(), stoch.transpose(1, 2), m.normal(n, 2 * length, A)[:, ::2]))
    noise, _ = noises(n, length, ((1, 0),))
    ours, true = (f(rssm, *inputs, noise) for f in (dream.rollout, reference.rollout))
    assert far(true.logit, noise, 0.01).all() and poison
    for got, want in zip(ours, true, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Calls(TorchDispatchMode):
    """Counts what launches something on a GPU, beside our kernels."""

    FREE = (
        "view",
        "detach",
        "expand",
        "slice",
        "select",
        "split",
        "t.",
        "transpose",
        "unsqueeze",
        "empty",
        "unbind",
        "alias",
    )

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = str(func).removeprefix("aten.")
        self.names += [name] * (not any(free in name for free in self.FREE))
        return func(*args, **(kwargs or {}))


def caught(monkeypatch: pytest.MonkeyPatch, name: str, call: Callable[[], Any]) -> tuple:
    """Arguments with which an op of torch.library is called."""
    found: list[tuple] = []

    def stop(*args: Any) -> None:
        found.append(args)
        raise InterruptedError

    with monkeypatch.context() as patched, pytest.raises(InterruptedError), torch.no_grad():
        patched.setattr(torch.ops.fastdream, f"triton_{name}", stop)
        call()
    return found[0]


@pytest.mark.parametrize("preset", ["1m", "12m", "25m", "50m"])
def test_four_launches_a_step_and_ten_more(preset: str, launches: list[str], monkeypatch: pytest.MonkeyPatch):
    rssm, actor, deter, stoch, length, *noise = drawn(Blank(0, torch.float32, sizes(preset)), 1024)
    state = deter.bfloat16(), stoch.bfloat16()
    args = caught(monkeypatch, "imagine", lambda: dream.imagine(rssm, actor, *state, length, *noise))
    with Calls() as calls:
        dream._kernel(*args)
    assert len(launches) == 4 * length + 2, launches
    assert len(launches) + len(calls.names) <= 4 * length + 10, calls.names


def test_opcheck(monkeypatch: pytest.MonkeyPatch):
    rssm, actor = model("block", ((1, 0), (1, 2)), m := Maker(2, torch.float32, SIZES))
    draws = noises(3, 1, ((1, 0), (1, 2)))
    call = lambda: dream.imagine(rssm, actor, *plain(m.state(3)), 1, *draws)  # noqa: E731
    args = caught(monkeypatch, "imagine", call)
    found = torch.library.opcheck(torch.ops.fastdream.triton_imagine.default, args)
    assert set(found.values()) == {"SUCCESS"}


def test_gradients_are_refused_with_the_remedy():
    m = Maker(3, torch.float32, SIZES)
    args = m.rssm(), *m.state(2), m.normal(2, 1, A), None, m.index(2, 1, SIZES.stoch)
    with pytest.raises(ValueError, match=r"triton rollout has no gradient.*rollout=\"reference\""):
        dream.rollout(*args)


def _bad(change: str, args: list[Any], m: Maker) -> list[Any]:
    rssm, actor, deter, stoch, length, noise, action_noise, index, action = args
    (out,) = actor.heads[1].out
    squashed = actor._replace(
        heads=(actor.heads[0], actor.heads[1]._replace(out=(out._replace(act="tanh"),)))
    )
    changes: dict[str, tuple[int, Any]] = {
        "gaussian": (0, rssm._replace(latent=Gaussian(SIZES.stoch))),
        "shallow": (0, rssm._replace(prior=(m.layer(SIZES.deter, 30, "none", "none"),))),
        "heads": (1, squashed),
        "layers": (1, actor._replace(layers=())),
        "deter": (2, deter[:, :-1]),
        "double": (2, deter.double()),
        "stoch": (3, stoch[:, :-1]),
        "noise": (5, noise[:, :-1]),
        "index": (7, noise),
        "action": (8, action_noise[:, :, :1]),
        "none": (5, None),
    }
    position, value = changes[change]
    args[position] = value
    return args


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("gaussian", "imagine: core.stoch maps 30 to 20, expected 5 to 20"),
        ("shallow", "triton needs a hidden layer before the logits"),
        ("heads", r"actor.heads\[1\] has others; use the reference"),
        ("layers", "triton takes 1 to 8 layers and 1 to 32 heads, not 0 and 2; use the reference"),
        ("deter", r"deter has shape \[3, 47\], expected \[3, 48\]"),
        ("double", "deter is torch.float64, expected torch.float32"),
        ("stoch", r"stoch has shape \[3, 4, 6\], expected \[3, 5, 6\]"),
        ("noise", r"noise has shape \[3, 1, 5\], expected \[3, 2, 5\]"),
        ("index", "index is torch.float32 on"),
        ("action", r"action has shape \[3, 3, 1\], expected \[3, 3, 3\]"),
        ("none", "imagine needs noise to draw with, or the index"),
    ],
)
def test_bad_input_is_named(change: str, message: str):
    m, kinds = Maker(4, torch.float32, SIZES), ((1, 0), (1, 2))
    args = [plain(m.rssm()), plain(m.actor()), *plain(m.state(3)), 2, *noises(3, 2, kinds), None, None]
    with pytest.raises(ValueError, match=message), torch.no_grad():
        dream.imagine(*plain(tuple(_bad(change, args, m))))


def test_auto_gives_the_rest_to_the_reference():
    from fastdream.ops.auto import LIMITS

    m = Maker(5, torch.float32, SIZES)
    rssm, actor = plain(m.rssm()), plain(m.actor())
    imagine, acting = (LIMITS["triton", "cuda"].rules[op].serves for op in ("imagine", "policy_step"))
    assert imagine(rssm, actor) and acting((), rssm, actor)
    for name in ("gru", "gru_block_cell", "layernorm", "block"):
        normals = plain(m.rssm(name, Gaussian(5)))
        assert imagine(normals, actor) and acting((), normals, actor)
    deep = rssm._replace(prior=9 * rssm.prior, post=9 * rssm.post)
    assert not imagine(deep, actor) and not acting((), deep, actor)
    assert not acting((), rssm._replace(absolute=True), actor)
    assert not imagine(m.rssm(), actor), "gradients through what the actor sees"
    (out,) = actor.heads[1].out
    squashed = actor.heads[1]._replace(out=(out._replace(act="tanh"),))
    assert not imagine(rssm, actor._replace(heads=(squashed,)))
    assert list(leaves(rssm)) and ops.OPS
