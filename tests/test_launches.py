"""How many kernels an update of DreamerV3 starts on a GPU, written down: what a captured graph has of nodes."""

import pytest

from fastdream import ops
from fastdream.agents.dreamer_v3 import Config, DreamerV3, size
from fastdream.ops import triton as backend
from fastdream.spaces import Spaces

from .agent_tools import CONTINUOUS, IMAGE, VECTOR, batch
from .launch_tools import Launches

B = 2


def launches(T: int, H: int, obs: Spaces, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Of the second update on T steps, which dreams H: with the kernels that a GPU gets, none of which runs."""
    monkeypatch.setattr(backend, "available", lambda device: None)
    config = size(Config(dtype="bfloat16", imag_length=H), "1m")
    agent = DreamerV3(obs, CONTINUOUS, config, ops.load(device="cuda"))
    carry, data = agent.init_train(B), batch(agent, B, T)
    with Launches(compute=False):
        carry, _, _ = agent.update(carry, data)
    with Launches(compute=False) as found:
        agent.update(carry, data)
    return found


@pytest.mark.parametrize(("obs", "fixed"), [(VECTOR, 334), (IMAGE, 380)], ids=["vectors", "images"])
def test_update_of_dreamer_v3(obs: Spaces, fixed: int, monkeypatch: pytest.MonkeyPatch):
    """Four a step of the sequence and five back, four a step of the dream, and so many others at the most."""
    for T, H in ((3, 2), (4, 2), (3, 3)):
        found = launches(T, H, obs, monkeypatch)
        assert found.count <= 9 * T + 4 * H + fixed, found.names.most_common()
        assert found.names["posterior_kernel"] == T, "the kernels of a GPU are not those that are counted"
