"""True against imagined observations of a vector task, drawn as small multiples."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastdream.video import pillow

_PANELS = 16  # at the most
# Drawn at twice the size and halved: smooth lines without a plotting library.
_SCALE = 2
_WIDTH, _HEIGHT, _TOP, _GAP, _LEFT = 300, 84, 26, 24, 44
_PAPER, _SHADE, _FRAME, _INK = (255, 255, 255), (240, 243, 248), (205, 210, 218), (90, 96, 106)
_TRUE, _MODEL, _DREAM = (40, 44, 52), (46, 119, 208), (226, 106, 27)


def plot_curves(true: np.ndarray, imagined: np.ndarray, context: int) -> np.ndarray:
    """Draw one panel for each dimension: what happened, and what the model made of it. Returns uint8 [H, W, 3].

    Of many dimensions those that vary most are drawn, in their order.

    true, imagined  [T, N], real numbers; gaps where they are not finite.
    context         steps that the model has seen; it dreams from there on.
    """
    true, imagined = np.asarray(true, np.float64), np.asarray(imagined, np.float64)
    if true.ndim != 2 or true.shape != imagined.shape or not true.size:
        raise ValueError(f"need two arrays of the same shape [T, N], got {true.shape} and {imagined.shape}")
    T, N = true.shape
    if not 0 <= context <= T:
        raise ValueError(f"the context must lie within the {T} steps, got {context}")
    spread = np.where(np.isfinite(true), true, 0.0).std(0)
    shown = np.sort(np.argsort(-spread, kind="stable")[:_PANELS])
    columns = 1 if len(shown) < 3 else 2 if len(shown) < 9 else 4
    rows = -(-len(shown) // columns)
    image = pillow()
    from PIL import ImageDraw

    size = (columns * (_WIDTH + _LEFT + 12), _TOP + rows * (_HEIGHT + _GAP) + 6)
    picture = image.new("RGB", tuple(_SCALE * n for n in size), _PAPER)
    draw = ImageDraw.Draw(picture)
    _legend(draw, context, T)
    for place, n in enumerate(shown):
        corner = (
            place % columns * (_WIDTH + _LEFT + 12) + _LEFT,
            _TOP + place // columns * (_HEIGHT + _GAP) + _GAP,
        )
        _panel(draw, corner, true[:, n], imagined[:, n], context, str(n))
    return np.asarray(picture.resize(size, image.Resampling.BOX))


def _legend(draw: Any, context: int, steps: int) -> None:
    x = _LEFT
    for text, color in (
        ("true", _TRUE),
        (f"model, seeing the first {context}", _MODEL),
        (f"dreaming the other {steps - context}", _DREAM),
    ):
        draw.line(_scaled([(x, 13), (x + 16, 13)]), color, width=2 * _SCALE)
        draw.text(_scaled([(x + 21, 13)])[0], text, _INK, anchor="lm", font_size=11 * _SCALE)
        x += 36 + int(draw.textlength(text, font_size=11 * _SCALE)) // _SCALE


def _panel(
    draw: Any, corner: tuple[int, int], true: np.ndarray, imagined: np.ndarray, context: int, name: str
) -> None:
    """One dimension: a shaded context, the range on the left, the two curves."""
    left, top = corner
    both = np.concatenate([true, imagined])
    both = both[np.isfinite(both)]
    low, high = (both.min(), both.max()) if both.size else (0.0, 0.0)
    margin = 0.06 * (high - low) or max(abs(high), 1.0) * 0.1

    def point(t: float, value: float) -> tuple[float, float]:
        x = left + t / max(1, len(true) - 1) * _WIDTH
        return x, top + (high + margin - value) / (high - low + 2 * margin) * _HEIGHT

    box = [(left, top), (left + _WIDTH, top + _HEIGHT)]
    seen = (point(max(0, context - 1), low)[0], top + _HEIGHT)
    draw.rectangle(_scaled(box), _PAPER, _FRAME, width=_SCALE)
    if context > 1:
        draw.rectangle(_scaled([(left + 1, top + 1), (seen[0], seen[1] - 1)]), _SHADE)
    for value, anchor in ((high, "rt"), (low, "rb")):
        edge = top if anchor == "rt" else top + _HEIGHT
        draw.text(_scaled([(left - 4, edge)])[0], f"{value:.3g}", _INK, anchor=anchor, font_size=9 * _SCALE)
    draw.text(_scaled([(left, top - 2)])[0], name, _INK, anchor="ls", font_size=10 * _SCALE)
    # The dream begins where the model last saw, so that its line hangs on to the other.
    split = max(0, context - 1)
    for series, color, begin, end in (
        (true, _TRUE, 0, len(true)),
        (imagined, _MODEL, 0, context),
        (imagined, _DREAM, split, len(true) if context < len(true) else split),
    ):
        for run in _runs(series[begin:end]):
            points = _scaled([point(begin + t, series[begin + t]) for t in run])
            if len(points) == 1:
                (x, y), r = points[0], 2 * _SCALE
                draw.ellipse((x - r, y - r, x + r, y + r), color)
            else:
                draw.line(points, color, width=(2 if color == _TRUE else 1) * _SCALE, joint="curve")


def _runs(series: np.ndarray) -> list[np.ndarray]:
    """Indices of the stretches without a gap."""
    finite = np.flatnonzero(np.isfinite(series))
    return [run for run in np.split(finite, np.flatnonzero(np.diff(finite) > 1) + 1) if run.size]


def _scaled(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(x * _SCALE, y * _SCALE) for x, y in points]
