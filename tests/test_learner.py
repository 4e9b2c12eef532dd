"""What the learner keeps of its updates: means, and which loss went wrong first; read in one copy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream.learner import Learner, Metrics, NonFinite, WriteBack, step_spec
from fastdream.ops.native import resident_op
from fastdream.spaces import Space

from .replay_tools import fill, make
from .run_tools import CPU, CountingAgent, parts_of, tiny

NAN = float("nan")


def update(loss: float, other: float = 0.0) -> dict[str, Tensor]:
    return {"loss/a": torch.tensor(loss), "opt/updates": torch.tensor(3), "x": torch.tensor(other).bfloat16()}


def test_observations_do_not_take_the_place_of_latents():
    """Whose shape and values they would have in replay."""
    obs = {"vector": Space("vector", (2,)), "deter": Space("vector", (2,))}
    agent: Any = CountingAgent(obs, {})
    with pytest.raises(ValueError, match=r"observation keys \['deter'\] are names of what the agent keeps"):
        step_spec(agent)
    del obs["deter"]
    assert step_spec(agent)["deter"] == ((2,), np.dtype(np.float16))


def test_means_since_the_last_call():
    metrics = Metrics()
    assert metrics.fetch() == {}
    for i in range(4):
        metrics.add(update(float(i), 2.0), i + 1)
    assert metrics.fetch() == {"loss/a": 1.5, "opt/updates": 3.0, "x": 2.0}
    assert metrics.fetch() == {}
    metrics.add(update(7.0), 5)
    assert metrics.fetch()["loss/a"] == 7.0


def test_what_a_failed_launch_left_is_not_saved(tmp_path: Path):
    """The next update would say so: after the last checkpoint has what it learned from."""
    parts = parts_of(tiny(), tmp_path)
    learner = Learner(parts.agent, parts.replay, 2, CPU)
    failed = resident_op._failed(CPU).fill_(1)
    try:
        with pytest.raises(RuntimeError, match="an earlier launch gave up waiting"):
            learner.state_dict()
    finally:
        failed.zero_()
        parts.driver.close()
    assert learner.state_dict()["updates"] == 0
    learner.close()


def test_it_goes_on_from_its_carry_and_reports_from_the_beginning(tmp_path: Path):
    parts = parts_of(tiny(), tmp_path)
    fill(replay := make(length=5), 20)
    agent: Any = CountingAgent(parts.driver.obs_space, parts.driver.act_space)
    agent.report = lambda carry, batch: (carry, {})
    learner, other = (Learner(agent, replay, 2, CPU) for _ in range(2))
    learner.write_back.put = lambda *_: None  # type: ignore[method-assign]
    for _ in range(2):
        learner.request()
        learner.update()
    other.load_state_dict(learner.state_dict())
    assert other.updates == 2 and other.carry["count"].tolist() == [2, 2]
    report = learner.report()
    assert report is not None and report[0]["count"].tolist() == [0, 0]
    for one in (learner, other):
        one.close()


def test_latents_are_written_when_the_next_ones_come_or_when_asked_for():
    fill(replay := make(length=5), 20)
    back, steps = WriteBack(replay), np.array([[0, 2], [1, 3]])  # steps 0 and 1 of both workers

    def seen() -> list[float]:
        return replay.stream(0)["deter"][:4, 0].tolist()

    expected = [[0, 1, 2, 3], [70, 70, 2, 3], [70, 70, 71, 71]]
    for i in range(2):
        values = {"deter": torch.full((2, 2, 3), 70.0 + i).half(), "stoch": torch.zeros(2, 2, 2).byte()}
        back.put(steps + 4 * i, values)
        assert seen() == expected[i] and back.state_dict()["ids"].tolist() == (steps + 4 * i).tolist()
    back.flush()
    assert seen() == expected[2] and back.state_dict() == {}


def test_many_small_numbers_are_summed_without_loss():
    metrics = Metrics()
    for i in range(3000):
        metrics.add(update(1.0 + 1e-7), i)
    assert metrics.fetch()["loss/a"] == pytest.approx(float(torch.tensor(1.0 + 1e-7)), rel=1e-12)


def test_the_first_loss_that_is_not_finite_is_named_with_its_update_for_good():
    metrics = Metrics()
    for i, loss in enumerate((1.0, NAN, float("inf"), 2.0), start=1):
        metrics.add(update(loss, NAN), i)
    for look in (metrics.check, metrics.fetch, metrics.fetch):
        with pytest.raises(NonFinite, match="loss/a became NaN or infinite in update 2"):
            look()


def test_of_losses_that_go_wrong_together_that_of_a_part_is_named():
    metrics = Metrics()
    metrics.add({"opt/loss": torch.tensor(NAN), "loss/a": torch.tensor(NAN)}, 1)
    with pytest.raises(NonFinite, match="loss/a became"):
        metrics.check()


def test_losses_are_looked_at_every_so_many_updates(tmp_path: Path):
    parts = parts_of(tiny(), tmp_path)
    agent = CountingAgent(parts.driver.obs_space, parts.driver.act_space, bad_update=2)
    fill(replay := make(length=5), 20)
    learner = Learner(agent, replay, 2, CPU)  # type: ignore[arg-type]
    learner.check_every = 3
    learner.write_back.put = lambda *_: None  # type: ignore[method-assign]
    learner.request()
    learner.update(more=True)
    learner.update(more=True)
    with pytest.raises(NonFinite, match="in update 2"):
        learner.update()
    learner.close()


def test_a_metric_that_is_no_loss_may_be_anything():
    metrics = Metrics()
    metrics.add(update(1.0, NAN), 1)
    metrics.check()
    assert metrics.fetch()["loss/a"] == 1.0


@pytest.mark.parametrize("look", ["check", "fetch"])
def test_looking_reads_the_device_once(look: str, monkeypatch: pytest.MonkeyPatch):
    metrics, reads = Metrics(), []
    metrics.add(update(1.0), 1)
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__"):
        real: Any = getattr(Tensor, name)
        monkeypatch.setattr(
            Tensor, name, lambda x, *args, real=real, name=name: reads.append(name) or real(x, *args)
        )
    metrics.add(update(2.0), 2)
    assert reads == []
    getattr(metrics, look)()
    assert reads == ["tolist"]
