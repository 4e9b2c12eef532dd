"""Observing by CTAs that keep their weights, as the CPU plays it: values, gradients, resets, exchanges, refusals."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from fastdream.ops import reference, triton
from fastdream.ops.native import resident, resident_op
from fastdream.ops.native.resident_pack import (
    Params,
    backward_weights,
    forward_weights,
    packed_sizes,
    packed_vectors,
    packed_weights,
    vectors,
)
from fastdream.ops.params import RSSM, BlockGRU, Gaussian, Step
from fastdream.ops.reference.state import Posterior

from .launch_tools import Launches
from .observe_tools import assert_as_good, results
from .ops_tools import A, Maker, Sizes, mapped
from .parity_tools import changed

ROOT = Path(__file__).parents[1]
DTYPES = torch.float32, torch.bfloat16
EMBED = 24


class Case:
    """A model of one of the shapes, with parameters in float32, and inputs; `replay` repeats given draws."""

    def __init__(
        self,
        name: str = "tiny",
        batch: int = 5,
        length: int = 4,
        dtype: torch.dtype = torch.float32,
        *,
        resets: float = 0.3,
        device: str = "cpu",
    ) -> None:
        shape = resident.SHAPES[name]
        sizes = Sizes(shape.deter, shape.hidden, shape.stoch, shape.classes, EMBED, shape.blocks)
        m = Maker(11, torch.float32, sizes)
        rssm = m.rssm("block")
        rssm = rssm._replace(prior=(), post=(rssm.post[0], rssm.post[-1]))
        deter, stoch = m.state(batch)
        deter = deter.detach().to(dtype)
        inputs = m.normal(batch, length, A, scale=2.0), m.normal(batch, length, EMBED)
        self.trees = mapped(lambda x: x.detach().to(device).requires_grad_(), (rssm, deter, stoch, *inputs))
        self.rssm: RSSM = self.trees[0]
        self.reset = (m.uniform(batch, length) < resets).to(device)
        self.noise = m.uniform(batch, length, shape.stoch).to(device)
        self.index = m.index(batch, length, shape.stoch).to(device)

    def replay(self, op: Callable[..., Step]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda *trees: op(*trees, self.reset, None, self.index)[:3]

    def draw(self, op: Callable[..., Step]) -> Step:
        return op(*self.trees, self.reset, self.noise)


def check(case: Case) -> None:
    assert_as_good(case.replay(resident.observe), case.replay(reference.observe), case.trees, 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch, length", [(1, 1), (5, 4), (16, 2), (35, 3)])
def test_agrees_with_reference(
    native: ModuleType, poison: list[str], batch: int, length: int, dtype: torch.dtype, monkeypatch
):
    # More rows than one tile has are for shapes of one cluster alone, but the player takes them of any shape.
    monkeypatch.setattr(resident, "ROWS", 64)
    check(Case("tiny", batch, length, dtype))
    assert poison


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, batch, length", [("1m", 19, 3), ("12m", 5, 2), ("25m", 3, 2)])
def test_presets_agree_with_reference(
    native: ModuleType, name: str, batch: int, length: int, dtype: torch.dtype
):
    check(Case(name, batch, length, dtype))


def test_smaller_clusters_agree_with_reference(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    others = {name: shape for name, shape in resident.SHAPES.items() if name != "12m"}
    case = Case("12m by 8", 2, 2, torch.bfloat16)
    monkeypatch.setattr(resident, "SHAPES", others)
    check(case)


@pytest.mark.skipif(
    torch.cuda.is_available(), reason="kernels on tensors of the host are interpreted, without a GPU"
)
def test_actions_enter_by_the_kernels_that_a_gpu_has(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resident, "_fused", lambda device: True)
    with Launches() as found:
        check(Case())
    assert found.names["norm_act_fwd_kernel"] and found.names["norm_act_bwd_kernel"]


@pytest.mark.parametrize("name", ["tiny", "12m by 8"])
def test_what_is_packed_is_what_is_cut(name: str):
    case, shape = Case(name, 1, 1, torch.bfloat16), resident.SHAPES[name]
    model = Posterior.bind(case.rssm, torch.bfloat16, shape.deter, A)
    p = Params(*(x.detach() for x in resident._bound(model)))
    wanted = forward_weights(p, shape), backward_weights(p, shape)
    assert all(map(torch.equal, packed_weights(p, shape, True), wanted))
    assert len(packed_weights(p, shape, False)) == 1
    assert torch.equal(packed_vectors(p, shape), vectors(p, shape))
    assert packed_sizes(p, shape) == (wanted[0].shape[1], vectors(p, shape).shape[1])


@pytest.mark.parametrize("resets", [0.0, 1.0])
def test_no_resets_and_nothing_but_resets(native: ModuleType, resets: float):
    check(Case(resets=resets))


def test_what_is_forgotten_does_not_matter(native: ModuleType):
    """Not even NaN, in value or in gradients; and rows do not meet."""
    case = Case(batch=3, resets=0.0)
    case.reset[1, 0] = True
    rssm, deter, stoch, action, embed = mapped(lambda x: x.detach().clone(), case.trees)
    deter[1], stoch[1], action[1, 0] = torch.nan, torch.nan, torch.nan
    deter[2] = torch.nan
    broken = mapped(lambda x: x.requires_grad_(), (rssm, deter, stoch, action, embed))
    ours, theirs = (results(case.replay(resident.observe), x)[:3] for x in (broken, case.trees))
    for our, their in zip(ours, theirs, strict=True):
        assert torch.equal(our[:2], their[:2])
    assert ours[0][2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_draws_as_reference(native: ModuleType, dtype: torch.dtype):
    """The same noise draws the same classes; in bfloat16 rounding of the logits moves a few."""
    case = Case("1m", 16, 8, dtype)
    ours, theirs = case.draw(resident.observe), case.draw(reference.observe)
    assert ours.index is not None and theirs.index is not None and ours.index.dtype == torch.int64
    if dtype == torch.float32:
        assert torch.equal(ours.index, theirs.index)
        torch.testing.assert_close(ours.deter, theirs.deter)
    # Before the first difference, which changes all that follows.
    assert (ours.index == theirs.index)[:, 0].float().mean() > 0.97
    assert torch.equal(ours.stoch.argmax(-1), ours.index) and torch.equal(
        ours.stoch.sum(-1), torch.ones_like(ours.stoch.sum(-1))
    )
    again = resident.observe(*case.trees, case.reset, None, ours.index)
    assert all(torch.equal(x, y) for x, y in zip(ours, again, strict=True))


@pytest.mark.parametrize("name", ["tiny", "12m"])
def test_exchanges_are_complete(native: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch):
    """Bitwise the same whichever CTA, and whichever cluster, is the first between two exchanges."""
    case = Case(name, 3, 3, torch.bfloat16)
    all_results = []
    for order in range(4):
        monkeypatch.setattr(resident_op, "PLAYED_ORDER", order)
        all_results.append(
            results(lambda *trees: resident.observe(*trees, case.reset, case.noise)[:3], case.trees)
        )
    for other in all_results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(all_results[0], other, strict=True))


def test_gradients_of_some_outputs_alone(native: ModuleType):
    case = Case()
    for part in range(3):
        pair = [case.replay(op) for op in (resident.observe, reference.observe)]
        got, want = (results(lambda *t, fn=fn, i=part: (fn(*t)[i],), case.trees) for fn in pair)
        for our, their in zip(got, want, strict=True):
            torch.testing.assert_close(our, their, atol=1e-5, rtol=1e-5)


def test_layers_without_bias_and_scale(native: ModuleType):
    case = Case()
    post = case.rssm.post[0]._replace(scale=None), case.rssm.post[1]._replace(bias=None)
    core = case.rssm.core
    assert isinstance(core, BlockGRU)
    core = core._replace(
        deter=core.deter._replace(bias=None, scale=None), stoch=core.stoch._replace(scale=None)
    )
    case.trees = case.rssm._replace(core=core, post=post), *case.trees[1:]
    check(case)


def test_any_strides_and_an_index_that_is_no_class(native: ModuleType):
    case = Case()
    trees = mapped(lambda x: x.detach().mT.contiguous().mT if x.dim() > 1 else x.detach(), case.trees)
    ours = case.replay(resident.observe)(*trees)
    torch.testing.assert_close(ours, case.replay(reference.observe)(*trees))
    case.index[0, 0, 0], case.index[1, 0, 0] = 99, -1
    index = resident.observe(*trees, case.reset, None, case.index).index
    assert index is not None and index[0, 0, 0] == 7 and index[1, 0, 0] == 0


def test_empty_batch(native: ModuleType):
    got = results((case := Case(batch=0)).replay(resident.observe), case.trees)
    assert got[0].shape == (0, 4, 64) and all(not x.any() for x in got)


def test_compiles_and_tells_torch_the_truth(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    case = Case(batch=2, length=2)
    compiled_op = torch.compile(case.replay(resident.observe), fullgraph=True, backend="aot_eager")
    got, want = (results(fn, case.trees) for fn in (compiled_op, case.replay(resident.observe)))
    for our, their in zip(got, want, strict=True):
        torch.testing.assert_close(our, their)
    original, calls = torch.ops.fastdream.resident_observe, []
    record = SimpleNamespace(resident_observe=lambda *args: calls.append(args) or original(*args))
    monkeypatch.setattr(torch.ops, "fastdream", record)
    case.replay(resident.observe)(*case.trees)
    monkeypatch.undo()
    # As leaves: what they were made by goes backward once.
    torch.library.opcheck(original.default, changed(lambda x: x, calls[0]))


def test_once_differentiable(native: ModuleType):
    case = Case(batch=2, length=2)
    deter = case.replay(resident.observe)(*case.trees)[0]
    gradient = torch.autograd.grad(deter.sum(), case.trees[4], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(gradient.sum(), case.trees[3])


def test_refuses_what_it_cannot_do(native: ModuleType):
    case, m = Case(), Maker()
    core = case.rssm.core
    assert isinstance(core, BlockGRU)
    gelu = core._replace(hidden=(core.hidden[0]._replace(act="gelu"),))
    changes: dict[str, RSSM] = {
        "GRU with Categorical": case.rssm._replace(core=m.core("gru")),
        "BlockGRU with Gaussian": case.rssm._replace(latent=Gaussian(4)),
        "another depth": case.rssm._replace(core=core._replace(hidden=core.hidden * 2)),
        "another activation": case.rssm._replace(core=gelu),
        "not linear": case.rssm._replace(post=case.rssm.post[:1] * 2),
        "different eps": case.rssm._replace(core=core._replace(stoch=core.stoch._replace(eps=1.0))),
        r"sizes \(blocks, D, H, S, C\) = \(2, 8, 4, 3, 5\); compiled are tiny": m.rssm("block")._replace(
            post=m.rssm("block").post[1:]
        ),
    }
    for message, rssm in changes.items():
        with pytest.raises(ValueError, match=message):
            resident.observe(rssm, *case.trees[1:], case.reset, case.noise)
    with pytest.raises(ValueError, match="a batch of 17"):
        resident.observe(*(big := Case(batch=17)).trees, big.reset, big.noise)
    with pytest.raises(ValueError, match="products in torch.float64"):
        resident.observe(case.rssm, case.trees[1].double(), *case.trees[2:], case.reset, case.noise)
    with pytest.raises(ValueError, match="needs noise"):
        resident.observe(*case.trees, case.reset, None)
    with pytest.raises(ValueError, match=r"noise has shape \[5, 4, 3\], expected \[5, 4, 4\]"):
        resident.observe(*case.trees, case.reset, case.noise[..., :3])
    with pytest.raises(ValueError, match="noise is on meta, expected cpu like deter"):
        resident.observe(*case.trees, case.reset, case.noise.to("meta"))


def test_no_call_asks_again_for_triton(monkeypatch: pytest.MonkeyPatch):
    """That takes as long as observing does."""
    monkeypatch.setattr(triton, "missing", None)
    assert not resident._fused(torch.device("cpu"))
    assert resident._fused(torch.device("cuda:0")) == resident.TRITON


def test_a_barrier_that_failed_is_an_error_at_the_next_call(native: ModuleType):
    case, flag = Case(), resident_op._failed(torch.device("cpu"))
    flag.fill_(1)
    try:
        with pytest.raises(RuntimeError, match="gave up waiting"):
            case.draw(resident.observe)
    finally:
        flag.zero_()
    case.draw(resident.observe)
