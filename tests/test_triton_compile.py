"""Every Triton kernel, compiled ahead of time for sm_80 and sm_90 as the agents' sizes launch it: what it takes of the
GPU stays within a written budget, and no product rounds float32. By default at one size; `-m slow` compiles all.
"""

import json
import os
import subprocess
import sys
from collections.abc import Set
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdream

from .parity_cases import CORES
from .triton_cases import (
    BUDGETS,
    CAPABILITIES,
    CASES,
    DRAWN,
    FULL_PRECISION,
    MOST_SHARED,
    PRECISIONS,
    PRESETS,
    USUAL,
    Budget,
    names,
)

# This folder as a package, whatever else of that name is installed.
START = """
import runpy, sys, types
sys.modules["tests"] = package = types.ModuleType("tests")
package.__path__ = [sys.argv.pop(1)]
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
LONG = "25m"  # a size at which products are of several pieces
SPILLED = 64  # bytes a thread, at the most, by any kernel of an agent


def run(module: str, *args: str, given: str = "", interpreted: bool = False) -> Any:
    """The JSON that a module of this folder writes, in a process where Triton interprets or does not."""
    path = [str(Path(fastdream.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_INTERPRET": "1"} if interpreted else {}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    command = [sys.executable, "-P", "-c", START, str(Path(__file__).parent), f"tests.{module}", *args]
    done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def compiled(cases: list[tuple]) -> list[list[dict[str, Any]]]:
    """What the kernels of each case take, in the order of the cases."""
    given = [(*case[:3], str(case[3]).removeprefix("torch."), case[4]) for case in cases]
    return run("triton_compile", given=json.dumps(given))


def check_budgets(cases: list[tuple]) -> None:
    over = []
    for (op, *case), kernels in zip(cases, compiled(cases), strict=True):
        budget = BUDGETS.get(op, Budget())
        budget = budget._replace(shared=min(budget.shared, MOST_SHARED[case[-1]]))
        assert kernels, f"{op} {case} launches nothing"
        for kernel in kernels:
            taken = Budget(kernel["registers"], kernel["shared"], kernel["spilled"])
            if kernel["rounding"] or not all(map(int.__le__, taken, budget)):
                over.append((op, case, kernel))
    assert not over, "\n".join(map(str, over))


def test_long_sums_in_float32_are_made_piece_by_piece():
    """Of products whose inputs are split: a sum of thousands of terms, one after the other, loses digits."""
    (kernels,) = compiled([("observe", "block", LONG, torch.float32, 90)])
    split = [kernel for kernel in kernels if int(kernel["constants"].get("KS", 1)) > 1]
    assert len({kernel["kernel"] for kernel in split}) > 5
    assert not any(kernel["adding"] for kernel in split)


def test_usual_size_within_budget():
    """And of observe the largest, whose tiles are others. Of the first Dreamers' models one: all is slow."""
    usual = names((USUAL,), (torch.bfloat16,), DRAWN)
    usual += [case for case in names((USUAL,), (torch.float32,)) if case[0] in FULL_PRECISION]
    usual += [("observe", core, PRESETS[-1], torch.bfloat16) for core in CORES]
    seldom = "v2-normals", "v1-classes", "v2-learned"
    check_budgets([(*case, 90) for case in usual if case[1] not in seldom])


@pytest.mark.slow
@pytest.mark.parametrize("op", CASES)
def test_every_size_within_budget(op: str):
    """On every GPU, in one process: to import and to look for launches takes many ops longer than to compile them."""
    cases = [case for case in names(PRESETS, PRECISIONS, DRAWN) if case[0] == op]
    check_budgets([(*case, capability) for case in cases for capability in CAPABILITIES])


STEPPED = frozenset(("posterior_kernel", "state_gradient_kernel", "laprop_kernel"))
# Of layers of over 512 units the end of a step is in parts.
ENDS = dict.fromkeys(("100m", "200m", "400m"), frozenset(("draw_kernel", "act_kernel")))
ONE_END = frozenset(("tail_kernel",))


def check_agents(
    preset: str, spaces: tuple[str, ...], capabilities: tuple[int, ...], some: Set[str] | None = None
) -> None:
    """All that an update and an action launch compiles, and fits; some of the kernels are these."""
    some = STEPPED | ENDS.get(preset, ONE_END) if some is None else some
    kinds = list(product(spaces, capabilities))
    found = run("triton_agents", preset, ",".join(spaces), ",".join(map(str, capabilities)))
    over = []
    for (kind, capability), kernels in zip(kinds, found, strict=True):
        assert some <= {kernel["kernel"] for kernel in kernels}
        for kernel in kernels:
            fits = kernel["shared"] <= MOST_SHARED[capability] and kernel["spilled"] <= SPILLED
            if kernel["rounding"] or not fits:
                over.append((preset, kind, capability, kernel))
    assert not over, "\n".join(map(str, over))


def test_agent_of_usual_size_compiles():
    check_agents(USUAL, ("images",), (90,))


def test_dreamer_v1_compiles():
    some = "gru_kernel", "posterior_kernel", "normal_gradient_kernel", "gru_gradient_kernel", "tail_kernel"
    check_agents("dreamer_v1", ("images",), (90,), frozenset(some))


@pytest.mark.slow
def test_dreamer_v1_with_the_core_of_planet_compiles():
    some = "planet_gates_kernel", "planet_deter_kernel", "gru_gradient_kernel", "reset_gradient_kernel"
    check_agents("planet", ("images",), CAPABILITIES, frozenset(some))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_agent_of_every_size_compiles(preset: str):
    """In one process: to make the parameters of hundreds of millions takes its time, too."""
    check_agents(preset, ("vectors", "images"), CAPABILITIES)
