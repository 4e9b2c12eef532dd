"""Any gymnasium environment as one of ours."""

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

from fastdream.envs.base import Action, EnvError, Obs, flag, number, transition
from fastdream.envs.convert import action, observation

# What the methods of an environment return; gym before 0.26 returned less.
RESET = ("observation", "info")
STEP = ("observation", "reward", "terminated", "truncated", "info")


class FromGymnasium:
    """Adapts a gymnasium environment.

    A single observation is called by its kind ("image", "vector" or "discrete"), a single action "action"; see
    `convert` for the rest. `terminated` becomes is_terminal, `truncated` only is_last. Numbers in `info` whose
    names start with "log/" are logged. EnvError for what is no gymnasium environment but in name: without spaces, or
    with another reset or step.
    """

    def __init__(self, env: gymnasium.Env, task: str, deterministic: bool = False) -> None:
        self.deterministic = deterministic
        self._env = env
        self._task = task
        for name in ("observation_space", "action_space"):
            if not isinstance(getattr(env, name, None), gymnasium.Space):
                found = f"a {type(getattr(env, name)).__name__}" if hasattr(env, name) else "missing"
                raise EnvError(f"{task}: {name} is {found}; it must be one of gymnasium.spaces")
        if not _takes_seed(env.reset):
            raise EnvError(
                f"{task}: reset takes no seed; gymnasium's is reset(self, *, seed=None, options=None)"
            )
        try:
            self.obs_space, self._encode = observation(env.observation_space)
            self.act_space, self._decode = action(env.action_space)
        except EnvError as error:
            raise EnvError(f"{task}: {error}") from None

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode."""
        obs, info = self._parts("reset", self._env.reset(seed=seed), RESET)
        return transition(self._encoded(obs) | _logged(info), first=True)

    def step(self, action: Action) -> Obs:
        """Takes one action; EnvError for a reward that is no number, and for flags that are neither True nor False."""
        result = self._env.step(self._decode(action))
        obs, reward, terminated, truncated, info = self._parts("step", result, STEP)
        try:
            reward, terminal = number("the reward", reward), flag("terminated", terminated)
            last = flag("truncated", truncated) or terminal
        except EnvError as error:
            raise EnvError(f"{self._task}: {error}") from None
        return transition(self._encoded(obs) | _logged(info), reward, last=last, terminal=terminal)

    def render(self) -> np.ndarray | None:
        """A picture of the state; raises EnvError with the remedy when what draws it is not installed."""
        inner: Any = self._env.unwrapped
        if "rgb_array" not in (inner.metadata or {}).get("render_modes", ()):
            return None
        if inner.render_mode is None:
            # Set only now, so that an environment that is never looked at pays nothing for it. SDL must hear
            # before pygame is imported that there is no screen.
            inner.render_mode = "rgb_array"
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
            os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        try:
            frame = self._env.render()
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise EnvError(f"{self._task} cannot be rendered: {error}") from error
        # A list where the mode is one of all pictures since the last call.
        return frame[-1] if isinstance(frame, list) and frame else frame  # type: ignore[return-value]

    def close(self) -> None:
        """Frees what the environment holds."""
        self._env.close()

    def _parts(self, method: str, result: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
        """What a method returned, if it is as gymnasium has it."""
        if isinstance(result, tuple) and len(result) == len(names) and isinstance(result[-1], Mapping):
            return result
        got = f"{len(result)} values" if isinstance(result, tuple) else f"a {type(result).__name__}"
        last = type(result[-1]).__name__ if isinstance(result, tuple) and result else ""
        raise EnvError(
            f"{self._task}: {method} returned {got}{f', the last of them a {last}' * bool(last)}; gymnasium's returns "
            f"{len(names)}: {', '.join(names)}, the last a dict"
        )

    def _encoded(self, obs: Any) -> Obs:
        try:
            return self._encode(obs)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EnvError(
                f"{self._task}: {obs!r} does not fit {self._env.observation_space}: {error}"
            ) from error


def _takes_seed(reset: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(reset).parameters
    except ValueError:  # compiled code may not tell
        return True
    return "seed" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _logged(info: Mapping[str, Any]) -> Obs:
    return {key: value for key, value in info.items() if isinstance(key, str) and key.startswith("log/")}
