"""Gradients of norms over rows that the backward pass walks in pieces: of more columns than the parity matrix has."""

from itertools import product
from unittest import mock

import pytest
import torch
from torch import Tensor

from fastdream.ops import triton as backend
from fastdream.ops.triton import dense_kernels, layers, library, wide_rows

from .interpreter_tools import BUILDER, backwards
from .launch_tools import Launches
from .ops_tools import Maker
from .parity_cases import Case
from .parity_tools import changed, check, results
from .test_triton import DEVICE, HALF
from .test_triton_races import check as check_memory
from .triton_cases import in_precision
from .triton_sizes import Dry

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
LEAST = layers.WHOLE + 1  # columns: the last piece has one
RAGGED = 9 * wide_rows.PIECE["BN"] + 77
KINDS = ("rms", "silu"), ("layer", "none"), ("layer", "elu"), ("layer", "gelu")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that add up sums of programs, a thousand of which take the interpreter ten seconds."""
    monkeypatch.setattr(dense_kernels, "ADDED", (8, 1024))


def arguments(
    norm: str,
    act: str,
    rows: tuple[int, ...],
    width: int,
    vectors: str = "scale shift",
    far: float = 0.0,
) -> tuple:
    """Of norm_act: x around `far`, and the vectors that there are."""
    m = Maker(1, torch.float32)
    x = (m.normal(*rows, width).detach() + far).requires_grad_()
    scale, shift = (m.normal(width) if name in vectors else None for name in ("scale", "shift"))
    return changed(lambda x: x.to(DEVICE), (x, scale, shift, norm, act, 1e-3))


def check_wide(args: tuple, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    args = in_precision("norm_act", args, dtype)
    with Launches() as found:
        ours = check(backend.norm_act, "norm_act", Case(lambda *_: args), args, dtype)
    assert found.names["wide_sums_kernel"] == found.names["wide_bwd_kernel"] == 1
    assert not found.names["norm_act_bwd_kernel"]
    return ours


@pytest.mark.parametrize("width", [LEAST, RAGGED])
@pytest.mark.parametrize(("norm", "act"), KINDS)
def test_wide_rows_agree_with_reference(norm: str, act: str, width: int, poison: list[str]):
    check_wide(arguments(norm, act, (2, 3), width))
    assert poison


@pytest.mark.parametrize(("kind", "vectors"), list(product(KINDS[:2], ["", "scale", "shift"])))
def test_vectors_may_be_missing(kind: tuple[str, str], vectors: str, poison: list[str]):
    check_wide(arguments(*kind, (3,), LEAST, vectors))


@pytest.mark.parametrize(("norm", "act"), KINDS[:2])
def test_vectors_may_be_of_no_interest(norm: str, act: str, poison: list[str]):
    x, *vectors = arguments(norm, act, (3,), LEAST)
    fixed = (x, *(p.detach() if isinstance(p, Tensor) else p for p in vectors))
    d_x, alone = (check_wide(args)[1] for args in ((x, *vectors), fixed))
    assert torch.equal(d_x, alone)


@pytest.mark.parametrize(("norm", "act"), KINDS[:2])
def test_programs_walk_many_rows(norm: str, act: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wide_rows, "PROGRAMS", 3)
    check_wide(arguments(norm, act, (7,), RAGGED))


@pytest.mark.parametrize(("norm", "act"), KINDS)
def test_wide_rows_in_half_precision(norm: str, act: str, poison: list[str]):
    check_wide(arguments(norm, act, (3,), RAGGED), HALF)


def test_rows_far_from_zero():
    """Their mean goes before their squares are added up."""
    check_wide(arguments("layer", "elu", (2,), LEAST, far=300.0))


def test_no_rows():
    args = arguments("layer", "none", (0,), LEAST)
    d_x, d_scale, d_shift = results(backend.norm_act, args, True)[1:]
    assert d_x.shape == (0, LEAST) and not d_scale.any() and not d_shift.any()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels are not interpreted")
def test_memory_of_wide_rows_is_their_own():
    args = arguments("layer", "silu", (3,), LEAST)
    check_memory(lambda: results(backend.norm_act, changed(lambda x: x, args), True), backwards)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels are not interpreted")
def test_more_numbers_than_32_bits_count_are_addressed_right(monkeypatch: pytest.MonkeyPatch):
    """In the last rows: on tensors without memory, of whose programs the first and the last run."""
    dry = Dry()
    monkeypatch.setattr(wide_rows, "PROGRAMS", 2**15)
    monkeypatch.setattr(library, "run", dry.run)
    x, grad, d_x = (torch.empty(3 * 2**17, LEAST, device="meta") for _ in range(3))
    scale, shift = (torch.empty(LEAST, device="meta") for _ in range(2))
    vectors = [torch.empty(2**15, LEAST, device="meta") for _ in range(2)]
    with mock.patch.multiple(BUILDER, create_masked_load=dry.load, create_masked_store=dry.store):
        wide_rows.wide_gradients((x, scale, shift, grad), d_x, vectors, "layer", "none", 1e-3)
    assert not dry.outside


@pytest.mark.parametrize(("norm", "width"), [("layer", layers.WHOLE), ("none", LEAST)])
def test_other_rows_are_not_cut(norm: str, width: int):
    with Launches() as found:
        results(backend.norm_act, arguments(norm, "silu", (2,), width), True)
    assert found.names["norm_act_bwd_kernel"] and not found.names["wide_bwd_kernel"]
