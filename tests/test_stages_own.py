"""Own environments in training by stages: pictures of any number of channels."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest

from fastdream import eval, train


class Pictures(gymnasium.Env):
    """Noise, for seven steps; an action of 1 is worth 1."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, channels: int) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (64, 64, channels), np.uint8)

    def look(self) -> Any:
        return self.np_random.integers(0, 256, self.observation_space.shape, dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.look(), float(action), self.steps == 7, False, {}


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_pictures_of_any_channels_are_learned_and_drawn(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("cma", reason="what the last stage is done by")
    module: Any = ModuleType("homemade")
    module.pictures = lambda: Pictures(channels)
    monkeypatch.setitem(sys.modules, "homemade", module)
    args = ["--agent", "world_models", "--preset", "debug", "--task", "homemade:pictures"]
    args += ["--env.parallel", "no", "--log.outputs", "jsonl", "--logdir", str(tmp_path)]
    train.main(args)
    assert "evaluation: " in capsys.readouterr().out
    media = {path.name.rpartition("_")[0] for path in (tmp_path / "media").iterdir()}
    assert {"reconstructions", "real_dream"} <= media
    eval.main(["--logdir", str(tmp_path), "--episodes", "1", "--video"])
    assert "1 episode" in capsys.readouterr().out
