"""The parity matrix: every op compiled for the CPU against the reference, in both precisions, at ragged sizes, from
strided inputs into poisoned memory, with every gradient; and what it refuses.

The error against float64 is at most twice (of gradients three times) the reference's own at the same precision.
"""

from functools import partial
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from fastdream import ops
from fastdream.ops import native as native_ops
from fastdream.ops import reference

from .ops_tools import Maker, leaves, mapped, rebuilt
from .parity_cases import CASES
from .parity_tools import SIZES, arguments, changed, check, results, strided

FLOATS = (torch.float32, torch.float64)
COMPILED = [op for op in ops.OPS if hasattr(native_ops, op)]
NAMES = [(op, name) for op in COMPILED for name in CASES.get(op, ())]


def test_the_matrix_is_complete():
    assert set(COMPILED) <= set(CASES) <= set(ops.OPS)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("op", "name"), NAMES)
def test_agrees_with_reference(
    native: ModuleType, op: str, name: str, dtype: torch.dtype, sizes: str, poison: list[str]
):
    function, case = getattr(native, op), CASES[op][name]
    for rows in (1, 3, 17):
        check(function, op, case, arguments(case, sizes, rows, dtype), dtype)
    assert poison, "nothing was poisoned"


@pytest.mark.parametrize(("op", "name"), NAMES)
def test_takes_strides_and_no_rows(native: ModuleType, op: str, name: str):
    function, case = getattr(native, op), CASES[op][name]
    check(function, op, case, changed(strided, arguments(case, "small", 5, torch.float32)), torch.float32)
    if op != "laprop_" and "mean" not in name:  # whose mean over nothing is NaN
        check(function, op, case, arguments(case, "small", 0, torch.float32), torch.float32)


@pytest.mark.parametrize(("op", "name"), NAMES)
def test_two_threads_and_two_calls_agree(native: ModuleType, op: str, name: str, two_threads: None):
    """Exactly, with the same number of threads."""
    function, case = getattr(native, op), CASES[op][name]
    args = arguments(case, "ragged", 70, torch.float32)
    first = check(function, op, case, changed(lambda x: x, args), torch.float32)
    second = results(function, args, case.gradients)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("op", [op for op in COMPILED if any(case.gradients for case in CASES[op].values())])
def test_is_computed_again_instead_of_being_kept(native: ModuleType, op: str):
    """As torch.utils.checkpoint does, which gives what a backward pass saved only once."""
    function, case = getattr(native, op), [case for case in CASES[op].values() if case.gradients][-1]
    args = arguments(case, "small", 3, torch.float32)
    again = results(lambda *given: checkpoint(function, *given, use_reentrant=False), args, gradients=True)
    kept = results(function, args, gradients=True)
    assert all(torch.equal(a, b) for a, b in zip(again, kept, strict=True))


@pytest.mark.parametrize("op", COMPILED)
def test_forward_mode_is_refused(native: ModuleType, op: str):
    """Where torch would leave out tangents without a word; the reference has them."""
    function, case = getattr(native, op), list(CASES[op].values())[-1]
    with forward_ad.dual_level(), torch.no_grad():
        dual = changed(lambda x: x, arguments(case, "small", 3, torch.float32))
        with pytest.raises(RuntimeError, match="has no derivative in forward mode .* the reference has"):
            function(*dual)


@pytest.mark.parametrize("op", [op for op in COMPILED if any(case.gradients for case in CASES[op].values())])
def test_transforms_are_served_under_auto(native: ModuleType, op: str):
    """Gradients of each of two samples at once, which torch has of no compiled op: the reference's."""
    case = [case for case in CASES[op].values() if case.gradients][-1]
    args = case.make(Maker(0, torch.float32), 3)
    given = [x.detach() for x in leaves(args)]
    places = [i for i, x in enumerate(given) if x.is_floating_point()]

    def loss(table: ops.Ops, *chosen: Tensor) -> Tensor:
        tensors = dict(enumerate(given)) | dict(zip(places, chosen, strict=True))
        outputs = leaves(getattr(table, op)(*rebuilt(args, iter(tensors.values()))))
        return torch.stack([y.square().sum() for y in outputs if y.is_floating_point()]).sum()

    samples = [torch.stack([given[i], 0.5 * given[i]]) for i in places]
    ours, theirs = (
        torch.func.vmap(torch.func.grad(partial(loss, ops.load(backend)), tuple(range(len(places)))))(
            *samples
        )
        for backend in ("auto", "reference")
    )
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_transformed_elementwise_ops_are_the_same(native: ModuleType):
    x = torch.linspace(-3, 3, 6).view(2, 3)
    for op in (native.symlog, native.symexp):
        assert torch.equal(torch.func.vmap(op)(x), op(x))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.parametrize("op", [op for op in COMPILED if op != "laprop_"])
def test_recorded_calls_are_in_the_record(native: ModuleType, op: str):
    """And so depend on what comes in."""
    function, case = getattr(native, op), list(CASES[op].values())[-1]
    args, others = (mapped(torch.Tensor.detach, case.make(Maker(seed, torch.float32), 3)) for seed in (0, 1))

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(leaves(function(*rebuilt(args, iter(tensors)))))

    recorded, given = make_fx(call)(*leaves(args)), tuple(leaves(others))
    if op == "symlog":  # of the sizes of others it warns
        traced = torch.jit.trace(call, tuple(leaves(args)), check_trace=False)
        assert all(torch.equal(a, b) for a, b in zip(traced(*given), call(*given), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(recorded(*given), call(*given), strict=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("op", ["observe", "imagine", "policy_step", "lstm_mdn_step", "lstm_mdn_dream"])
def test_one_graph_serves_any_number_of_rows(native: ModuleType, op: str):
    """Where torch is told which axes have other sizes; it refuses a graph that has the size of one in it."""
    function, case = getattr(native, op), next(iter(CASES[op].values()))
    few, many = (mapped(torch.Tensor.detach, case.make(Maker(0, torch.float32), rows)) for rows in (3, 5))
    for x, y in zip(leaves(few), leaves(many), strict=True):
        for axis in range(x.dim()):
            if x.shape[axis] != y.shape[axis]:
                torch._dynamo.mark_dynamic(x, axis)

    def call(*tensors: Tensor) -> list[Tensor]:
        return list(leaves(function(*rebuilt(few, iter(tensors)))))

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for args in (few, many):
        for a, b in zip(compiled(*leaves(args)), call(*leaves(args)), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
@pytest.mark.parametrize("op", [op for op in COMPILED if op != "laprop_"])
def test_autocast_changes_no_type(native: ModuleType, op: str, backend: str):
    """It may round products; the gradient of a pool then comes to other pixels."""
    function, case = getattr(ops.load(backend), op), list(CASES[op].values())[-1]
    args = arguments(case, "small", 3, torch.float32)
    plain = results(function, changed(lambda x: x, args), case.gradients)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = results(function, args, case.gradients)
    assert [x.dtype for x in mixed] == [x.dtype for x in plain]
    torch.testing.assert_close(mixed[0], plain[0], atol=0.05, rtol=0.05)


@pytest.mark.parametrize("op", [op for op in COMPILED if op not in ("lambda_return", "gather_sequences")])
def test_half_precision_is_refused_by_name_and_served_under_auto(native: ModuleType, op: str):
    function, case = getattr(native, op), next(iter(CASES[op].values()))
    args = arguments(case, "small", 3, torch.bfloat16)
    with pytest.raises(ValueError, match="expected torch.float32 or torch.float64"), torch.no_grad():
        function(*changed(lambda x: x, args))
    served = results(getattr(ops.load(), op), changed(lambda x: x, args), case.gradients)
    expected = results(getattr(reference, op), args, case.gradients)
    assert all(torch.equal(our, their) for our, their in zip(served, expected, strict=True))
