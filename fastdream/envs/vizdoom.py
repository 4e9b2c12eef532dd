"""vizdoom_take_cover: dodge the fireballs of a row of monsters for as long as you can, seen through one's own eyes.

The task of World Models (Ha & Schmidhuber 2018): each tic survived is worth 1, 35 of them are a second, and after 2100
the episode is cut short. What is shown is the view above the status bar (the upper five sixths); it is drawn at
160 × 120, ten times faster than at the authors' 640 × 480. Episodes begin at the 14th tic, as in their environment,
gym-doom's. The skill is the 4 of ViZDoom's file: a policy that draws at every tic survives 217 ± 109 (200 episodes),
and 210 ± 108 in the paper; at 5, which gym-doom asks of an older ViZDoom, it survives 59 ± 28 (40 episodes).
"""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastdream.envs.base import Action, EnvError, Obs, need, transition, unknown
from fastdream.envs.images import resize
from fastdream.spaces import Space

TASKS = ("take_cover",)

START = 14  # tic of the first observation

ROWS = 100  # of 120, above the status bar

# Left, stay, right: the state of the buttons MOVE_LEFT and MOVE_RIGHT.
BUTTONS = ([1.0, 0.0], [0.0, 0.0], [0.0, 1.0])


@dataclass(frozen=True)
class Options:
    """Settings of vizdoom_take_cover."""

    size: int = 64
    """Height and width of the picture."""
    repeat: int = 1
    """Tics that each action is held for; the reward is the number of tics that were survived."""
    length: int = 2100
    """Tics after which an episode is cut short."""

    def __post_init__(self) -> None:
        if min(self.size, self.repeat, self.length) < 1:
            raise EnvError(f"need size, repeat and length >= 1, got {self}")


def make(name: str, seed: int, options: Options) -> "TakeCover":
    """A scenario by its name."""
    if name not in TASKS:
        raise unknown("vizdoom", name, TASKS)
    return TakeCover(seed, options)


class TakeCover:
    """The scenario that comes with ViZDoom, without a window. Identical seeds and actions give identical episodes."""

    deterministic = True

    def __init__(self, seed: int, options: Options) -> None:
        vizdoom = need("vizdoom", "vizdoom")
        self._options = options
        self._rng = np.random.default_rng(seed)
        self._game: Any = vizdoom.DoomGame()
        self._game.load_config(os.path.join(vizdoom.scenarios_path, "take_cover.cfg"))
        self._game.set_window_visible(False)
        self._game.set_sound_enabled(False)
        self._game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        self._game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        # The bar is cut off; without it the view would reach down to where it is, and its middle lie lower.
        self._game.set_render_hud(True)
        self._game.set_episode_start_time(START)
        # Otherwise an ini file appears in whatever folder this happens to run in.
        self._game.set_doom_config_path(os.devnull)
        # The game makes this folder where it runs, and dies if another one does so at the same moment.
        os.makedirs("_vizdoom", exist_ok=True)
        self._game.init()
        self._screen = np.zeros((120, 160, 3), np.uint8)
        self._tics = 0
        self.obs_space = {"image": Space("image", (options.size, options.size, 3))}
        self.act_space = {"action": Space("discrete", (), len(BUTTONS))}

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._game.set_seed(int(self._rng.integers(2**31)))
        self._game.new_episode()
        self._tics = 0
        return transition(self._look(), first=True)

    def step(self, action: Action) -> Obs:
        """Holds a direction for `repeat` tics, or until the episode is over."""
        tics = min(self._options.repeat, self._options.length - self._tics)
        reward = self._game.make_action(BUTTONS[int(action["action"])], tics)
        self._tics += tics
        terminal = self._game.is_episode_finished()
        last = terminal or self._tics >= self._options.length
        return transition(self._look(), reward, last=last, terminal=terminal)

    def render(self) -> np.ndarray:
        """The whole screen."""
        return self._screen

    def close(self) -> None:
        """Ends the game's process."""
        self._game.close()

    def _look(self) -> Obs:
        """What is on the screen; at the end of an episode there is nothing new to see."""
        if (state := self._game.get_state()) is not None:
            self._screen = state.screen_buffer
        return {"image": resize(self._screen[:ROWS], self._options.size)}
