"""Numbers that golden/world_models/make.py and the tests draw alike: millions of weights need not be kept. NumPy alone.

They come from the raw bits of Philox, which NumPy keeps the same in all versions.
"""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

SEED = 2018
SIGNS, PICKS = 4, 200  # in what is kept of a large array


def uniform(name: str, *shape: int) -> np.ndarray:
    """Numbers in [0, 1) of a name, multiples of 2^-24, float64."""
    key = int.from_bytes(hashlib.sha256(f"{SEED}/{name}".encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key).random_raw(int(np.prod(shape)))
    return ((bits >> np.uint64(40)) * 2.0**-24).reshape(shape)


def spread(name: str, *shape: int) -> np.ndarray:
    """Uniform numbers of mean 0 and standard deviation 1, float32."""
    return ((2 * uniform(name, *shape) - 1) * 3**0.5).astype(np.float32)


def weights(
    net: str, shapes: Mapping[str, Sequence[int]], gains: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Parameters of a net by TensorFlow's names: biases of size 0.1, weights that keep the size of their inputs.

    `gains` multiplies those whose name is in it.
    """
    drawn = {}
    for name, shape in shapes.items():
        fan = np.prod(shape) / shape[-1]
        if (
            "deconv" in name and len(shape) == 4
        ):  # [height, width, out, in], and every pixel of four meets another quarter
            fan = np.prod(shape) / shape[-2] / 4
        size = gains.get(name, 1.0) * (0.1 if len(shape) == 1 else fan**-0.5)
        drawn[name] = spread(f"{net}/{name}", *shape) * np.float32(size)
    return drawn


def pictures(name: str, n: int) -> np.ndarray:
    """uint8 [n, 64, 64, 3]: squares of eight pixels a side, from faint to strong."""
    squares = uniform(name, n, 8, 8, 3) * np.linspace(16, 255, n)[:, None, None, None]
    return squares.round().astype(np.uint8).repeat(8, 1).repeat(8, 2)


def kept(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    """What is kept of an array in float64: all of it if small; else sums and elements.

    sums are the norm and sums under random signs, some the largest magnitude and evenly spaced elements: both begin
    with their scale.
    """
    array = np.asarray(array, np.float64)
    if array.size <= 2 * PICKS:
        return {f"{name}/all": array}
    flat = array.ravel()
    signs = np.where(uniform(f"signs/{name}", SIGNS, flat.size) < 0.5, -1.0, 1.0)
    picks = flat[np.linspace(0, flat.size - 1, PICKS).astype(int)]
    return {
        f"{name}/sums": np.concatenate([[np.linalg.norm(flat)], signs @ flat]),
        f"{name}/some": np.concatenate([[np.abs(flat).max()], picks]),
    }


def keep(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`kept` of several arrays."""
    return {key: value for name, array in arrays.items() for key, value in kept(name, array).items()}
