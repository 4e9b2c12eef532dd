"""torch.compile over a whole agent: one graph without breaks for all losses, and the same numbers.

Compiling is optional, and an update that was compiled can still be recorded.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fastdream.agents.dreamer_v3 import Config, DreamerV3, size
from fastdream.graphs import capture

from .agent_tools import MIXED, VECTOR, batch
from .graph_tools import FAST, make

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def compiled(function: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")


def check_close(ours: Any, theirs: Any) -> None:
    """Nested dictionaries and lists, up to rounding: a compiler may add in another order."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            check_close(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        for pair in zip(ours, theirs, strict=True):
            check_close(*pair)
    elif isinstance(theirs, torch.Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_all_losses_are_one_graph(backend: str) -> None:
    """And so is their backward pass; noise is drawn outside, by generators, which no compiler sees into."""
    eager, agent = make("vector", backend), make("vector", backend)
    agent.loss = compiled(agent.loss)  # type: ignore[method-assign]
    carries = [each.init_train(2) for each in (eager, agent)]
    for seed in range(2):
        data = batch(eager, 2, 3, seed=seed)
        results = [each.update(c, data) for each, c in zip((eager, agent), carries, strict=True)]
        carries = [result[0] for result in results]
        check_close(results[1], results[0])


@pytest.mark.gpu
def test_a_compiled_update_can_be_recorded() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    config = replace(size(Config(imag_length=2), "debug"), dtype="float32", opt=FAST)
    eager, agent = (DreamerV3(VECTOR, MIXED, config, device=device, seed=3) for _ in range(2))
    agent.loss = compiled(agent.loss)  # type: ignore[method-assign]
    capture(agent)
    data = {key: x.to(device) for key, x in batch(eager, 2, 3).items()}
    for _ in range(2):
        ours, theirs = (each.update(each.init_train(2), data) for each in (agent, eager))
        check_close(ours, theirs)
