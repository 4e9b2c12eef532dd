"""Clips and pictures: what is written can be read back, whatever is installed."""

import builtins
import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest

from fastdream import curves, video
from fastdream.curves import plot_curves

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed (pip install pillow)")
HAS_AV = importlib.util.find_spec("av") is not None


def clip(frames: int = 12, height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    """A bright square that wanders over a slope, smooth enough for any codec."""
    slope = (
        np.linspace(20, 120, width)[None, None, :, None] * np.linspace(0.5, 1, height)[None, :, None, None]
    )
    out = np.broadcast_to(slope, (frames, height, width, channels)).copy()
    for t in range(frames):
        out[t, 8:20, 3 * t : 3 * t + 12] = 220
    return out.astype(np.uint8)


def read(path: Path) -> np.ndarray:
    if path.suffix == ".mp4":
        import av

        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    return pillow_frames(path.read_bytes())


def pillow_frames(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    frames = []
    for index in range(image.n_frames):
        image.seek(index)
        frames.append(np.asarray(image.convert("RGB")))
    return np.stack(frames)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """As if the packages were not installed."""
    find, load = importlib.util.find_spec, builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name.split(".")[0] in packages:
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in packages else find(name))
    monkeypatch.setattr(builtins, "__import__", absent)


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_frames_are_read_back(tmp_path: Path, suffix: str, channels: int) -> None:
    if suffix == ".mp4" and not HAS_AV:
        pytest.skip("PyAV is not installed (pip install 'fastdream[video]')")
    frames = clip(channels=channels)
    path = video.write_video(tmp_path / f"a.b{suffix}", frames)
    assert path == tmp_path / f"a.b{suffix}" and list(tmp_path.iterdir()) == [path]
    back = read(path)
    assert back.shape == (12, 192, 256, 3)
    expected = np.broadcast_to(frames, (12, 48, 64, 3)).repeat(4, 1).repeat(4, 2)
    assert np.abs(back.astype(float) - expected).mean() < 6


@pytest.mark.skipif(not HAS_AV, reason="PyAV is not installed (pip install 'fastdream[video]')")
def test_odd_sizes_become_even_in_mp4(tmp_path: Path) -> None:
    path = video.write_video(tmp_path / "odd_000000012", clip(3, 201, 215))
    assert path.name == "odd_000000012.mp4" and read(path).shape == (3, 202, 216, 3)


def test_the_suffix_follows_from_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "av")
    assert video.write_video(tmp_path / "openloop/image_1", clip(2)).name in ("image_1.webp", "image_1.gif")
    with pytest.raises(ImportError, match=r"fastdream\[video\]"):
        video.write_video(tmp_path / "x.mp4", clip(2))
    hide(monkeypatch, "av", "PIL")
    with pytest.raises(ImportError, match="pip install pillow"):
        video.write_video(tmp_path / "x", clip(2))
    assert not list(tmp_path.glob("x*"))


def test_a_gif_has_one_palette_and_keeps_few_colours_exactly() -> None:
    frames = np.zeros((5, 16, 16, 3), np.uint8)
    for t in range(5):
        frames[t, t : t + 8, 2:9] = (50 * t, 255 - 40 * t, 7 * t)
    data = video.gif_bytes(frames)
    image = Image.open(io.BytesIO(data))
    assert image.info["duration"] == 50 and image.info["loop"] == 0
    assert np.array_equal(pillow_frames(data), frames)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = video.write_video(tmp_path / "x.gif", clip(2))
    before = path.read_bytes()

    def broken(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(video, "_write_gif", broken)
    with pytest.raises(OSError, match="No space"):
        video.write_video(path, clip(2))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8), np.zeros((2, 8, 8, 4), np.uint8), clip(0)],
)
def test_other_arrays_are_refused_with_their_shape(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\[T, H, W, 1 or 3\], got"):
        video.write_video(tmp_path / "x.gif", frames)


def test_rows_get_labels_and_keep_their_pixels() -> None:
    frames = clip(2, 96)
    labelled = video.label_rows(frames)
    margin = labelled.shape[2] - frames.shape[2]
    assert labelled.dtype == np.uint8 and np.array_equal(labelled[:, :, margin:], frames)
    for row in range(3):
        assert labelled[0, 32 * row : 32 * row + 32, :margin].max() > 150


def test_curves_show_truth_dream_and_gaps() -> None:
    t = np.linspace(0, 6, 40)
    true = np.stack([np.sin(t), np.cos(t), np.zeros(40)], 1)
    same, other = plot_curves(true, true, 10), plot_curves(true, true + np.linspace(0, 1, 40)[:, None], 10)
    assert same.dtype == np.uint8 and same.ndim == 3 and same.shape == other.shape
    assert not np.array_equal(same, other)
    broken = true.copy()
    broken[3:5, 0], broken[:, 1], broken[20, 2] = np.nan, np.inf, np.nan
    assert np.isfinite(plot_curves(true, broken, 0)).all()
    assert plot_curves(np.zeros((1, 1)), np.zeros((1, 1)), 1).ndim == 3
    png = np.asarray(Image.open(io.BytesIO(video.png_bytes(same))))
    assert np.array_equal(png, same)


def test_curves_are_drawn_where_their_values_are_in_colours_that_tell_when_it_dreams() -> None:
    true, imagined = np.zeros((21, 1)), np.ones((21, 1))
    picture = plot_curves(true, imagined, 8)[40:].astype(int)  # below the legend
    blue, orange = picture[..., 2] - picture[..., 0], picture[..., 0] - picture[..., 2]
    truth, seen, dreamed = (np.argwhere(x) for x in (picture.max(-1) < 80, blue > 60, orange > 60))
    assert seen[:, 0].max() < truth[:, 0].min() and dreamed[:, 0].max() < truth[:, 0].min()
    last_seen = curves._LEFT + 7 * curves._WIDTH // 20  # the eighth of 21 steps
    assert (seen[:, 1].min(), seen[:, 1].max()) == (curves._LEFT, last_seen - 1)
    assert (dreamed[:, 1].min(), dreamed[:, 1].max()) == (last_seen, truth[:, 1].max())


def test_curves_choose_the_dimensions_that_move() -> None:
    true = np.zeros((20, 40))
    true[:, 33] = np.arange(20)
    one = plot_curves(true, true, 5)
    assert one.shape == plot_curves(true[:, :16], true[:, :16], 5).shape
    assert not np.array_equal(
        plot_curves(np.roll(true, 1, 1), np.roll(true, 1, 1), 5), one
    )  # by another number
    for dimension, shown in ((33, True), (20, False)):
        other = true.copy()
        other[:, dimension] = 3 - other[:, dimension]
        assert np.array_equal(plot_curves(other, other, 5), one) != shown
    with pytest.raises(ValueError, match=r"\(20, 40\) and \(20, 3\)"):
        plot_curves(true, true[:, :3], 5)
    with pytest.raises(ValueError, match="got 21"):
        plot_curves(true, true, 21)
