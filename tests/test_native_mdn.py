"""The compiled memory step of World Models: draws, models without an end, every instruction set, refusals.

Values, strides, no rows and two threads are in the parity matrix.
"""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from fastdream.ops import MDNRNN, Control, Layer, reference

from .native_tools import recorded
from .ops_tools import Maker, mapped

Z, D, A, K = 7, 21, 2, 5


def memory(m: Maker, end: bool = True, mixtures: int = K) -> MDNRNN:
    out = Layer(m.normal(end + 3 * Z * mixtures, D, scale=D**-0.5), m.normal(end + 3 * Z * mixtures))
    weights = m.normal(4 * D, Z + A + 1, scale=0.5), m.normal(4 * D, D, scale=0.3), m.normal(4 * D)
    return MDNRNN(*weights, out, mixtures, restart=True)


def inputs(m: Maker, n: int) -> tuple[Tensor, ...]:
    """hidden, cell, latent, action, restart, uniform, normal."""
    state = (m.normal(n, width).detach() for width in (D, D, Z, A))
    return *state, m.uniform(n) < 0.3, m.uniform(n, Z), m.normal(n, Z).detach()


def assert_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == their.dtype
        torch.testing.assert_close(our, their)
        assert not our.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 15, 47, 48, 130])
def test_draws_as_reference(native: ModuleType, isa: str, rows: int, dtype: torch.dtype, poison: list[str]):
    """Of these random numbers none is so near to a boundary between components that rounding could move it."""
    m = Maker(rows, dtype)
    model, args = memory(m), inputs(m, rows)
    for tau in (0.1, 1.15):
        assert_close(native.lstm_mdn_step(model, *args, tau), reference.lstm_mdn_step(model, *args, tau))
    assert poison


@pytest.mark.parametrize("mixtures", [1, 3, 16])
def test_other_mixtures_and_no_end(native: ModuleType, mixtures: int):
    m = Maker(3)
    model, args = memory(m, False, mixtures), inputs(m, 5)
    step = native.lstm_mdn_step(model, *args)
    assert_close(step, reference.lstm_mdn_step(model, *args))
    assert (step.ends == -torch.inf).all()


def test_a_memory_without_biases(native: ModuleType):
    m = Maker(4)
    model = memory(m)
    model, args = model._replace(bias=None, out=model.out._replace(bias=None)), inputs(m, 5)
    assert_close(native.lstm_mdn_step(model, *args), reference.lstm_mdn_step(model, *args))


def test_numbers_at_the_ends_of_the_unit_interval(native: ModuleType):
    """The first component of any probability, and the last."""
    m = Maker(4, torch.float32)
    model, args = memory(m), inputs(m, 9)
    for uniform in (torch.zeros(9, Z), torch.full((9, Z), 1 - 2**-24)):
        draws = *args[:5], uniform, args[6]
        assert_close(native.lstm_mdn_step(model, *draws), reference.lstm_mdn_step(model, *draws))


def test_a_restart_forgets(native: ModuleType):
    """What was remembered has no part in a row that restarts, not even where it is no number."""
    m = Maker(5)
    model, (hidden, cell, latent, action, _, *noise) = memory(m), inputs(m, 4)
    restart = torch.tensor([False, True, False, True])
    lost = [torch.where(restart[:, None], torch.nan, x) for x in (hidden, cell)]
    step = native.lstm_mdn_step(model, *lost, latent, action, restart, *noise)
    zeroed = [torch.where(restart[:, None], 0.0, x) for x in (hidden, cell)]
    assert_close(step, reference.lstm_mdn_step(model, *zeroed, latent, action, restart, *noise))


def test_opcheck_and_one_graph(native: ModuleType, monkeypatch: pytest.MonkeyPatch):
    m = Maker(6)
    model, args = mapped(Tensor.detach, memory(m)), inputs(m, 3)
    function = torch.compile(native.lstm_mdn_step, fullgraph=True, backend="aot_eager")
    assert_close(function(model, *args), native.lstm_mdn_step(model, *args))
    calls = recorded(monkeypatch, "lstm_mdn_step")
    native.lstm_mdn_step(model, *args)
    monkeypatch.undo()
    torch.library.opcheck(torch.ops.fastdream.lstm_mdn_step.default, *calls)


def test_a_dream_is_one_graph_for_any_number_of_rows(native: ModuleType):
    """And for any sizes, which such a graph takes for unknown."""
    m = Maker(7)
    model, dream = mapped(Tensor.detach, memory(m)), native.lstm_mdn_dream
    compiled = torch.compile(dream, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (3, 5):
        hidden, cell, latent, _, restart, *_ = inputs(m, n)
        control = Control(m.normal(n, Z + D, A).detach(), None)
        args = model, control, hidden, cell, latent, restart, m.uniform(n, 2, Z), m.normal(n, 2, Z).detach()
        assert_close(compiled(*args), dream(*args))


@pytest.mark.parametrize(
    "position, shape, message",
    [
        (0, (3, D + 1), r"model.weight_ih maps 10 to 84, expected 10 to 88"),
        (1, (3, D + 1), r"cell has shape \[3, 22\], expected \[3, 21\]"),
        (2, (3, Z + 1), r"model.out gives 106 numbers, expected 120, or 121 with an end"),
        (3, (3, A + 1), r"model.weight_ih maps 10 to 84, expected 11 to 84"),
        (4, (4,), r"restart has shape \[4\], expected \[3\]"),
        (5, (3, Z + 1), r"uniform has shape \[3, 8\], expected \[3, 7\]"),
    ],
)
def test_names_wrong_shapes(native: ModuleType, position: int, shape: tuple[int, ...], message: str):
    m = Maker()
    model, args = memory(m), list(inputs(m, 3))
    args[position] = torch.zeros(shape, dtype=args[position].dtype)
    with pytest.raises(ValueError, match=message):
        native.lstm_mdn_step(model, *args)


def test_names_wrong_types(native: ModuleType):
    m = Maker()
    model, args = memory(m), list(inputs(m, 3))
    with pytest.raises(ValueError, match=r"restart is torch.float64 on cpu, expected torch.bool on cpu"):
        native.lstm_mdn_step(model, *args[:4], args[4].double(), *args[5:])
    with pytest.raises(ValueError, match="a parameter is torch.float64"):
        native.lstm_mdn_step(model, args[0].float(), *args[1:])
