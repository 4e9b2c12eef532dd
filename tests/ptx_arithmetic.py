"""What PTX computes with numbers, for every thread at once. Approximate functions are exact here."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[Any]  # a number for every thread
SIGNED: dict[str, Any] = {"s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64}
TYPES: dict[str, Any] = {
    **SIGNED, "u8": np.uint8, "b8": np.uint8, "u16": np.uint16, "b16": np.uint16, "u32": np.uint32, "b32": np.uint32,
    "u64": np.uint64, "b64": np.uint64, "f32": np.float32, "pred": np.bool_,
    "f16": np.uint16, "bf16": np.uint16, "f16x2": np.uint32, "bf16x2": np.uint32,
}  # fmt: skip


def _rounded(x: Lanes) -> Lanes:
    """The upper halves of float32, to the nearest, of two as near to the even one."""
    bits = x.astype(np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), 0x7FFF, nearest).astype(np.uint16)


# A number of 16 bits as float32, and back.
HALVES: dict[str, tuple[Callable[[Lanes], Lanes], Callable[[Lanes], Lanes]]] = {
    "bf16": (lambda x: (x.astype(np.uint32) << np.uint32(16)).view(np.float32), _rounded),
    "f16": (lambda x: x.view(np.float16).astype(np.float32), lambda x: x.astype(np.float16).view(np.uint16)),
}


def to_tf32(x: Lanes) -> Lanes:
    """Ten bits of mantissa; of two as near the larger."""
    return (x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)


def parted(x: Lanes) -> tuple[Lanes, Lanes]:
    """The lower and the upper half of 32 bits."""
    return x.astype(np.uint16), (x >> np.uint32(16)).astype(np.uint16)


def paired(low: Lanes, high: Lanes) -> Lanes:
    return low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)


def converted(x: Lanes, words: tuple[str, ...]) -> Lanes:
    to, origin = words[-2].removesuffix("x2"), words[-1]
    if to == "tf32" and "rna" in words:
        return to_tf32(x)
    x = HALVES[origin][0](x) if origin in HALVES else x
    rounding = next(
        (r for w, r in {"rmi": np.floor, "rni": np.rint, "rzi": np.trunc}.items() if w in words), None
    )
    x = x if rounding is None else rounding(x)
    if x.dtype == np.float32 and to not in (*HALVES, "f32", "s32"):
        raise NotImplementedError(".".join(words))
    return HALVES[to][1](x) if to in HALVES else x.astype(TYPES[to])


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


def arithmetic_of_halves(words: tuple[str, ...], values: list[Lanes]) -> Lanes:
    """In float32, rounded at the end; where registers hold two numbers, of both."""
    kind = words[-1].removesuffix("x2")
    decode, encode = HALVES[kind]
    if kind == words[-1]:
        return encode(arithmetic((*words[:-1], "f32"), [decode(x) for x in values]))
    return paired(
        *(arithmetic_of_halves((*words[:-1], kind), list(x)) for x in zip(*map(parted, values), strict=True))
    )


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
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
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
    "popc": lambda x: np.unpackbits(x[:, None].view(np.uint8), axis=1).sum(1),
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x.astype(np.float64)),
}  # fmt: skip
