"""The watch over memory finds nothing in the kernels of any op, and the order of their programs changes no bit.

A few cases of each op by default; all of them, and updates of whole agents, with -m slow.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fastdream import agents, ops
from fastdream.ops import triton as backend
from fastdream.ops.triton import dream
from fastdream.spaces import Spaces

from . import agent_tools, dreamer_tools, parity_cases
from .interpreter_tools import Order, backwards, ordered, shuffled
from .ops_tools import Maker
from .parity_tools import changed, results, strided
from .shadow_tools import Finding
from .test_triton import HALF, HERE, NAMES_HALF, arguments, implemented
from .test_triton_dream import CUTS, SIZES, cut_tail, plain
from .test_triton_images import CONVS
from .test_triton_images import arguments as images
from .watch_tools import Watch

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels are not interpreted"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]
# Padding of rows, see `padding`: it is the rows' own, though a view of their first columns is all that a kernel is
# given. What lies there is read with them, written or not, and changes nothing.
PADDED = {
    f"{op}_{way}_kernel" for op in ("twohot_loss", "twohot_mean", "critic_loss") for way in ("fwd", "bwd")
}
PADDED |= {"dense_act_gradient_kernel"}


def wrong(watch: Watch) -> list[Finding]:
    def padding(found: Finding) -> bool:
        read = "load_logits" in found.line or "tile_of" in found.line or found.other == "d_logit"
        return found.kind in ("outside of its view", "nobody wrote what is read") and read

    return [found for found in watch.findings if not (found.kernel in PADDED and padding(found))]


def check(call: Callable[[], list[torch.Tensor]], *orders: Order) -> None:
    """Nothing is found, and programs in other orders give the same bits."""
    with Watch() as watch:
        first = call()
    assert watch.launches and not wrong(watch), "\n".join(" | ".join(x) for x in wrong(watch))
    for order in orders:
        with ordered(order):
            again = call()
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(first, again, strict=True)), order.__name__


def bits(x: torch.Tensor) -> torch.Tensor:
    """To be compared also where x is not a number."""
    return x.detach().contiguous().view(torch.uint8) if x.dim() else x.detach().reshape(1).view(torch.uint8)


def calls(op: str, name: str, args: tuple) -> Callable[[], list[torch.Tensor]]:
    """The op and its gradient, on a new copy of the arguments each time."""
    return lambda: results(implemented(op), changed(lambda x: x, args), HERE[op][name].gradients)


FEW = [
    (op, name)
    for op, cases in HERE.items()
    for name in list(cases)[:1]
    if op not in ("observe", "conv_pool", "conv_spread", "lstm_mdn_dream")
] + [
    ("observe", "gru-classes-False"),
    ("observe", "gru_block_cell-classes-False"),
    ("observe_step", "layernorm-classes-False"),
    ("observe_step", "layernorm-softplus-False"),
    ("conv_pool", "3-rms-silu"),
    ("conv_spread", "2-rms-none"),
    ("lstm_mdn_dream", "True-True-True"),
    ("policy_step", "gru-softplus-tanh_normal-False"),
    ("policy_step", "gru_block_cell-classes-mixed-True"),
]


@pytest.mark.parametrize(("op", "name"), FEW)
def test_nothing_is_wrong(op: str, name: str):
    orders = (
        [backwards] if op not in ("observe", "observe_step", "imagine", "rollout") else []
    )  # which take long
    check(calls(op, name, arguments(op, name, "small", 3)), *orders)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", ["small", "ragged"])
@pytest.mark.parametrize(("op", "name"), [(op, name) for op, cases in HERE.items() for name in cases])
def test_nothing_is_wrong_in_any_case(op: str, name: str, sizes: str):
    for rows in (1, 5, 19) if op not in ("categorical_kl", "observe") else (3,):
        check(calls(op, name, arguments(op, name, sizes, rows)), backwards, shuffled)


@pytest.mark.slow
@pytest.mark.parametrize("op", HERE)
def test_nothing_is_wrong_with_gaps_in_memory_or_many_programs(op: str):
    name = next(iter(HERE[op]))
    check(calls(op, name, changed(strided, arguments(op, name, "small", 5))), backwards)
    few = {"categorical_kl": 9, "conv_pool": 9, "conv_spread": 9, "observe": 17, "observe_step": 33}
    check(calls(op, name, arguments(op, name, "ragged", few.get(op, 70))), shuffled)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "name"), NAMES_HALF)
def test_nothing_is_wrong_in_half_precision(op: str, name: str):
    rows = 3 if op in ("categorical_kl", "observe") else 7
    check(calls(op, name, arguments(op, name, "ragged", rows, HALF)), backwards)


def pooled(shape: tuple[int, ...], learned: bool) -> list[torch.Tensor]:
    """Of images, whose gradient is computed too where they are learned."""
    x, *params = changed(lambda x: x, images(shape, HALF))
    return results(backend.conv_pool, (x if learned else x.detach(), *params), True)


def test_nothing_is_wrong_where_images_have_few_channels():
    check(lambda: pooled((2, 5, 4, 1, 8, 3), False), backwards)
    check(lambda: pooled((2, 4, 8, 3, 5, 5), False), backwards)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [shape[:-1] for shape in CONVS if shape[0]])
@pytest.mark.parametrize("learned", [False, True])
def test_nothing_is_wrong_in_any_convolution(shape: tuple[int, ...], learned: bool):
    check(lambda: pooled(shape, learned), backwards, shuffled)


def test_nothing_is_wrong_in_draws_of_relaxed_classes():
    logit, noise = torch.randn(5, 3, 7), torch.rand(5, 3, 7)
    check(lambda: results(backend.gumbel_sample, (logit.requires_grad_(), noise, 0.01), True), backwards)


DREAMS = [
    (core, family, kind, cut, rows)
    for core, family, kind in (
        ("block", "classes", "mixed"),
        ("layernorm", "softplus", "tanh_normal"),
        ("gru", "softplus", "tanh_normal"),
        ("gru", "classes", "given"),
        ("gru_block_cell", "classes", "mixed"),
    )
    for cut in CUTS
    for rows in (3, 19)
]


def dreamed(core: Any, family: str, kind: str, rows: int) -> list[torch.Tensor]:
    args = plain(parity_cases.imagine(core, family, kind, Maker(6, torch.float32, SIZES), rows))
    return [x for x in dream.imagine(*args) if x is not None]


def test_nothing_is_wrong_where_the_tail_of_a_step_is_in_parts(monkeypatch: pytest.MonkeyPatch):
    cut_tail("in parts", monkeypatch)
    check(lambda: dreamed("block", "classes", "mixed", 3))


@pytest.mark.slow
@pytest.mark.parametrize(("core", "family", "kind", "cut", "rows"), DREAMS)
def test_nothing_is_wrong_however_the_tail_is_cut(
    core: Any, family: str, kind: str, cut: str, rows: int, monkeypatch: pytest.MonkeyPatch
):
    cut_tail(cut, monkeypatch)
    check(lambda: dreamed(core, family, kind, rows), backwards, shuffled)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("obs", "act"),
    [
        (agent_tools.VECTOR, agent_tools.CONTINUOUS),
        (agent_tools.VECTOR, agent_tools.DISCRETE),
        (agent_tools.IMAGE, agent_tools.MIXED),
    ],
)
@pytest.mark.parametrize("name", ["dreamer_v1", "dreamer_v2", "dreamer_v3"])
def test_nothing_is_wrong_in_an_agent(name: str, obs: Spaces, act: Spaces, monkeypatch: pytest.MonkeyPatch):
    """With the ops that a GPU gets."""
    monkeypatch.setattr(backend, "available", lambda device: None)
    settings = agents.settings(name)
    small = settings.size(settings.Config(imag_length=2), "debug")
    agent = agents.find(name)(obs, act, small, ops.load(device="cuda"), seed=0)
    tools = agent_tools if name == "dreamer_v3" else dreamer_tools
    data, seen = tools.batch(agent, 2, 3), tools.observation(agent, 2)
    with Watch() as watch:
        agent.update(agent.init_train(2), data)
        agent.policy(agent.init_policy(2), seen)
    assert watch.launches and not wrong(watch), "\n".join(" | ".join(x) for x in wrong(watch))
