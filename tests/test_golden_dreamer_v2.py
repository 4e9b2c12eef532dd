"""Three whole updates of the official DreamerV2 with the samples that it drew: states, losses, gradients, parameters.

golden/dreamer_v2/README.md says where the numbers come from, and what of the official code is not followed.
"""

from pathlib import Path

import pytest

from .golden_dreamer_v2 import FILES, Official
from .golden_dreamer_v2_checks import (
    Update,
    check_dream,
    check_gradients,
    check_metrics,
    check_parameters,
    check_states,
)
from .golden_keras import load
from .golden_tools import EACH_BACKEND, LOOSE, assert_close


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_updates(path: Path, backend: str) -> None:
    official = Official(path, backend)
    golden, update = official.golden, Update(official)
    for index in range(golden.config["steps"]):
        step = f"s{index}"
        metrics = update(step)
        check_states(official, update, step)
        for number in range(len(official.dreams)):
            check_dream(official, update, number, step)
        check_metrics(official, metrics, step)
        check_gradients(official, update.grads, step)
    check_parameters(official)


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_acting(path: Path, backend: str) -> None:
    """The most likely action, then a drawn one; with Plan2Explore of the actor that explores."""
    official = Official(path, backend)
    golden, agent = official.golden, official.agent
    load(dict(agent.nets.named_parameters()), official.values("param_after"))
    data = official.batch()
    carry = agent.init_policy(len(data["is_first"]))
    actor = agent.nets.explore.pol if agent.explore else agent.nets.task.pol
    for index in range(2):
        theirs = golden.under(f"policy{index}")
        agent.model.latent.noise = lambda *_, theirs=theirs, **__: official.latent_noise(theirs)
        actor.noise = lambda *_, theirs=theirs, **__: official.action_noise(theirs)
        carry, _ = agent.act(carry, {k: v[:, index] for k, v in data.items()}, greedy=index == 0)
        assert_close(carry, {k: theirs[k] for k in ("deter", "stoch", "action")}, LOOSE)
