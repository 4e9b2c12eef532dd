"""Imagination of normals in Triton, as DreamerV1 has them, beyond the parity matrix: cuts of the tail, launches."""

from typing import Any

import pytest
import torch

from fastdream.ops import reference
from fastdream.ops.triton import dream

from . import parity_cases, triton_earlier
from .ops_tools import Maker
from .test_triton_dream import SIZES, Calls, caught, cut_tail, plain
from .test_triton_dream import launches as launches
from .triton_cases import Blank


@pytest.mark.parametrize(
    ("core", "cut"),
    [
        ("gru", "in parts"),
        ("layernorm", "pieces"),
        ("gru", "at once"),
        ("gru_block_cell", "in parts"),
        ("gru_block_cell", "usual"),
    ],
)
def test_dreams_of_normals_agree(core: Any, cut: str, poison: list[str], monkeypatch: pytest.MonkeyPatch):
    """However the tail is cut."""
    cut_tail(cut, monkeypatch)
    args = plain(parity_cases.imagine(core, "softplus", "tanh_normal", Maker(6, torch.float32, SIZES), 19))
    for got, want in zip(dream.imagine(*args), reference.imagine(*args), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert poison


@pytest.mark.parametrize(("name", "each"), [("v1", 3), ("planet", 4)])
def test_launches_of_each_step(name: str, each: int, launches: list[str], monkeypatch: pytest.MonkeyPatch):
    """Three of DreamerV1, four with PlaNet's core."""
    args = triton_earlier.dream(name, Blank(0, torch.float32), 0)
    rssm, actor, deter, stoch, length, *noise = args
    state = deter.bfloat16(), stoch.bfloat16()
    args = caught(monkeypatch, "imagine", lambda: dream.imagine(rssm, actor, *state, length, *noise))
    with Calls() as calls:
        dream._kernel(*args)
    assert len(launches) == each * length + 2, launches
    assert len(launches) + len(calls.names) <= each * length + 10, calls.names
