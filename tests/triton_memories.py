"""What Triton's kernels for World Models' memory are compiled and compared at: its two sizes, whatever DreamerV3's."""

from functools import partial

from . import parity_memory as ops
from .ops_tools import Maker
from .parity_cases import Arguments, Case

# Latents and units of World Models' memory: those of CarRacing, and of Doom, whose flag and end it knows.
MEMORIES = {"car_racing": (32, 256), "take_cover": (64, 512)}


def memory(name: str, m: Maker, n: int) -> Arguments:
    """A step of all dreams of a generation."""
    latents, units = MEMORIES[name]
    m.sizes = m.sizes._replace(deter=units, stoch=latents)
    return ops.lstm_mdn(name == "take_cover", 1.15, m, n)


def dreams(name: str, m: Maker, n: int) -> Arguments:
    """Steps of them, whose controllers see what those of the paper see."""
    latents, units = MEMORIES[name]
    m.sizes = m.sizes._replace(deter=units, stoch=latents)
    doom = name == "take_cover"
    return ops.lstm_mdn_dream(doom, doom, not doom, m, n)


def sequences(name: str, m: Maker, n: int) -> Arguments:
    """As many as a batch has that a memory learns from, and a few steps of them."""
    m.sizes = m.sizes._replace(deter=MEMORIES[name][1])
    return ops.lstm_scan(m, 100)


MEMORY_CASES: dict[str, dict[str, Case]] = {
    "lstm_mdn_step": {name: Case(partial(memory, name), False) for name in MEMORIES},
    "lstm_mdn_dream": {name: Case(partial(dreams, name), False) for name in MEMORIES},
    "lstm_scan": {name: Case(partial(sequences, name)) for name in MEMORIES},
}
