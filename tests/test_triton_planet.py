"""DreamerV1 with the core of PlaNet, whose reset gate comes before its product: all of it with the ops of a GPU."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdream import ops
from fastdream.agents.dreamer_v1 import Config, DreamerV1, size
from fastdream.ops import triton as backend

from .dreamer_tools import CONTINUOUS, VECTOR, batch, observation
from .launch_tools import Launches

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's kernels are not interpreted"),
    # What is masked out may be infinite, and its differences not a number.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]
ROWS, STEPS, DREAMT = 2, 3, 2


def lived(table: ops.Ops, deter: int, hidden: int) -> tuple[dict[str, Tensor], list[Tensor], dict[str, Any]]:
    """Metrics of an update, gradients of all parameters, and the state after two actions."""
    config = size(Config(imag_length=DREAMT, free_nats=0.0), "debug")
    dyn = replace(config.dyn, deter=deter, hidden=hidden, reset_after=False)
    agent = DreamerV1(VECTOR, CONTINUOUS, replace(config, dyn=dyn), table)
    _, _, metrics = agent.update(agent.init_train(ROWS), batch(agent, ROWS, STEPS))
    state, seen = agent.init_policy(ROWS), observation(agent, ROWS)
    for _ in range(2):
        state, _, _ = agent.policy(state, seen)
    # The moments of a first update are gradients, of whose signs alone Adam makes its steps.
    return metrics, [x for opt in agent.opts.values() for x in opt.mean], state


@pytest.mark.parametrize(("deter", "hidden"), [(40, 24), (13, 21)])
def test_an_update_and_actions_agree(deter: int, hidden: int, monkeypatch: pytest.MonkeyPatch):
    """With the reference's, and no step of the model is left to it."""
    monkeypatch.setattr(backend, "available", lambda device: None)
    with Launches() as found:
        metrics, grads, state = lived(ops.load(device="cuda"), deter, hidden)
    true_metrics, true_grads, true_state = lived(ops.load("reference"), deter, hidden)
    # Steps of the sequence, of the dream and of its gradient, and of acting.
    there, back = STEPS + 2 * DREAMT + 2, STEPS + DREAMT
    assert found.names["planet_gates_kernel"] == found.names["planet_deter_kernel"] == there
    assert found.names["gru_gradient_kernel"] == found.names["reset_gradient_kernel"] == back
    assert metrics.keys() == true_metrics.keys()
    for name in true_metrics.keys() - {"logpi"}:  # which magnifies roundings of actions next to their bounds
        torch.testing.assert_close(metrics[name], true_metrics[name], rtol=1e-5, atol=1e-5)
    assert sum(bool(x.any()) for x in true_grads) == len(true_grads)
    for got, want in zip(grads, true_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))
    for name, want in true_state.items():
        torch.testing.assert_close(state[name], want, rtol=1e-4, atol=1e-5)
