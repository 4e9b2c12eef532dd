"""Pictures: made smaller without losing what lies between the pixels, and what of a drawing is a picture."""

import builtins

import numpy as np
import pytest

from fastdream.envs.base import EnvError, Wrapper
from fastdream.envs.dummy import Dummy, Options
from fastdream.envs.images import Resize, drawn, resize

pytest.importorskip("PIL", reason="what resizes")

ACTION = {
    "act_continuous": np.zeros(2),
    "act_discrete": np.array(0),
    "act_multidiscrete": np.zeros(2, int),
}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_smaller_picture_has_the_mean_of_what_was_there(channels):
    stripes = np.zeros((64, 64, channels), np.uint8)
    stripes[::2] = 40 * np.arange(1, channels + 1)
    small = resize(stripes, 16)
    assert small.shape == (16, 16, channels) and small.dtype == np.uint8
    inside = small[2:-2, 2:-2].astype(int)
    assert (abs(inside - 20 * np.arange(1, channels + 1)) <= 1 + inside // 10).all()


def test_sides_are_stretched_to_one_length_and_up_stays_up():
    image = np.zeros((30, 60, 3), np.uint8)
    image[:15, :, 0], image[:, :30, 1] = 200, 100
    small = resize(image, 20)
    assert small[2, 2].tolist() == [200, 100, 0] and small[2, -3].tolist() == [200, 0, 0]
    assert small[-3, 2].tolist() == [0, 100, 0] and small[-3, -3].tolist() == [0, 0, 0]


def test_only_pictures_are_resized_in_every_step():
    env = Resize(Dummy("mixed", 0, Options(size=32)), 16)
    assert env.obs_space["image"].shape == (16, 16, 3) and env.obs_space["vector"].shape == (4,)
    for obs in (env.reset(0), env.step(ACTION)):
        assert obs["image"].shape == (16, 16, 3) and obs["vector"].shape == (4,) and "reward" in obs


def test_a_picture_of_one_channel_keeps_it():
    class Grey(Wrapper):
        def __init__(self):
            super().__init__(Dummy("image", 0, Options(size=32)))
            image = self.obs_space["image"]
            self.obs_space = {"image": type(image)("image", (32, 32, 1))}

        def reset(self, seed=None):
            obs = self.env.reset(seed)
            return {**obs, "image": obs["image"][..., :1]}

    env = Resize(Grey(), 16)
    assert env.obs_space["image"].shape == env.reset(0)["image"].shape == (16, 16, 1)


def test_without_pillow_is_said_what_to_install(monkeypatch):
    load = builtins.__import__

    def absent(name, *args, **kwargs):
        if name == "PIL":
            raise ModuleNotFoundError("No module named 'PIL'")
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(EnvError, match="resizing pictures needs Pillow: pip install pillow"):
        resize(np.zeros((32, 32, 3), np.uint8), 16)


@pytest.mark.parametrize(
    ("frame", "shape"),
    [((8, 9), (8, 9, 1)), ((8, 9, 1), (8, 9, 1)), ((8, 9, 3), (8, 9, 3)), ((8, 9, 4), (8, 9, 3))],
)
def test_what_is_drawn_has_one_colour_or_three(frame, shape):
    class Drawing(Wrapper):
        def render(self):
            return np.arange(np.prod(frame), dtype=np.uint8).reshape(frame)

    env = Drawing(Dummy("image", 0, Options()))
    image = drawn(env)
    assert isinstance(image, np.ndarray) and image.shape == shape
    assert np.array_equal(image, env.render().reshape(8, 9, -1)[..., : shape[2]])


@pytest.mark.parametrize("frame", [np.zeros((8, 9, 2), np.uint8), np.zeros(8, np.uint8), np.zeros((8, 9))])
def test_what_is_no_picture_is_told_by_its_shape(frame):
    class Drawing(Wrapper):
        def render(self):
            return frame

    said = f"render gave {frame.dtype} {list(frame.shape)}; a picture is uint8 [height, width, 3]"
    assert drawn(Drawing(Dummy("image", 0, Options()))) == said


def test_why_nothing_is_drawn_is_said_in_the_environments_own_words():
    class Ailing(Wrapper):
        def render(self):
            raise EnvError("no screen; set one")

    assert drawn(Ailing(Dummy("image", 0, Options()))) == "no screen; set one"
