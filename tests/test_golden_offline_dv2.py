"""Updates of V-D4RL's Offline DV2 with the samples and priors that it drew: one of the model, two of actor and critic.

golden/offline_dv2/README.md says where the numbers come from, and what of the official code is not followed.
"""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastdream.agents.dreamer_v2_offline import OfflineDV2
from fastdream.agents.dreamer_v2_offline_config import Config, OfflineConfig
from fastdream.ops import Ops
from fastdream.spaces import Spaces

from .golden_dreamer_v2 import Official, settings
from .golden_dreamer_v2_checks import (
    Update,
    check_dream,
    check_gradients,
    check_metrics,
    check_parameters,
    check_states,
)
from .golden_tools import BACKENDS, EACH_BACKEND, assert_close

FILES = sorted((Path(__file__).parent / "golden" / "offline_dv2").glob("*.npz"))
PENALTIES = {"meandis": "disagreement", "log_prob_ens": "log_prob"}


class OfficialOffline(Official):
    def build(self, obs_space: Spaces, act_space: Spaces, ops: Ops) -> OfflineDV2:
        flat, online = self.config, settings(self.config)
        offline = OfflineConfig(
            models=flat["rssm.ensemble"],
            penalty=PENALTIES[flat["offline_penalty_type"]],  # type: ignore[arg-type]
            lam=flat["offline_lmbd"],
            tune=flat["offline_lmbd_cons"] if flat["offline_tune_lmbd"] else 0.0,
            model_updates=1,
        )
        with_gradients = ops._replace(imagine_step=BACKENDS["reference"].imagine_step)  # none other has them
        same: dict[str, Any] = {field.name: getattr(online, field.name) for field in fields(online)}
        return OfflineDV2(obs_space, act_space, Config(**same, offline=offline), with_gradients)

    def draw_priors(self, step: str) -> None:
        """Let the next update draw the priors that the official one drew."""
        drawn = self.golden[f"{step}/priors"]

        def integers(count: int, size: int) -> np.ndarray:
            assert (count, size) == (self.config["rssm.ensemble"], len(drawn))
            return drawn

        self.agent.rng = SimpleNamespace(integers=integers)


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_updates(path: Path, backend: str) -> None:
    official = OfficialOffline(path, backend)
    golden, update = official.golden, Update(official)
    for step in ("s0", "s1", "s2"):
        official.draw_priors(step)
        metrics = update(step)
        if step == "s0":
            check_states(official, update, step)
        else:
            check_dream(official, update, 0, step)
            assert_close({"lam": official.agent.lam}, {"lam": golden[f"{step}/metrics/lambda"]})
        check_metrics(official, metrics, step)
        check_gradients(official, update.grads, step)
    check_parameters(official)
