"""Compiled imagination against the reference: values, odd shapes, every kind of head, threads, bad input."""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops.params import RSSM, ActionHead, Actor, Categorical, Gaussian

from .native_tools import recorded
from .ops_tools import UNITS, A, C, D, Maker, S, leaves, mapped

ROWS = (1, 3, 17)
LENGTHS = (1, 2, 5)
pytestmark = pytest.mark.usefixtures("native")


def heads(make: Maker, *kinds: tuple[int, int]) -> Actor:
    """An actor with heads of (elements, classes), 0 classes for continuous ones, on features of the small model."""

    def out(width: int) -> Any:
        return make.layer(UNITS, width, "none", "none")

    made = [
        ActionHead("categorical", n, c, (out(n * c),), 0.05)
        if c
        else ActionHead("bounded_normal", n, 0, (out(n), out(n)), min_std=0.2)
        for n, c in kinds
    ]
    return Actor((make.layer(D + S * C, UNITS), make.layer(UNITS, UNITS, "layer", "gelu")), tuple(made))


def plain(tree: Any, dtype: torch.dtype) -> Any:
    """Without gradient; floats in dtype."""
    return mapped(lambda x: x.detach().to(dtype) if x.is_floating_point() else x, tree)


def errors(got: Any, want: Any) -> list[float]:
    return [
        float((g.double() - w.double()).abs().max()) for g, w in zip(leaves(got), leaves(want), strict=True)
    ]


def assert_as_good_as_reference(function: Any, op: str, args: tuple, dtype: torch.dtype) -> None:
    """Error against float64 at most twice the reference's own at the same dtype, plus a few roundings."""
    truth = getattr(reference, op)(*plain(args, torch.float64))
    theirs = errors(getattr(reference, op)(*plain(args, dtype)), truth)
    ours = errors(function(*plain(args, dtype)), truth)
    floor = 32 * torch.finfo(dtype).eps
    for i, (our, their, true) in enumerate(zip(ours, theirs, leaves(truth), strict=True)):
        assert our <= 2 * their + floor * (1 + float(true.abs().max())), (op, i, our, their)


def replay(make: Maker, rssm: RSSM, actor: Actor, n: int, length: int) -> tuple:
    """Arguments of imagine with draws to replay, so that no rounding can change a sample."""
    width = sum(head.elements * max(1, head.classes) for head in actor.heads)
    given = make.index(n, length, S), make.normal(n, length + 1, width)
    return rssm, actor, *make.state(n), length, None, None, *given


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("n", ROWS)
@pytest.mark.parametrize("core", ["block", "layernorm"])
def test_replayed_dreams_agree(
    native: ModuleType, poison: list[str], core: Any, n: int, length: int, dtype: torch.dtype
):
    make = Maker(n)
    args = replay(make, make.rssm(core), make.actor(), n, length)
    assert_as_good_as_reference(native.imagine, "imagine", args, dtype)
    assert "new_empty" in poison


@pytest.mark.parametrize("n", [2, 150])
@pytest.mark.parametrize("kinds", [((1, 4),), ((2, 3), (1, 2)), ((3, 0),), ((1, 0), (2, 5), (4, 0), (1, 2))])
def test_drawn_dreams_agree_for_every_kind_of_head(native: ModuleType, kinds: Any, n: int):
    """In float64, where no draw is so near to a limit that rounding decides. Many rows pack the weights, few do not."""
    make, length = Maker(len(kinds)), 4
    width = sum(k * max(1, c) for k, c in kinds)
    actor = heads(make, *kinds)
    rssm = make.rssm("block")._replace(core=wider(make, width))
    noise = torch.rand(n, length, S, dtype=torch.float64)
    parts = [(torch.rand if c else torch.randn)(n, length + 1, k, dtype=torch.float64) for k, c in kinds]
    args = plain((rssm, actor, *make.state(n), length, noise, torch.cat(parts, -1)), torch.float64)
    for got, want in zip(native.imagine(*args), reference.imagine(*args), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def wider(make: Maker, action: int) -> Any:
    """A block core for actions of another width."""
    core = make.core("block", S * C, 1)
    return core._replace(action=make.layer(action, core.action.weight.shape[0]))


def test_float32_draws_differ_only_at_near_ties(native: ModuleType):
    """The first step's classes: where they differ, the noise lies within rounding of a limit between classes."""
    make, n = Maker(7), 500
    args = plain((make.rssm(), make.actor(), *make.state(n)), torch.float32)
    noise, action_noise = torch.rand(n, 1, S), torch.rand(n, 2, 2)
    ours = native.imagine(*args, 1, noise, action_noise)
    theirs = reference.imagine(*args, 1, noise, action_noise)
    same_start = torch.isclose(ours.action[:, 0], theirs.action[:, 0], rtol=1e-4, atol=1e-5).all(-1)
    differ = (ours.stoch[:, 1] != theirs.stoch[:, 1]).any(-1) & same_start[:, None]
    probs = reference.unimix_log_probs(theirs.logit[:, 0], 0.01).exp().cumsum(-1)
    gap = (probs - noise[:, 0, :, None]).abs().amin(-1)
    assert same_start.float().mean() > 0.99 and differ.float().mean() < 0.01
    assert bool((gap[differ] < 1e-5).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("core", ["block", "layernorm"])
def test_rollout_and_step_agree(native: ModuleType, poison: list[str], core: Any, dtype: torch.dtype):
    make = Maker(2)
    rssm = make.rssm(core)
    args = rssm, *make.state(5), make.normal(5, 6, A, scale=2.0), None, make.index(5, 6, S)
    assert_as_good_as_reference(native.rollout, "rollout", args, dtype)
    args = rssm, *make.state(5), make.normal(5, A, scale=2.0), None, make.index(5, S)
    assert_as_good_as_reference(native.imagine_step, "imagine_step", args, dtype)
    for index in (args[-1], args[-1].int()):
        assert torch.equal(native.imagine_step(*plain(args[:-1], dtype), index).index, args[-1])


def test_more_blocks_layers_and_other_widths(native: ModuleType):
    """Widths off every vector's, one class to spare, three layers of the core, no hidden layer of the prior."""
    make = Maker(3)
    rssm = make.rssm()._replace(
        core=make.core("block", S * C, 2), prior=(make.layer(D, S * C, "none", "none"),)
    )
    args = replay(make, rssm, make.actor(), 70, 3)
    assert_as_good_as_reference(native.imagine, "imagine", args, torch.float32)


def test_any_strides_and_dense_starts(native: ModuleType):
    """A start that is no one-hot, and inputs that are views."""
    make = Maker(4)
    rssm, actor = plain((make.rssm(), make.actor()), torch.float64)
    deter = make.normal(D, 4).detach().t()
    stoch = make.normal(4, C, S).detach().transpose(1, 2)
    index = make.index(3, 4, S).transpose(0, 1)
    action = make.normal(4, 8, A).detach()[:, ::2]
    args = rssm, actor, deter, stoch, 3, None, None, index, action
    for got, want in zip(native.imagine(*args), reference.imagine(*args), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prior_agrees_with_every_gradient(native: ModuleType, dtype: torch.dtype):
    make = Maker(13, dtype)
    rssm, deter = make.rssm(), make.normal(3, 5, D)
    grad = torch.randn(3, 5, S, C, dtype=dtype)
    inputs = [deter, *leaves(rssm.prior)]
    ours = torch.autograd.grad(native.prior(rssm, deter), inputs, grad)
    theirs = torch.autograd.grad(reference.prior(rssm, deter), inputs, grad)
    for got, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, want)


def test_no_rows(native: ModuleType):
    make = Maker(5)
    args = plain(replay(make, make.rssm(), make.actor(), 0, 2), torch.float32)
    assert [tuple(x.shape) for x in native.imagine(*args)] == [
        (0, 3, D),
        (0, 3, S, C),
        (0, 2, S, C),
        (0, 3, A),
    ]


def _dream(native: ModuleType, n: int) -> tuple[Tensor, ...]:
    make = Maker(6)
    args = plain((make.rssm(), make.actor(), *make.state(n)), torch.float32)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(n, 3, S, generator=generator), torch.rand(n, 4, 2, generator=generator)
    return tuple(native.imagine(*args, 3, *noise))


@pytest.mark.parametrize("n", [5, 16, 100])
def test_two_threads_give_the_same_to_the_bit(native: ModuleType, n: int):
    alone = _dream(native, n)
    torch.set_num_threads(2)
    try:
        together = _dream(native, n)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_every_instruction_set_agrees(native: ModuleType):
    make = Maker(8)
    args = replay(make, make.rssm(), make.actor(), 70, 2)
    used = native.library.C.isa()
    try:
        for isa in native.library.C.isas():
            native.library.C.use_isa(isa)
            assert_as_good_as_reference(native.imagine, "imagine", args, torch.float32)
    finally:
        native.library.C.use_isa(used)


def test_compiles_as_one_graph(native: ModuleType):
    make = Maker(9)
    args = plain(replay(make, make.rssm(), make.actor(), 3, 2), torch.float64)
    compiled = torch.compile(lambda *xs: native.imagine(*xs).deter * 2, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*args), reference.imagine(*args).deter * 2)


def test_opcheck(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    op, make = torch.ops.fastdream.imagine, Maker(10)
    with monkeypatch.context() as patched:
        caught = recorded(patched, "imagine")
        native.imagine(*plain(replay(make, make.rssm(), make.actor(), 3, 2), torch.float32))
    assert set(torch.library.opcheck(op.default, caught[0]).values()) == {"SUCCESS"}


def test_gradients_are_refused_with_the_remedy(native: ModuleType):
    make = Maker(11)
    rssm, _, deter, stoch, _, _, _, index, action = replay(make, make.rssm(), make.actor(), 3, 2)
    given = rssm, deter, stoch, action[:, :2], None, index
    to_act = *plain(given[:3], torch.float32), action[:, :2].detach().requires_grad_(), None, index
    remedy = r"native rollout has no gradient.*no_grad.*rollout=\"reference\""
    for args in (given, to_act):
        with pytest.raises(ValueError, match=remedy):
            native.rollout(*args)
    with torch.no_grad():
        assert not native.rollout(*given).deter.requires_grad


def test_dreams_have_a_gradient_where_one_is_wanted(native: ModuleType):
    """Values and gradients are in the parity matrix."""
    make = Maker(11)
    args = replay(make, make.rssm(), make.actor(), 3, 2)
    dream = native.imagine(*args)
    assert dream.deter.requires_grad
    with torch.no_grad():
        plain_dream = native.imagine(*args)
    assert not plain_dream.deter.requires_grad
    for ours, theirs in zip(dream, plain_dream, strict=True):
        torch.testing.assert_close(ours.detach(), theirs)
    with pytest.raises(ValueError, match="needs noise to draw with"):
        native.imagine(*args[:7], None, args[8])
    with pytest.raises(ValueError, match="the action that it should replay"):
        native.imagine(*args[:8])
    deter = torch.autograd.grad(dream.deter.sum(), args[2], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(deter.sum(), args[3])


def _bad(change: str, args: list[Any]) -> list[Any]:
    rssm, actor, deter, stoch, _, _, _, index, action = args
    changes: dict[str, tuple[int, Any]] = {
        "gaussian": (0, rssm._replace(latent=Gaussian(S))),
        "gru": (0, rssm._replace(core=plain(Maker().core("gru", S), torch.float32))),
        "classes": (0, rssm._replace(latent=Categorical(S, C + 1))),
        "deter": (2, deter[:, :-1]),
        "stoch": (3, stoch[:, :-1]),
        "half": (2, deter.bfloat16()),
        "index": (7, index + C),
        "short": (7, index[:, :-1]),
        "action": (8, action[..., :-1]),
        "draws": (8, None),
        "kind": (1, actor._replace(heads=(actor.heads[0]._replace(kind="normal"), actor.heads[1]))),
        "layers": (1, actor._replace(layers=())),
        "prior": (0, rssm._replace(prior=rssm.prior[:-1])),
        "linear": (0, rssm._replace(prior=(*rssm.prior[:-1], rssm.prior[-1]._replace(act="silu")))),
    }
    position, value = changes[change]
    args[position] = value
    return args


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("gaussian", "core.stoch maps 15 to 4, expected 3 to 4"),
        ("gru", "core.inputs maps 6 to 4, expected 18 to 4"),
        ("classes", "core.stoch maps 15 to 4, expected 18 to 4"),
        ("deter", r"deter has shape \[3, 7\], expected \[3, 8\]"),
        ("stoch", r"stoch has shape \[3, 2, 5\], expected \[3, 3, 5\]"),
        ("half", "deter is torch.bfloat16, expected torch.float32 or torch.float64"),
        ("index", r"index has entries outside of 0 ... 4"),
        ("short", r"index has shape \[3, 1, 3\], expected \[3, 2, 3\]"),
        ("action", "action has 2 features, expected 3"),
        ("draws", "actor needs noise to draw with, or the action"),
        ("kind", "kind 'normal'; choose categorical, bounded_normal, trunc_normal, tanh_normal or score"),
        ("layers", r"actor.heads\[0\].out\[0\] maps 6 to 1, expected 23 to 1"),
        ("prior", "prior has 1 layers that give 4, expected 3 \\* 5"),
        ("linear", "the last layer of prior must be linear"),
    ],
)
def test_bad_input_is_named(native: ModuleType, change: str, message: str):
    make = Maker(12)
    args = _bad(change, list(plain(replay(make, make.rssm(), make.actor(), 3, 2), torch.float32)))
    for learned in (False, change in ("action", "draws")):
        args[2].requires_grad_(learned)
        with pytest.raises(ValueError, match=message):
            native.imagine(*args)
