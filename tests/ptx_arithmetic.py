"""What PTX computes with numbers, for every thread at once. Approximate functions are exact here."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[Any]  # a number for every thread
SIGNED: dict[str, Any] = {"s16": np.int16, "s32": np.int32, "s64": np.int64}
TYPES: dict[str, Any] = {
    **SIGNED, "u8": np.uint8, "b8": np.uint8, "u16": np.uint16, "b16": np.uint16, "u32": np.uint32, "b32": np.uint32,
    "u64": np.uint64, "b64": np.uint64, "f32": np.float32, "pred": np.bool_,
}  # fmt: skip


def converted(x: Lanes, words: tuple[str, ...]) -> Lanes:
    to = words[-2]
    if "f32" in (to, words[-1]) and to not in ("f32", "s32") or words[-1] in ("bf16", "f16"):
        raise NotImplementedError(".".join(words))
    rounded = (
        np.floor(x)
        if "rmi" in words
        else np.rint(x)
        if "rni" in words
        else np.trunc(x)
        if "rzi" in words
        else x
    )
    return rounded.astype(TYPES[to])


def field(x: Lanes, start: int, length: int, kind: str) -> Lanes:
    x = (x >> np.uint32(start)).astype(np.int64) & ((1 << length) - 1)
    half = 1 << (length - 1) if kind in SIGNED else 0
    return ((x ^ half) - half).astype(TYPES[kind])


def permuted(low: Lanes, high: Lanes, choice: int) -> Lanes:
    """Four of eight bytes, chosen by as many digits; of one above seven the sign, eight times."""
    whole, found = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32), np.zeros_like(low)
    for i in range(4):
        digit = choice >> 4 * i & 15
        byte = (whole >> np.uint64(8 * (digit & 7))).astype(np.uint8)
        byte = np.where(byte > 127, 255, 0).astype(np.uint8) if digit > 7 else byte
        found |= byte.astype(np.uint32) << np.uint32(8 * i)
    return found


def arithmetic(words: tuple[str, ...], values: list[Lanes]) -> Lanes:
    if words[0] == "mul" and "hi" in words:
        wide = np.int64 if words[-1] in SIGNED else np.uint64  # of 16 or 32 bits
        whole, bits = np.multiply(*(x.astype(wide) for x in values)), 8 * values[0].itemsize
        high: Lanes = whole >> wide(bits)
        return high.astype(values[0].dtype)
    found: Lanes = ARITHMETIC[words[0]](*values)
    return found if "wide" in words else found.astype(TYPES[words[-1]])


def _shifted(shift: Callable[[Lanes, Lanes], Lanes], x: Lanes, by: Lanes) -> Lanes:
    bits = 8 * x.itemsize
    far = np.where(x < 0, -1, 0) if shift is np.right_shift else 0
    return np.where(by < bits, shift(x, np.minimum(by, bits - 1).astype(x.dtype)), far).astype(x.dtype)


def _quotient(a: Lanes, b: Lanes) -> Lanes:
    return (
        a / b if a.dtype == np.float32 else (np.abs(a) // np.abs(b) * np.sign(a) * np.sign(b)).astype(a.dtype)
    )


COMPARISONS: dict[str, Callable[..., Lanes]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "neu": np.not_equal, "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}  # fmt: skip
ARITHMETIC: dict[str, Callable[..., Lanes]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "not": np.invert, "neg": np.negative, "abs": np.abs, "min": np.fmin, "max": np.fmax,
    "mad": lambda a, b, c: a * b + c,
    "fma": lambda a, b, c: a.astype(np.float64) * b + c,
    "div": _quotient,
    "rem": lambda a, b: a - _quotient(a, b) * b,
    "shl": lambda x, by: _shifted(np.left_shift, x, by),
    "shr": lambda x, by: _shifted(np.right_shift, x, by),
    "ex2": lambda x: np.where(np.exp2(x) < np.finfo(np.float32).tiny, 0, np.exp2(x)),
    "lg2": np.log2,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x.astype(np.float64)),
}  # fmt: skip
