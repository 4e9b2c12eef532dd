"""Triton's kernels against the reference: on the GPU where there is one, in Triton's interpreter elsewhere.

The interpreter knows no bfloat16, so half precision is float16 in it. The rule for errors is that of the parity matrix.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdream import ops
from fastdream.ops import auto
from fastdream.ops import triton as backend

from . import triton_cases
from .ops_tools import Maker
from .parity_cases import CASES, Case
from .parity_tools import SIZES, changed, check, results, strided, tensors
from .triton_cases import PRECISIONS, PRESETS, in_precision, made, names

# What is masked out may be infinite, and its differences not a number.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


SLOW = (*triton_cases.SCANS, "imagine", "rollout", "lstm_mdn_dream")  # of many launches
# Scans take long to interpret, and cores, latents and actors meet in few places: of normals a few cases with each.
NORMALS = {
    "observe": (
        "gru-softplus-False",
        "gru_block_cell-softplus-False",
        "layernorm-sigmoid2-False",
        "block-softplus-False",
    ),
    "observe_step": ("layernorm-softplus-False",),
    "imagine_step": ("gru-softplus", "layernorm-sigmoid2"),
    "imagine": (
        "gru-softplus-tanh_normal",
        "layernorm-softplus-trunc_normal",
        "block-sigmoid2-mixed",
        "gru-softplus-mixed-True",
        "gru_block_cell-softplus-mixed-True",
        "block-sigmoid2-trunc_normal-True",
    ),
    "rollout": ("gru-softplus", "layernorm-sigmoid2"),
    "policy_step": (
        "gru-softplus-tanh_normal-False",
        "layernorm-softplus-trunc_normal-False",
        "block-sigmoid2-mixed-True",
    ),
}
ELSEWHERE = "tanh_normal", "trunc_normal"  # kinds of actors that are compared there


def computes(op: str, name: str, case: Case) -> bool:
    """Whether `auto` gives such a call to Triton, and it is worth its time."""
    chosen = "classes" in name and not any(kind in name for kind in ELSEWHERE)
    if op in NORMALS and not chosen and name not in NORMALS[op]:
        return False
    rule = auto.TRITON_RULES.get(op)
    with torch.set_grad_enabled(case.gradients):
        return rule is None or rule.serves(*case.make(Maker(2, torch.float32), 2))


HERE = {
    op: {name: case for name, case in cases.items() if computes(op, name, case)}
    for op, cases in CASES.items()
    if op in backend.OPS
}
NAMES = [(op, name) for op, cases in HERE.items() for name in cases]
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
SINGULAR = {
    ("twohot_mean", "symexp"): "float16 cannot hold the gradients of means in the thousands of millions",
    (
        "imagine",
        "gru-softplus-mixed-True",
    ): "the reference's roundings cancel in gradients of one number by chance",
}
NAMES_HALF = [
    (op, name)
    for op, name in NAMES
    if op not in triton_cases.FULL_PRECISION
    and (op, name) not in SINGULAR
    # Which columns of weights a posterior has is the same in every precision.
    and not (op in triton_cases.SCANS and name.endswith("True"))
]


def implemented(op: str) -> Callable[..., Any]:
    return getattr(ops.load("reference", device=DEVICE, **{op: "triton"}), op)


def arguments(op: str, name: str, sizes: str, rows: int, dtype: torch.dtype = torch.float32) -> tuple:
    args = HERE[op][name].make(Maker(rows, torch.float32, SIZES[sizes]), rows)
    return changed(lambda x: x.to(DEVICE), in_precision(op, args, dtype))


def check_at(op: str, name: str, args: tuple, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return check(implemented(op), op, HERE[op][name], args, dtype)


def test_ops_are_in_the_matrix_and_in_the_cases():
    assert set(backend.OPS) <= set(CASES)
    assert set(backend.OPS) == set(triton_cases.CASES)
    files = {path.stem for path in Path(backend.__file__).parent.glob("*.py")}
    assert not files & set(ops.OPS), "a file named like an op hides the op once it is imported"
    assert all(callable(getattr(backend, op)) for op in backend.OPS)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("op", "name"), NAMES)
def test_agrees_with_reference(op: str, name: str, sizes: str, poison: list[str]):
    many = 5 if op == "categorical_kl" else 17  # it has a program for each of its T times as many
    # Tiles are others for up to 16 rows and for more; those of a small model are those of a ragged one.
    for rows in (1,) if op in SLOW and sizes == "small" else (1, many):
        check_at(op, name, arguments(op, name, sizes, rows))
    assert poison, "nothing was poisoned"


@pytest.mark.parametrize(("op", "name"), NAMES_HALF)
def test_takes_half_precision(op: str, name: str, poison: list[str]):
    check_at(op, name, arguments(op, name, "ragged", 7, HALF), HALF)


@pytest.mark.parametrize(("op", "name"), NAMES)
def test_takes_strides_and_no_rows(op: str, name: str):
    check_at(op, name, changed(strided, arguments(op, name, "small", 5)))
    # Of nothing, no order statistic is there, and a mean is NaN.
    if op not in ("laprop_", "percentiles") and "mean" not in name:
        check_at(op, name, arguments(op, name, "small", 0))


@pytest.mark.parametrize("op", HERE)
def test_many_programs_agree_and_do_so_exactly(op: str):
    name, case = next(iter(HERE[op].items()))
    few = {"categorical_kl": 9, "conv_pool": 9, "conv_spread": 9} | dict.fromkeys(SLOW, 20)
    args = arguments(op, name, "ragged", few.get(op, 70))
    first = check_at(op, name, changed(lambda x: x, args))
    second = results(implemented(op), args, case.gradients)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("op", [op for op in HERE if op != "gather_sequences"])
def test_double_precision_is_refused(op: str):
    name = next(iter(HERE[op]))
    args = changed(lambda x: x.double() if x.is_floating_point() else x, arguments(op, name, "small", 3))
    with pytest.raises(ValueError, match="torch.float64, expected torch.float32"), torch.no_grad():
        implemented(op)(*args)


@pytest.mark.parametrize("op", HERE)
def test_compiles_as_one_graph(op: str):
    name, case = next(iter(HERE[op].items()))
    args = arguments(op, name, "small", 3)
    eager = results(implemented(op), changed(lambda x: x, args), case.gradients)
    torch._dynamo.reset()
    compiled = torch.compile(implemented(op), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(results(compiled, args, case.gradients), eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def detached(tree: Any) -> Any:
    """A copy of nested tuples and lists whose tensors want no gradient."""
    if isinstance(tree, (tuple, list)):
        return type(tree)(detached(item) for item in tree)
    return tree.detach().clone() if isinstance(tree, torch.Tensor) else tree


class Calls(TorchDispatchMode):
    """Keeps the first call of each of our ops."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Any, tuple] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastdream":
            self.found.setdefault(func, detached(args))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", HERE)
def test_opcheck(op: str):
    name, case = next(iter(HERE[op].items()))
    with Calls() as calls:
        results(implemented(op), arguments(op, name, "small", 2), case.gradients)
    assert len(calls.found) == 1 + case.gradients
    for func, args in calls.found.items():
        for x in tensors(args):
            x.requires_grad_(case.gradients and x.is_floating_point() and "backward" not in func.__name__)
        assert set(torch.library.opcheck(func, args).values()) == {"SUCCESS"}, func


@pytest.mark.gpu
@pytest.mark.parametrize(("op", "name", "preset", "dtype"), names(PRESETS, PRECISIONS))
def test_agrees_at_every_size(op: str, name: str, preset: str, dtype: torch.dtype, poison: list[str]):
    args = changed(lambda x: x.cuda(), made(op, name, preset, dtype))
    check(implemented(op), op, triton_cases.CASES[op][name], args, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("op", HERE)
def test_is_captured_in_a_graph(op: str):
    """Replays compute anew from what then lies in the inputs."""
    name, case = next(iter(HERE[op].items()))
    if op in triton_cases.IN_PLACE:
        pytest.skip("a replay would step on")
    args, other = arguments(op, name, "ragged", 70), arguments(op, name, "ragged", 70)
    function = implemented(op)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        function(*args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        captured = function(*args)
    graph.replay()
    expected = results(function, other, False)
    outputs = results(lambda *_: captured, other, False)
    assert case.make and all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))


@pytest.mark.gpu
def test_optimiser_is_captured_in_a_graph():
    """With gradients that the graph itself makes, whose addresses no table knew before."""
    start = [torch.randn(300, 70, device="cuda"), torch.randn(9, device="cuda")]
    base, step = [torch.randn_like(x) for x in start], torch.tensor(3, device="cuda")

    def update(params: list, nu: list, mu: list) -> None:
        implemented("laprop_")(params, [g * 2 for g in base], nu, mu, step, 1e-2)

    states = [
        [[x.clone() for x in start], *([torch.zeros_like(x) for x in start] for _ in "nm")] for _ in "ab"
    ]
    for _ in range(3):
        update(*states[0])
    update(*states[1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update(*states[1])
    graph.replay()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(tensors(states[0]), tensors(states[1]), strict=True))


@pytest.mark.gpu
def test_optimiser_is_captured_anew_after_calls_with_tensors_that_are_known():
    """Those need no new table; the next capture needs one all the same."""
    params, grads, nu, mu = ([torch.ones(300, device="cuda") for _ in range(2)] for _ in range(4))
    step = torch.tensor(3, device="cuda")
    for _ in range(3):
        implemented("laprop_")(params, grads, nu, mu, step, 1e-2)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            implemented("laprop_")(params, [g * 2 for g in grads], nu, mu, step, 1e-2)
        graph.replay()
    assert all(x.isfinite().all() for x in params)
