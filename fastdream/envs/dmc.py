"""dmc_<domain>_<task>: the DeepMind Control Suite, from its sensors or from pictures, without a screen."""

import atexit
import importlib.util
import os
import sys
import weakref
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np

from fastdream.envs.base import (
    Action,
    Env,
    EnvError,
    Obs,
    Repeat,
    action_vector,
    need,
    rescale,
    transition,
    unknown,
)
from fastdream.spaces import Space

PAIR = "pip install dm_control==1.0.50 mujoco==3.17.0"

# The camera that shows what matters; 0 elsewhere.
CAMERAS = {"quadruped": 2}

OPEN: weakref.WeakSet[Any] = weakref.WeakSet()  # renderers


@dataclass(frozen=True)
class Options:
    """Settings of dmc_<domain>_<task>."""

    obs: Literal["proprio", "vision", "both"] = "proprio"
    """Sensors (nothing is rendered), a picture, or both."""
    size: int = 64
    """Height and width of the picture."""
    repeat: int = 1
    """Times that each action is taken."""
    camera: int = -1
    """Number of the camera; -1 takes the one that suits the domain."""
    fast_render: bool = False
    """Draw without shadows, reflections and anti-aliasing: many times faster on a CPU, but other pictures."""

    def __post_init__(self) -> None:
        if self.size < 1 or self.camera < -1:
            raise EnvError(f"need size >= 1 and camera >= -1, got {self}")


def make(name: str, seed: int, options: Options) -> Env:
    """A task by its name; the domain "cup" is short for ball_in_cup."""
    env = DMC(name, seed, options)
    return Repeat(env, options.repeat) if options.repeat != 1 else env


def _suite() -> ModuleType:
    """dm_control's suite, drawing through EGL where there may be no screen and nothing else was asked for."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
    # Mesa draws with an LLVM that it shows to the whole process; Triton, which torch loads at need, brings its own and
    # crashes where it comes second.
    if "torch" in sys.modules and importlib.util.find_spec("triton"):
        importlib.import_module("triton")
    try:
        return need("dm_control.suite", "dmc")
    except (ImportError, RuntimeError, AttributeError) as error:
        raise EnvError(
            f"dm_control does not start with MUJOCO_GL={os.environ.get('MUJOCO_GL')}: {error}. Install EGL "
            "(apt install libegl1 libgl1-mesa-dri), or set MUJOCO_GL=osmesa (apt install libosmesa6), or "
            f"MUJOCO_GL=disable for sensors only; versions that work together: {PAIR}"
        ) from error


class DMC:
    """One task. An episode ends with a discount of 0 (terminal) or at its time limit (only last)."""

    def __init__(self, name: str, seed: int, options: Options) -> None:
        full = name.replace("cup_", "ball_in_cup_", 1) if name.startswith("cup_") else name
        suite = _suite()
        tasks = {f"{domain}_{task}": (domain, task) for domain, task in suite.ALL_TASKS}
        if full not in tasks:
            raise unknown("dmc", full, tasks)
        domain, task = tasks[full]
        try:
            self._env = suite.load(domain, task, task_kwargs={"random": seed})
        except AttributeError as error:
            raise EnvError(f"dm_control and mujoco do not fit each other ({error}): {PAIR}") from error
        # Holds on one machine and one version of MuJoCo, which is where a run is resumed. The models of lqr are
        # drawn when they are made, not at the reset.
        self.deterministic = domain != "lqr"
        self._options = options
        self._camera = CAMERAS.get(domain, 0) if options.camera < 0 else options.camera
        if self._camera >= (cameras := self._env.physics.model.ncam):
            raise EnvError(f"dmc_{full} has the cameras 0 to {cameras - 1}, got camera={self._camera}")
        self._renderer: Any = None
        self.obs_space: dict[str, Space] = {}
        if options.obs != "vision":
            specs = self._env.observation_spec().items()
            self.obs_space = {k: Space("vector", s.shape) for k, s in specs}
        self._sensors = tuple(self.obs_space)
        if options.obs != "proprio":
            self.obs_space["image"] = Space("image", (options.size, options.size, 3))
        spec = self._env.action_spec()
        self._rescale = rescale(spec.minimum, spec.maximum)
        self.act_space = {"action": action_vector(spec.shape, spec.minimum, spec.maximum)}

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode."""
        if seed is not None:
            self._env.task.random.seed(seed)
        step = self._env.reset()
        if self._env.physics.model.nhfield:  # another terrain, which a renderer reads when it is made
            self._free_renderer()
        return self._obs(step)

    def step(self, action: Action) -> Obs:
        """Takes one action."""
        return self._obs(self._env.step(self._rescale(action["action"])))

    def render(self) -> np.ndarray:
        """What the camera sees; drawn the fast way, too, where the agent does not see it."""
        if self._renderer is None:
            fast = "image" not in self.obs_space or self._options.fast_render
            self._renderer = _renderer(self._env.physics.model.ptr, self._options.size, fast)
        self._renderer.update_scene(self._env.physics.data.ptr, self._camera)
        return self._renderer.render()

    def close(self) -> None:
        """Frees the simulation and its renderer."""
        self._free_renderer()
        self._env.close()

    def _free_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def _obs(self, step: Any) -> Obs:
        obs = {key: step.observation[key] for key in self._sensors}
        if "image" in self.obs_space:
            obs["image"] = self.render()
        terminal = step.last() and step.discount == 0
        return transition(obs, step.reward or 0.0, step.first(), step.last(), terminal)


def _renderer(model: Any, size: int, fast: bool) -> Any:
    """MuJoCo's own: dm_control's draws the same, but where one process has both, into the picture of the other one."""
    import mujoco

    if fast:  # the sizes of shadow map and multi-sampling are read when the renderer is made
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
    renderer = mujoco.Renderer(model, size, size)
    if fast:
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    if not OPEN:
        atexit.register(_close_renderers)
    OPEN.add(renderer)
    return renderer


def _close_renderers() -> None:
    """Frees those of environments that nobody closed, before MuJoCo closes the screen that they draw on."""
    for renderer in list(OPEN):
        renderer.close()
