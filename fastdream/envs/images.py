"""Pictures of another size."""

import numpy as np

from fastdream.envs.base import Action, Env, EnvError, Obs, Wrapper
from fastdream.spaces import Space


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H, W, C] to [size, size, C], bilinear with area support as Pillow does it."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise EnvError("resizing pictures needs Pillow: pip install pillow") from error
    if image.shape[:2] == (size, size):
        return image
    if image.shape[2] == 3:
        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    planes = [Image.fromarray(image[..., i]) for i in range(image.shape[2])]
    return np.stack([np.asarray(p.resize((size, size), Image.Resampling.BILINEAR)) for p in planes], -1)


def drawn(env: Env) -> np.ndarray | str:
    """A picture of the environment's state, uint8 [H, W, 1 or 3]; or why there is none, in words."""
    try:
        frame = env.render()
    except EnvError as error:
        return str(error)
    except Exception as error:  # whatever a user's own code raises: the scores are worth more than the video
        return f"render raised {type(error).__name__}: {error}"
    if frame is None:
        return "the environment draws no pictures (gymnasium's: 'rgb_array' among metadata['render_modes'])"
    frame = np.asarray(frame)
    if (
        frame.dtype != np.uint8
        or frame.ndim not in (2, 3)
        or (frame.ndim == 3 and frame.shape[2] not in (1, 3, 4))
    ):
        got = f"{frame.dtype} {list(frame.shape)}"
        return f"render gave {got}; a picture is uint8 [height, width, 3]"
    return frame[..., None] if frame.ndim == 2 else frame[..., :3]  # without what says how opaque it is


class Resize(Wrapper):
    """Gives every picture of the observation this height and width."""

    def __init__(self, env: Env, size: int) -> None:
        super().__init__(env)
        self._size = size
        self._keys = [key for key, space in env.obs_space.items() if space.kind == "image"]
        pictures = {key: Space("image", (size, size, env.obs_space[key].shape[2])) for key in self._keys}
        self.obs_space = {**env.obs_space, **pictures}

    def reset(self, seed: int | None = None) -> Obs:
        """Begins an episode."""
        return self._resized(self.env.reset(seed))

    def step(self, action: Action) -> Obs:
        """Takes one action."""
        return self._resized(self.env.step(action))

    def _resized(self, obs: Obs) -> Obs:
        return {**obs, **{key: resize(obs[key], self._size) for key in self._keys}}
