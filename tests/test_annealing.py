"""Numbers that change over updates."""

import math

import pytest
import torch

from fastdream.annealing import Annealed


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2e-3", {0: 2e-3, 10**6: 2e-3}),
        (" -1 ", {0: -1, 5: -1}),
        ("linear(1, 0.5, 100)", {0: 1, 50: 0.75, 100: 0.5, 1000: 0.5}),
        ("linear(0.1,1e-3,1e3)", {0: 0.1, 500: 0.0505, 5000: 1e-3}),
        ("warmup(10,4)", {0: 0, 5: 2, 10: 4, 11: 4}),
        ("exp(1,0.2,100)", {0: 1, 100: 0.6, 200: 0.4, 10_000: 0.2}),
        ("horizon(10,100,90)", {0: 0.9, 90: 0.99, 45: 1 - 1 / 55}),
    ],
)
def test_values(text: str, values: dict[int, float]) -> None:
    annealed = Annealed(text)
    for count, value in values.items():
        got = annealed(torch.tensor(count))
        assert got.shape == () and got.dtype == torch.float32
        assert math.isclose(float(got), value, rel_tol=1e-6, abs_tol=1e-7), (count, got)


@pytest.mark.parametrize(
    "text", ["", "much", "linear(1,2)", "linear(1,2,3,4)", "cosine(1,2,3)", "linear(1,b,3)"]
)
def test_other_text_is_refused_with_what_would_do(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no number that changes.*linear\(start,end,duration\)"):
        Annealed(text)


@pytest.mark.parametrize("text", ["linear(1,2,0)", "warmup(0,1)", "exp(1,2,-5)"])
def test_a_change_takes_time(text: str) -> None:
    with pytest.raises(ValueError, match="over no updates"):
        Annealed(text)
