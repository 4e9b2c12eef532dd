"""World Models' acting and dreaming against the authors' code, in the sizes of the paper.

What departs on purpose is told in test_golden_world_models.py.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastdream.agents.world_models_nets import draw
from fastdream.envs.car import CarRacing, Options

from . import world_models_golden_tools as theirs
from .golden_tools import EACH_BACKEND, assert_close
from .world_models_golden_tools import FILES, HELD, floats

pytestmark = HELD


def taken(action: np.ndarray) -> np.ndarray:
    """What the car is given of an action in [-1, 1]."""
    given: list[np.ndarray] = []

    def step(action: np.ndarray) -> tuple[None, float, bool, bool, dict[str, Any]]:
        given.append(action)
        return None, 0.0, True, False, {}

    race: Any = CarRacing.__new__(CarRacing)
    race._options, race._env, race._picture = Options(), SimpleNamespace(step=step), dict
    race.step({"action": action})
    return given[0]


@EACH_BACKEND
def test_acting_in_the_race(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a picture to z, the action and M's next state; V, M and C have the sizes of the paper."""
    gold = FILES["acting_car"]
    agent = theirs.with_memory("car", gold, backend)
    agent.vision.load_state_dict(theirs.with_vision("car", gold, backend).vision.state_dict())
    given, out, first = floats(gold, "control/in"), floats(gold, "control/out"), torch.tensor([False])
    carry = agent.init_policy(1)
    for t, image in enumerate(given["image"]):
        mean, logvar = agent.vision.encode(image[None])
        z = draw(mean, logvar, given["noise"][None, t])
        monkeypatch.setattr(agent, "normal", lambda *shape, t=t: given["noise"][t].expand(shape))
        _, action = agent.act(gold.tensor("controls"), carry, image[None], first, False)
        ours: dict[str, Any] = {
            "z": z[0],
            "mu": mean[0],
            "logvar": logvar[0],
            "action": taken(action[0].numpy()),
        }
        state = carry["hidden"], carry["cell"]
        _, (hidden, cell) = agent.memory.unroll(z[:, None], out["action"][None, None, t], first[None], state)
        carry = {"hidden": hidden, "cell": cell}
        assert_close(
            ours | {k: x[0] for k, x in carry.items()},
            {k: x[t] for k, x in gold.under("control/out").items()},
        )


@EACH_BACKEND
def test_dream_of_the_race(backend: str) -> None:
    gold = FILES["acting_car"]
    agent, given = theirs.with_memory("car", gold, backend), floats(gold, "dream/in")
    (hidden, cell), latent = agent.memory.initial(1), given["start"][None]
    temperature, out = float(given["temperature"]), gold.under("dream/out")
    for t, action in enumerate(given["action"]):
        noise = given["uniform"][None, t], given["normal"][None, t]
        restart = torch.tensor([False])
        step = agent.ops.lstm_mdn_step(
            agent.memory.params, hidden, cell, latent, action[None], restart, *noise, temperature
        )
        hidden, cell, latent, ends = step
        ours = {"z": latent[0], "hidden": hidden[0], "cell": cell[0]}
        assert_close(ours, {key: x[t] for key, x in out.items()})
        assert ends.item() == -torch.inf


@pytest.mark.parametrize("dream", ["dream", "cool"])
@EACH_BACKEND
def test_dream_of_doom(dream: str, backend: str) -> None:
    """C acts in the dream; it is over where the logit is above 0, after the step that is counted."""
    gold = FILES["acting_doom"]
    agent, given = theirs.with_memory("doom", gold, backend), floats(gold, f"{dream}/in")
    out, temperature = gold.under(f"{dream}/out"), float(given["temperature"])
    start = draw(given["mu"], given["logvar"], given["noise"])
    count = len(start)
    controls = gold.tensor("controls").expand(count, -1)
    hidden, cell = agent.memory.initial(count)
    first = torch.ones(count, dtype=torch.bool)
    begin = {"hidden": hidden, "cell": cell, "latent": start, "restart": first}
    noise = {key: given[key].transpose(0, 1) for key in ("uniform", "normal")}
    after = agent.ops.lstm_mdn_dream(
        agent.memory.params,
        agent.controller.params(controls),
        *begin.values(),
        given["uniform"],
        given["normal"],
        temperature,
    )
    last = {"hidden": out["hidden"][:, -1], "cell": out["cell"][:, -1]}
    ours = {"start": start, "z": after.latent, "end": after.ends, "hidden": after.hidden, "cell": after.cell}
    assert_close(ours, {key: out[key] for key in ("start", "z", "end")} | last)
    z = torch.from_numpy(out["z"][:, 0]).float()
    state = torch.from_numpy(out["hidden"][:, 0]), torch.from_numpy(out["cell"][:, 0])
    assert_close({"action": agent.controller(controls, z, state)}, {"action": out["action"][:, 1]})
    (found,) = agent.dream_steps({"controls": controls, **begin}, noise, temperature)
    done = out["done"]
    survived = np.where(done.any(1), done.argmax(1) + 1, done.shape[1])
    assert found["lasted"].tolist() == survived.tolist()
    assert found["alive"].tolist() == (~done.any(1)).tolist()


def test_controller_of_doom() -> None:
    gold = FILES["acting_doom"]
    agent, seen = theirs.make("doom", theirs.settings("doom")), gold.tensor("control/in/seen")
    z, cell, hidden = seen.split([64, 512, 512], -1)
    action = agent.controller(gold.tensor("controls"), z, (hidden, cell))
    assert_close({"action": action}, gold.under("control/out"))
