"""atari_<game> and atari100k_<game>: Atari 2600 games of the Arcade Learning Environment.

An own loop over the emulator, as in the official code (DreamerV3, "Atari" and "Atari100k"), with four differences:
a time limit is a truncation and not a terminal state; losing a life is reported as asked (there, the option had no
effect); sticky actions are as asked (there, they are set after the game was loaded, which has no effect, so that
Atari100k had them, too), and drawn here, with the emulator's rule (each frame repeats the last action with this
probability), because the emulator's own generator can only be seeded by loading the game again; and every episode
begins from the same state of the emulator, whose own reset leaves a quarter of the games what they remember. The first
picture of an episode is the screen after the no-ops, never black.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from fastdream.envs.base import Action, EnvError, Obs, need, transition, unknown
from fastdream.envs.images import resize
from fastdream.spaces import Space

# Red, green and blue in a grey picture; equal parts would make different colours of one brightness the same.
RED, GREEN = 0.299, 0.587
BLUE = 1 - (RED + GREEN)

ALIASES = {"james_bond": "jamesbond"}


@dataclass(frozen=True)
class Options:
    """Settings of atari_<game>: 200 million frames with sticky actions."""

    size: int = 96
    """Height and width of the picture."""
    gray: bool = True
    """One channel, not three."""
    repeat: int = 4
    """Frames that each action is held for."""
    pooling: int = 2
    """Last frames of which the brightest value of each pixel is shown, against flicker."""
    sticky: float = 0.25
    """Probability that a frame repeats the previous frame's action, whatever was asked."""
    noops: int = 30
    """Most frames of doing nothing at the start of an episode; drawn uniformly."""
    actions: Literal["all", "needed"] = "all"
    """Every button of the console, or those that the game uses."""
    length: int = 108_000
    """Frames after which an episode is cut short."""
    lives: Literal["unused", "discount", "reset"] = "unused"
    """What losing a life is in training: nothing, a terminal state within the episode, or the end of the episode."""
    clip_reward: bool = False
    """Only the reward's sign."""

    def __post_init__(self) -> None:
        if min(self.size, self.repeat, self.length) < 1 or not 1 <= self.pooling <= self.repeat:
            raise EnvError(f"need size, repeat and length >= 1 and 1 <= pooling <= repeat, got {self}")
        if not 0 <= self.sticky < 1 or self.noops < 0:
            raise EnvError(f"need 0 <= sticky < 1 and noops >= 0, got {self}")

    def scored(self) -> "Options":
        """For evaluation, where a score is one of a whole game, whatever an episode of training is."""
        return replace(self, lives="unused")


@dataclass(frozen=True)
class Options100k(Options):
    """Settings of atari100k_<game>: 400 thousand frames without sticky actions."""

    size: int = 64
    """Height and width of the picture."""
    gray: bool = False
    """One channel, not three."""
    sticky: float = 0.0
    """Probability that a frame repeats the previous frame's action, whatever was asked."""
    actions: Literal["all", "needed"] = "needed"
    """Every button of the console, or those that the game uses."""


def names() -> list[str]:
    """All games whose ROM comes with ale-py, without those for several players, at which the emulator ends Python."""
    ale_py = need("ale_py", "atari")
    roms = ale_py.roms
    known = roms.get_all_rom_ids()
    return sorted(name for name in known if ale_py.ALEInterface.isSupportedROM(roms.get_rom_path(name)))


def make(name: str, seed: int, options: Options) -> "Atari":
    """A game by its name in snake case."""
    return Atari(name, seed, options)


def grey(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to [H, W, 1]; added in this order, as a matrix product makes many shades one darker."""
    red, green, blue = np.moveaxis(image, -1, 0)
    return (red * RED + green * GREEN + blue * BLUE).astype(np.uint8)[..., None]


class Atari:
    """One game. Identical seeds and actions give identical episodes."""

    deterministic = True

    def __init__(self, name: str, seed: int, options: Options) -> None:
        game = ALIASES.get(name, name)
        if game not in names():
            suite = "atari100k" if isinstance(options, Options100k) else "atari"
            raise unknown(suite, name, names())
        ale_py = need("ale_py", "atari")
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._options = options
        self._rng = np.random.default_rng(seed)
        self._ale = ale_py.ALEInterface()
        self._ale.setInt("random_seed", 1)
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(ale_py.roms.get_rom_path(game))
        ale = self._ale
        ale.reset_game()
        self._start, self._opening = ale.cloneSystemState(), ale.getScreenRGB()
        self._actions: list[Any] = list(
            ale.getLegalActionSet() if options.actions == "all" else ale.getMinimalActionSet()
        )
        self._noop = self._held = ale_py.Action.NOOP
        self._frames = np.zeros((options.pooling, *ale.getScreenDims(), 3), np.uint8)
        self._newest = 0
        self._duration = self._lives = 0
        channels = 1 if options.gray else 3
        self.obs_space = {"image": Space("image", (options.size, options.size, channels))}
        self.act_space = {"action": Space("discrete", (), len(self._actions))}

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode with a random number of no-ops."""
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._restart()
        for _ in range(self._rng.integers(self._options.noops + 1)):
            self._ale.act(self._noop)
            self._look()
            if self._ale.game_over():
                self._restart()
        self._held = self._noop
        self._duration = 0
        self._lives = self._ale.lives()
        self._frames[:] = self._frames[self._newest]
        return transition({"image": self._picture()}, first=True)

    def step(self, action: Action) -> Obs:
        """Holds an action for `repeat` frames, or until the episode is over."""
        asked = self._actions[int(action["action"])]
        sticks = self._rng.random(self._options.repeat) < self._options.sticky
        reward, terminal, last = 0.0, False, False
        for frame, stick in enumerate(sticks):
            self._held = self._held if stick else asked
            reward += self._ale.act(self._held)
            if frame >= self._options.repeat - self._options.pooling:
                self._look()
            terminal, last = self._over()
            if terminal or last:
                break
        reward = float(np.sign(reward)) if self._options.clip_reward else reward
        return transition({"image": self._picture()}, reward, last=last, terminal=terminal)

    def render(self) -> np.ndarray:
        """The whole screen in colour, as it was looked at last."""
        return self._frames[self._newest].copy()

    def close(self) -> None:
        """Nothing to free."""

    def _over(self) -> tuple[bool, bool]:
        """Whether this frame is terminal, and whether it is the episode's last."""
        self._duration += 1
        over = self._ale.game_over()
        lives = self._ale.lives()
        lost = 0 < lives < self._lives and self._options.lives != "unused"
        self._lives = lives
        ends = over or (lost and self._options.lives == "reset")
        return over or lost, ends or self._duration >= self._options.length

    def _restart(self) -> None:
        # Neither does alone: a reset leaves what some games remember, and a state does not bring back all of a game
        # that is over. The screen is not part of the state.
        self._ale.reset_game()
        self._ale.restoreSystemState(self._start)
        self._frames[:] = self._opening

    def _look(self) -> None:
        self._newest = (self._newest + 1) % len(self._frames)
        self._ale.getScreenRGB(self._frames[self._newest])

    def _picture(self) -> np.ndarray:
        image = resize(self._frames.max(0), self._options.size)
        return grey(image) if self._options.gray else image
