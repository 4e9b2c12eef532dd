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
