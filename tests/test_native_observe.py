"""Compiled observing and recurrent cores against the reference: values, every gradient, resets, odd shapes, threads."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference
from fastdream.ops.params import RSSM, Categorical, Gaussian, Layer, Step

from .native_tools import recorded
from .observe_tools import CORES, DTYPES, LATENTS, OPS, Case, assert_as_good, check, results
from .ops_tools import SMALL, A, C, D, E, H, Maker, S, leaves, mapped


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, length", [(1, 1), (3, 2), (17, 5), (2, 300)])
@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("core", CORES)
def test_agrees_with_reference(
    native: ModuleType, poison: list[str], core: str, latent: str, batch: int, length: int, dtype: torch.dtype
):
    check(native, Case(core, batch, length, dtype, latent=latent))
    assert poison


@pytest.mark.parametrize("latent", LATENTS)
@pytest.mark.parametrize("core", CORES)
def test_agrees_in_every_instruction_set(native: ModuleType, isa: str, core: str, latent: str):
    check(native, Case(core, 9, 3, torch.float32, latent=latent))
    check(native, Case(core, 9, 3, torch.float64, latent=latent))


@pytest.mark.parametrize("resets", [0.0, 1.0])
@pytest.mark.parametrize("latent", ["discrete", "softplus"])
@pytest.mark.parametrize("core", CORES)
def test_no_resets_and_nothing_but_resets(native: ModuleType, core: str, latent: str, resets: float):
    check(native, Case(core, dtype=torch.float32, resets=resets, latent=latent))


def test_layers(native: ModuleType):
    """Three hidden layers in the core; a posterior of the embedding alone, of one layer, of another norm."""
    check(native, Case(later=2, absolute=True))
    case = Case()
    m = Maker(8)
    case.rssm = case.rssm._replace(post=(m.layer(D + E, S * C, "none", "none"),))
    check(native, case)
    shifted = m.layer(D + E, H, "layer", "gelu"), m.layer(H, S * C, "none", "none")
    case.rssm = case.rssm._replace(post=shifted)
    check(native, case)


@pytest.mark.parametrize("core", CORES)
def test_layers_of_no_width(native: ModuleType, core: str):
    """Products that give nothing: one divided by zero, which ends a process unless a compiler leaves it out."""
    m = Maker(3, torch.float32, SMALL._replace(hidden=0))
    rssm, noise = m.rssm(core), m.uniform(2, 3, m.sizes.stoch)
    reset = torch.tensor([[True, False, True]] * 2)
    args = rssm, *m.state(2), m.normal(2, 3, A), m.normal(2, 3, E), reset, noise
    for ours, theirs in zip(native.observe(*args), reference.observe(*args), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_wide_model_crosses_panels_and_pieces(native: ModuleType):
    """Widths of several panels with remainders, blocks no multiple of a vector, more rows than are summed at once."""
    m, width, units, blocks, stoch = Maker(9, torch.float32), 3 * 44, 37, 3, 5 * 7
    hidden = (m.layer(width + blocks * 3 * units, width, blocks=blocks), m.layer(width, width, blocks=blocks))
    core = (m.layer(width, units), m.layer(stoch, units), m.layer(4, units), hidden)
    core = type(m.core("block"))(*core, m.layer(width, 3 * width, "none", "none", blocks))
    post = (m.layer(width + 21, units), m.layer(units, stoch, "none", "none"))
    rssm = RSSM(core, Categorical(5, 7, 0.02), (), post)
    trees = (
        rssm,
        m.normal(19, width, scale=0.5),
        m.normal(19, 5, 7),
        m.normal(19, 40, 4),
        m.normal(19, 40, 21),
    )
    reset, index = m.uniform(19, 40) < 0.1, m.index(19, 40, 5, high=7)

    def replayed(op: Callable[..., Step]) -> Callable:
        return lambda *trees: op(*trees, reset, None, index)[:3]

    assert_as_good(replayed(native.observe), replayed(reference.observe), trees, 3)


@pytest.mark.parametrize("latent", ["discrete", "softplus"])
@pytest.mark.parametrize("core", CORES)
def test_many_rows_go_through_in_blocks(native: ModuleType, core: str, latent: str):
    check(native, Case(core, 150, 3, torch.float32, latent=latent))


@pytest.mark.parametrize("core", CORES)
def test_draws_as_reference(native: ModuleType, core: str):
    """The same noise draws the same classes, unless a cumulative probability is as good as equal to it."""
    case = Case(core, 17, 12)
    ours, theirs = case.draw(native.observe), case.draw(reference.observe)
    assert torch.equal(ours.index, theirs.index)
    assert ours.index.dtype == torch.int64
    assert torch.equal(ours.stoch.detach(), theirs.stoch.detach())
    torch.testing.assert_close(ours.deter, theirs.deter)


def test_gradients_of_some_outputs_and_inputs_alone(native: ModuleType):
    case = Case()
    for part in range(3):
        pair = [case.replay(ops.observe) for ops in (native, reference)]
        got, want = (results(lambda *t, fn=fn, i=part: (fn(*t)[i],), case.trees) for fn in pair)
        for our, their in zip(got, want, strict=True):
            torch.testing.assert_close(our, their)
    frozen = mapped(lambda x: x.detach(), case.trees)
    for i in range(1, 5):
        trees = tuple(x.requires_grad_() if j == i else x for j, x in enumerate(frozen))
        got, want = (results(case.replay(ops.observe), trees) for ops in (native, reference))
        torch.testing.assert_close(got[-1], want[-1])
        frozen = mapped(lambda x: x.detach(), frozen)
    with torch.no_grad():
        assert not case.draw(native.observe).deter.requires_grad


@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("latent", LATENTS)
def test_single_steps(native: ModuleType, batch: int, latent: str):
    case = Case(batch=batch, length=1, latent=latent)
    last = case.trees[:3] + (case.action[:, 0], case.embed[:, 0])
    draws = (None, case.index[:, 0]) if case.discrete else (case.noise[:, 0], None)
    rest = case.reset[:, 0], *draws
    ours, theirs = ((lambda *t, f=ops.observe_step: f(*t, *rest)[:3]) for ops in (native, reference))
    assert_as_good(ours, theirs, last, 3)
    if not case.discrete:
        assert native.observe_step(*last, *rest).index is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("name", CORES)
def test_cores(native: ModuleType, name: str, batch: int, dtype: torch.dtype):
    m = Maker(5, dtype)
    trees = m.core(name), m.normal(batch, D), m.normal(batch, S * C), m.normal(batch, A, scale=2.0)
    ours, theirs = ((lambda *t, ops=ops: (getattr(ops, OPS[name])(*t),)) for ops in (native, reference))
    assert_as_good(ours, theirs, trees, 1)


def test_a_core_without_biases(native: ModuleType):
    m = Maker(6, torch.float32)
    core = m.core("gru")._replace(bias_ih=None, bias_hh=None)  # type: ignore[arg-type]
    trees = core, m.normal(3, D), m.normal(3, S * C), m.normal(3, A)
    ours, theirs = ((lambda *t, ops=ops: (ops.gru(*t),)) for ops in (native, reference))
    assert_as_good(ours, theirs, trees, 1)


@pytest.mark.parametrize("batch", [2, 32])
@pytest.mark.parametrize("latent", ["discrete", "softplus"])
@pytest.mark.parametrize("core", CORES)
def test_two_threads(native: ModuleType, core: str, latent: str, batch: int):
    """Two threads agree with the reference and with themselves, whether they share rows or columns."""
    case = Case(core, batch, 6, torch.float32, latent=latent)
    torch.set_num_threads(2)
    try:
        check(native, case)
        first, second = (results(case.replay(native.observe), case.trees) for _ in range(2))
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("latent", ["discrete", "softplus"])
def test_any_strides_and_twice_through_a_graph(native: ModuleType, latent: str):
    case = Case(latent=latent)
    trees = mapped(lambda x: x.detach().mT.contiguous().mT if x.dim() > 1 else x.detach(), case.trees)
    torch.testing.assert_close(case.replay(native.observe)(*trees), case.replay(reference.observe)(*trees))
    deter = case.replay(native.observe)(*case.trees)[0]
    inputs = list(leaves(case.trees))
    grads = [torch.autograd.grad(deter.sum(), inputs, retain_graph=True, allow_unused=True) for _ in range(2)]
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(*grads, strict=True))


@pytest.mark.parametrize("latent", ["discrete", "softplus"])
def test_empty_batch(native: ModuleType, latent: str):
    case = Case(batch=0, latent=latent)
    got = results(case.replay(native.observe), case.trees)
    assert got[0].shape == (0, 4, D) and all(not x.any() for x in got)


@pytest.mark.parametrize("core, latent", [("block", "discrete"), ("gru", "softplus")])
def test_compiles_and_tells_torch_the_truth(native: ModuleType, core: str, latent: str):
    case = Case(core, latent=latent)
    compiled_op = torch.compile(case.replay(native.observe), fullgraph=True, backend="aot_eager")
    got, want = (results(fn, case.trees) for fn in (compiled_op, case.replay(native.observe)))
    for our, their in zip(got, want, strict=True):
        torch.testing.assert_close(our, their)


def test_opcheck(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    """torch's own checks of the op, on the arguments that `observe` and a core give to it."""
    calls = recorded(monkeypatch, "observe")
    cases = Case("layernorm", 2, 2), Case("gru", 2, 2, latent="softplus")
    for case in cases:
        case.replay(native.observe)(*case.trees)
        op = native.layernorm_gru if case is cases[0] else native.gru
        op(case.rssm.core, case.state[0], case.state[1].flatten(1), case.action[:, 0])
    monkeypatch.undo()
    assert len(calls) == 4
    for args in calls:
        torch.library.opcheck(torch.ops.fastdream.observe.default, args)


def broken(case: Case, **changes: Tensor) -> tuple:
    names = "deter", "stoch", "action", "embed", "reset", "noise"
    inputs = dict(zip(names, (*case.trees[1:], case.reset, case.noise), strict=True)) | changes
    return case.rssm, *inputs.values()


@pytest.mark.parametrize(
    "name, shape, message",
    [
        ("deter", (3, D + 1), r"deter has shape \[3, 9\], expected \[3, 8\]"),
        ("stoch", (4, S, C), r"stoch has shape \[4, 3, 5\], expected \[3, 3, 5\]"),
        ("action", (3, 4, A + 1), r"core.action maps 3 to 4, expected 4 to 4"),
        ("action", (2, 4, A), r"action has shape \[2, 4, 3\], expected \[3, 4, 3\]"),
        ("embed", (3, 4, E + 1), r"post\[0\].weight has shape \[\d+, 12\], expected \[out, 13\]"),
        ("embed", (3, 5, E), r"embed has shape \[3, 5, 4\], expected \[3, 4, 4\]"),
        ("reset", (3, 5), r"reset has shape \[3, 5\], expected \[3, 4\]"),
        ("noise", (3, 4, S + 1), r"noise has shape \[3, 4, 4\], expected \[3, 4, 3\]"),
    ],
)
def test_names_wrong_shapes(native: ModuleType, name: str, shape: tuple[int, ...], message: str):
    case = Case()
    with pytest.raises(ValueError, match=message):
        native.observe(*broken(case, **{name: torch.zeros(shape, dtype=torch.float64)}))


def test_refuses_what_it_cannot_do(native: ModuleType):
    case = Case()
    index = case.index.clone()
    index[0, 0, 0] = C
    with pytest.raises(ValueError, match="index has entries outside of 0 ... 4"):
        native.observe(*case.trees, case.reset, None, index)
    with pytest.raises(ValueError, match="needs noise"):
        native.observe(*case.trees, case.reset, None)
    with pytest.raises(ValueError, match="reset is torch.float64"):
        native.observe(*broken(case, reset=case.reset.double()))
    with pytest.raises(ValueError, match=r"torch.bfloat16, expected torch.float32"):
        native.observe(*broken(case, deter=case.state[0].bfloat16()))
    with pytest.raises(ValueError, match="a parameter is torch.float64"):
        native.observe(*broken(case, deter=case.state[0].float()))
    normals = Case("gru", latent="softplus")
    with pytest.raises(ValueError, match="a Gaussian latent needs noise"):
        native.observe(*normals.trees, normals.reset, None, case.index)
    wide = normals.rssm._replace(latent=Gaussian(S + 1))
    with pytest.raises(ValueError, match=r"core.inputs maps 6 to 4, expected 7 to 4"):
        native.observe(wide, *normals.trees[1:], normals.reset, normals.noise)
    strange = normals.rssm._replace(latent=Gaussian(S, std="exp"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="std is 'exp'; choose softplus, sigmoid2"):
        native.observe(strange, *normals.trees[1:], normals.reset, normals.noise)
    linear: Layer = case.rssm.post[-1]._replace(act="silu")
    with pytest.raises(ValueError, match="last layer of post must be linear"):
        native.observe(case.rssm._replace(post=(*case.rssm.post[:-1], linear)), *broken(case)[1:])
    blocks = Layer(case.rssm.post[0].weight.new_zeros(2, 2, 3))
    with pytest.raises(ValueError, match=r"post\[0\].weight has shape \[2, 2, 3\], expected \[out, 12\]"):
        native.observe(case.rssm._replace(post=(blocks, *case.rssm.post[1:])), *broken(case)[1:])
    bare = case.rssm._replace(core=case.rssm.core._replace(hidden=()))
    with pytest.raises(ValueError, match="core.hidden has no layers"):
        native.observe(bare, *case.trees[1:], case.reset, None, case.index)
    deter = native.observe(*case.trees, case.reset, None, case.index).deter
    gradient = torch.autograd.grad(deter.sum(), case.embed, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(gradient.sum(), case.action)
