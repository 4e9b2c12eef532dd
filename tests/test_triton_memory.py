"""World Models' memory in Triton beyond the parity matrix: draws, models without an end, tiles, refusals, launches."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream.ops import MDNRNN, Control, Layer, auto, reference
from fastdream.ops import triton as backend
from fastdream.ops.triton import library, lstm, mixture

from .ops_tools import Maker, mapped

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Z, D, A, K = 7, 21, 2, 5


def memory(m: Maker, end: bool = True, mixtures: int = K, restart: bool = True, actions: int = A) -> MDNRNN:
    out = Layer(m.normal(end + 3 * Z * mixtures, D, scale=D**-0.5), m.normal(end + 3 * Z * mixtures))
    weights = m.normal(4 * D, Z + actions + restart, scale=0.5), m.normal(4 * D, D, scale=0.3)
    return plain(MDNRNN(*weights, m.normal(4 * D), out, mixtures, restart))


def inputs(m: Maker, n: int) -> tuple[Tensor, ...]:
    """hidden, cell, latent, action, restart, uniform, normal."""
    state = (m.normal(n, width) for width in (D, D, Z, A))
    return plain((*state, m.uniform(n) < 0.3, m.uniform(n, Z), m.normal(n, Z)))


def plain(tree: Any) -> Any:
    return mapped(lambda x: x.detach().to(DEVICE), tree)


def assert_close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)
        assert not our.requires_grad


@pytest.mark.parametrize("rows", [1, 16, 17, 70])
def test_draws_as_reference(rows: int, poison: list[str]):
    """Of these random numbers none is so near to a boundary between components that rounding could move it."""
    m = Maker(rows, torch.float32)
    model, args = memory(m), inputs(m, rows)
    for tau in (0.1, 1.15):
        assert_close(backend.lstm_mdn_step(model, *args, tau), reference.lstm_mdn_step(model, *args, tau))
    assert poison


@pytest.mark.parametrize("mixtures", [1, 3, 16, 32])
def test_other_mixtures_and_no_end(mixtures: int, poison: list[str]):
    m = Maker(3, torch.float32)
    model, args = memory(m, False, mixtures), inputs(m, 5)
    model = model._replace(out=model.out._replace(bias=None))
    step = backend.lstm_mdn_step(model, *args)
    assert_close(step, reference.lstm_mdn_step(model, *args))
    assert (step.ends == -torch.inf).all() and poison


def test_numbers_at_the_ends_of_the_unit_interval():
    """The first component of any probability, and the last."""
    m = Maker(4, torch.float32)
    model, args = memory(m), inputs(m, 9)
    for uniform in (torch.zeros(9, Z), torch.full((9, Z), 1 - 2**-24)):
        draws = *args[:5], uniform.to(DEVICE), args[6]
        assert_close(backend.lstm_mdn_step(model, *draws), reference.lstm_mdn_step(model, *draws))


@pytest.mark.parametrize("flag", [False, True])
def test_a_restart_forgets(flag: bool):
    """What was remembered has no part in a row that restarts, not even where it is no number."""
    m = Maker(5, torch.float32)
    model, (hidden, cell, latent, action, _, *noise) = memory(m, restart=flag), inputs(m, 4)
    restart = torch.tensor([False, True, False, True], device=DEVICE)
    lost = [torch.where(restart[:, None], torch.nan, x) for x in (hidden, cell)]
    step = backend.lstm_mdn_step(model, *lost, latent, action, restart, *noise)
    zeroed = [torch.where(restart[:, None], 0.0, x) for x in (hidden, cell)]
    assert_close(step, reference.lstm_mdn_step(model, *zeroed, latent, action, restart, *noise))


@pytest.mark.parametrize("rows", [1, 16, 17, 700, 1024])
@pytest.mark.parametrize("units", [21, 256, 512])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_fit_tensor_cores(units: int, rows: int, itemsize: int):
    """At least 16 rows, columns and numbers that are summed."""
    tiles = lstm.lstm_tiles(rows, units, itemsize)
    assert tiles.m >= 16 and 4 * tiles.n >= 16 and tiles.k >= 16
    for mixtures, columns in {1: 4, 5: 16, 16: 64, 32: 128}.items():
        tiles = mixture.mixture_tiles(rows, 64, mixtures, itemsize)
        assert tiles.m >= 16 and 16 <= tiles.n * columns <= mixture.COLUMNS


def controllers(m: Maker, n: int, cell: bool, bias: bool) -> Control:
    return plain(Control(m.normal(n, Z + D * (1 + cell), A, scale=0.2), m.normal(n, A) if bias else None))


@pytest.mark.parametrize(("cell", "bias"), [(True, False), (False, True)])
@pytest.mark.parametrize(("rows", "length"), [(1, 1), (19, 2), (40, 5)])
def test_drawn_dreams_agree(rows: int, length: int, cell: bool, bias: bool, poison: list[str]):
    """From noise that lies step by step in memory, as whoever draws for all rows at once has it."""
    m = Maker(rows, torch.float32)
    model, (*state, _, restart, _, _) = memory(m), inputs(m, rows)
    noise = m.uniform(length, rows, Z).transpose(0, 1), m.normal(length, rows, Z).detach().transpose(0, 1)
    args = model, controllers(m, rows, cell, bias), *state, restart, *plain(noise), 1.15
    assert_close(backend.lstm_mdn_dream(*args), reference.lstm_mdn_dream(*args))
    assert poison


def test_a_step_is_two_launches(monkeypatch: pytest.MonkeyPatch):
    found: list[str] = []
    monkeypatch.setattr(library, "run", lambda kernel, *_: found.append(kernel.fn.__name__))
    m = Maker(6, torch.float32)
    model, (*state, action, restart, uniform, normal) = memory(m), inputs(m, 3)
    step = ["lstm_kernel", "mixture_kernel"]
    backend.lstm_mdn_step(model, *state, action, restart, uniform, normal)
    assert found == step
    noise = uniform[:, None].expand(-1, 5, -1), normal[:, None].expand(-1, 5, -1)
    backend.lstm_mdn_dream(model, controllers(m, 3, True, True), *state, restart, *noise)
    assert found == 6 * step


def test_what_only_the_reference_computes():
    m = Maker(7, torch.float32)
    serves = auto.TRITON_RULES["lstm_mdn_step"].serves
    assert serves(memory(m))
    for model, message in (
        (memory(m, mixtures=33), "up to 32 mixtures, not 33"),
        (memory(m, actions=33), "up to 32 numbers of an action, not 33"),
    ):
        assert not serves(model)
        with pytest.raises(ValueError, match=message):
            backend.lstm_mdn_step(model, *inputs(m, 3))


@pytest.mark.parametrize(
    "position, shape, message",
    [
        (0, (3, D + 1), r"model.weight_ih maps 10 to 84, expected 10 to 88"),
        (1, (3, D + 1), r"cell has shape \[3, 22\], expected \[3, 21\]"),
        (3, (3, A + 1), r"model.weight_ih maps 10 to 84, expected 11 to 84"),
        (4, (4,), r"restart has shape \[4\], expected \[3\]"),
        (5, (3, Z + 1), r"uniform has shape \[3, 8\], expected \[3, 7\]"),
    ],
)
def test_names_wrong_shapes(position: int, shape: tuple[int, ...], message: str):
    m = Maker(8, torch.float32)
    model, args = memory(m), list(inputs(m, 3))
    args[position] = torch.zeros(shape, dtype=args[position].dtype, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        backend.lstm_mdn_step(model, *args)


@pytest.mark.parametrize(
    "position, shape, message",
    [
        (0, (3, Z + D + 1, A), r"control.weight has shape \[3, 29, 2\], expected \[3, 49, 2\]"),
        (1, (3, A + 1), r"control.bias has shape \[3, 3\], expected \[3, 2\]"),
        (2, (3, 4, Z + 1), r"uniform has shape \[3, 4, 8\], expected \[3, 4, 7\]"),
        (2, (3, 0, Z), r"normal has shape \[3, 4, 7\], expected \[3, 0, 7\]"),
    ],
)
def test_names_wrong_shapes_of_dreams(position: int, shape: tuple[int, ...], message: str):
    m = Maker(8, torch.float32)
    model, (*state, _, restart, _, _) = memory(m), inputs(m, 3)
    args = [*controllers(m, 3, True, True), torch.rand(3, 4, Z), torch.rand(3, 4, Z)]
    args[position] = torch.zeros(shape)
    weight, bias, *noise = (x.to(DEVICE) for x in args)
    with pytest.raises(ValueError, match=message):
        backend.lstm_mdn_dream(model, Control(weight, bias), *state, restart, *noise)


def test_names_a_restart_that_is_no_flag():
    m = Maker(9, torch.float32)
    model, args = memory(m), list(inputs(m, 3))
    with pytest.raises(ValueError, match="restart is torch.float32 on .*, expected torch.bool"):
        backend.lstm_mdn_step(model, *args[:4], args[4].float(), *args[5:])
