"""Clips of frames as files: mp4 where PyAV is installed, animated WebP or GIF through Pillow otherwise."""

import importlib.util
import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

# Players show a clip of 64 × 64 pixels as a stamp: small ones are enlarged by a whole factor to about this height.
SMALLEST = 192
FPS = 20  # frames a second
LABELS = ("truth", "model", "error")  # of the rows of a prediction
_SUFFIXES = (".mp4", ".webp", ".gif")


def write_video(path: Path, frames: np.ndarray) -> Path:
    """Write a clip and return the file's path; a file that is there is replaced once the new one is whole.

    path    ending in .mp4, .webp or .gif, or without any of these: then the best that is installed is taken.
    frames  uint8 [T, H, W, C] with 1 or 3 channels; small frames are enlarged, odd sizes padded (mp4 only).
    Raises ValueError for other frames, ImportError naming the package to install, OSError from the disk.
    """
    frames = _enlarged(as_rgb(frames))
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        path = path.with_name(path.name + best_suffix())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    write = {".mp4": _write_mp4, ".webp": _write_webp, ".gif": _write_gif}[path.suffix]
    try:
        write(temporary, frames)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def best_suffix() -> str:
    """'.mp4' with PyAV, else '.webp' or '.gif', whichever Pillow can write. ImportError when neither is there."""
    if importlib.util.find_spec("av"):
        return ".mp4"
    pillow()
    from PIL import features

    return ".webp" if features.check("webp") else ".gif"


def gif_bytes(frames: np.ndarray) -> bytes:
    """An endless animated GIF of uint8 [T, H, W, C]; all frames share one palette of 256 colours."""
    image = pillow()
    frames = as_rgb(frames)
    T, H, W, _ = frames.shape
    # Choosing the palette costs most, and a sample of the pixels gives the same one but for noise.
    pixels = frames.reshape(-1, 3)
    sample = np.ascontiguousarray(pixels[:: max(1, len(pixels) // 65536)])[:, None]
    palette = image.fromarray(sample).quantize(256, dither=image.Dither.NONE)
    clip = image.fromarray(frames.reshape(T * H, W, 3)).quantize(palette=palette, dither=image.Dither.NONE)
    first, *rest = (clip.crop((0, t * H, W, (t + 1) * H)) for t in range(T))
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=1000 // FPS, loop=0, optimize=False)
    return buffer.getvalue()


def png_bytes(image: np.ndarray) -> bytes:
    """A PNG of one uint8 picture [H, W, C] with 1 or 3 channels."""
    buffer = io.BytesIO()
    pillow().fromarray(as_rgb(image[None])[0]).save(buffer, "PNG")
    return buffer.getvalue()


def label_rows(frames: np.ndarray) -> np.ndarray:
    """Write its name beside each of a clip's rows, see LABELS: [T, H, W, C] -> [T, H, W + margin, 3]."""
    image = pillow()
    from PIL import ImageDraw

    frames = as_rgb(frames)
    T, H, _, _ = frames.shape
    margin = image.new("RGB", (10 + 8 * max(map(len, LABELS)), H), (24, 24, 27))
    draw = ImageDraw.Draw(margin)
    for row, label in enumerate(LABELS):
        draw.text((5, (row + 0.5) * H / len(LABELS)), label, (228, 228, 231), anchor="lm", font_size=12)
    return np.concatenate([np.broadcast_to(np.asarray(margin), (T, H, margin.width, 3)), frames], axis=2)


def as_rgb(frames: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 1 or 3] as contiguous [T, H, W, 3]; ValueError for anything else."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] not in (1, 3) or not frames.size:
        raise ValueError(f"need frames as uint8 [T, H, W, 1 or 3], got {frames.dtype} {list(frames.shape)}")
    return np.ascontiguousarray(np.broadcast_to(frames, (*frames.shape[:3], 3)))


def pillow() -> ModuleType:
    """PIL.Image, or an ImportError that says how to get it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures and clips need Pillow: pip install pillow") from error
    return Image


def _enlarged(frames: np.ndarray) -> np.ndarray:
    factor = max(1, SMALLEST // frames.shape[1])
    return frames.repeat(factor, axis=1).repeat(factor, axis=2) if factor > 1 else frames


def _write_mp4(path: Path, frames: np.ndarray) -> None:
    try:
        import av
    except ImportError as error:
        raise ImportError("mp4 files need PyAV: pip install 'fastdream[video]'") from error
    # Players want 4:2:0 colour, which needs even sizes.
    pad = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]
    frames = np.pad(frames, pad, mode="edge")
    # In memory first, so that a full disk is an ordinary OSError and not one of FFmpeg's.
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("h264", rate=FPS, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    path.write_bytes(buffer.getvalue())


def _write_webp(path: Path, frames: np.ndarray) -> None:
    first, *rest = map(pillow().fromarray, frames)
    first.save(
        path, "WEBP", save_all=True, append_images=rest, duration=1000 // FPS, loop=0, quality=85, method=2
    )


def _write_gif(path: Path, frames: np.ndarray) -> None:
    path.write_bytes(gif_bytes(frames))
