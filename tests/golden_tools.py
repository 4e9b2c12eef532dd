"""Numbers computed by the official JAX DreamerV3: finding, reading and comparing them.

FASTDREAM_GOLDEN names another folder of the same form (other sizes, spaces, options); nothing here knows sizes.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.spaces import Space, Spaces

FOLDER = Path(os.environ.get("FASTDREAM_GOLDEN", Path(__file__).parent / "golden"))
STRICT, LOOSE, WIDE = 3e-5, 1e-4, 1e-3  # LOOSE for long sums, WIDE for means over bins that span nine decades

C = TypeVar("C")

# Plain PyTorch, and `--ops native` with what it has; where nothing is compiled both are the same.
BACKENDS = {name: fd.load(name) for name in ("reference", "native")}
EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)


class Golden:
    """One file: arrays by key, and the configuration they were made with."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {key: file[key] for key in file.files}
        self.config: dict[str, Any] = json.loads(str(self.arrays.pop("config_json")))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def tensor(self, key: str) -> Tensor:
        """A fresh tensor of one array."""
        return torch.from_numpy(self.arrays[key].copy())

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays below `prefix/`, by the rest of their key."""
        return {k.removeprefix(prefix + "/"): v for k, v in self.arrays.items() if k.startswith(prefix + "/")}

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """The same as fresh tensors."""
        return {key: torch.from_numpy(value.copy()) for key, value in self.under(prefix).items()}


def files(pattern: str) -> list[Path]:
    """Files of the set that match, for parametrisation."""
    return sorted(FOLDER.glob(pattern))


def parse_space(text: str) -> Space:
    """'Space(int32, shape=(2,), low=0, high=3)' -> our Space; integers below `high` are classes."""
    match = re.fullmatch(r"Space\((\w+), shape=\(([\d, ]*)\), low=([^,]+), high=([^)]+)\)", text)
    assert match, text
    dtype, dims, low, high = match.groups()
    shape = tuple(int(n) for n in dims.split(",") if n.strip())
    if dtype == "uint8" and len(shape) == 3:
        return Space("image", shape)
    if dtype.startswith("float"):
        return Space("vector", shape, low=float(low), high=float(high))
    return Space("discrete", shape, 2 if dtype == "bool" else int(high) - int(low))


def parse_spaces(texts: Mapping[str, str], order: list[str] | None = None) -> Spaces:
    """A dictionary of spaces, in the order in which the official code declared them."""
    return {key: parse_space(texts[key]) for key in order or texts}


def parse_options(cls: type[C], options: Mapping[str, Any]) -> C:
    """Our config dataclass from official options; those it does not have are left out."""
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    known = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if k in names}
    return cls(**known)


def error(ours: Tensor | np.ndarray, theirs: np.ndarray, floor: float = 1e-6) -> float:
    """max |ours - theirs| / max(floor, max |theirs|); infinite where a number is not finite."""
    ours = ours.detach().cpu().double().numpy() if isinstance(ours, Tensor) else np.asarray(ours, np.float64)
    theirs = np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, f"shape {ours.shape} is not the official {theirs.shape}"
    if not ours.size:
        return 0.0
    distance = np.abs(ours - theirs).max() / max(floor, np.abs(theirs).max())
    return float(distance) if np.isfinite(distance) else float("inf")


def assert_close(
    ours: Mapping[str, Tensor | np.ndarray],
    theirs: Mapping[str, np.ndarray],
    limit: float = STRICT,
    floor: float = 1e-6,
) -> None:
    """Every official array has one of ours within the limit; the message lists the worst first."""
    assert theirs, "nothing to compare with: the set holds no such arrays"
    missing = [key for key in theirs if key not in ours]
    assert not missing, f"not computed: {missing}"
    errors = {key: error(ours[key], theirs[key], floor) for key in theirs}
    worst = sorted((value, key) for key, value in errors.items() if not value <= limit)[::-1]
    assert not worst, f"beyond {limit:g}: " + ", ".join(f"{key} {value:.2g}" for value, key in worst[:10])
