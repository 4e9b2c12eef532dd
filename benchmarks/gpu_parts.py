"""The parts of gpu.py, most valuable first."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from .calls import PLANS
from .gpu_bench import Bench
from .gpu_programs import first_update, hardware, peer_update
from .gpu_work import (
    compiled_op,
    compiled_update,
    machine,
    op,
    policy,
    profiles,
    transfer,
    update,
    update_earlier,
)
from .shapes import EARLIER_KINDS


class Part(NamedTuple):
    """A section and what of it; `limit` in seconds, after which it is given up."""

    section: str
    what: str
    limit: float
    run: Callable[[Bench], dict[str, Any]]

    @property
    def name(self) -> str:
        return f"{self.section}:{self.what}" if self.what else self.section


def parts(bench: Bench) -> list[Part]:
    """All of them, in their order."""
    dry, proprio, pixels = bench.dry, "proprio", "pixels"

    def sizes(*names: str) -> tuple[str, ...]:
        return ("debug",) if dry else names

    batch = "2x4" if dry else "16x64"
    jobs = [
        f"{obs}-{size}-{batch}"
        for obs in (proprio, pixels)
        for size in (("debug",) if dry else ("1m", "12m"))
    ]
    large = [] if dry else [f"{pixels}-{size}-{batch}" for size in ("50m", "200m")]
    learned = jobs if dry else [jobs[0], jobs[3], *large]
    first, last = learned[0], learned[1]
    found = [Part("machine", "", 40, machine)]
    # Each makes five agents on the host and compiles all kernels of its widths, which takes most of the time.
    found += [Part("update", name, 240 if name in large else 120, partial(update, name)) for name in learned]
    found += [Part("observe", size, 60, partial(op, "observe", size)) for size in sizes("12m", "1m", "50m")]
    found += [Part("imagine", size, 60, partial(op, "imagine", size)) for size in sizes("12m", "1m", "50m")]
    # As published; PlaNet's GRU and DreamerV2's two ways to learn to act beside DreamerV1.
    earlier = ["v1-debug"] if dry else ["v1", "v2-atari"]
    published = ["v1-6m-50x50", "planet-6m-50x50", "v2-15m-16x50", "v2atari-22m-16x50"]
    if dry:
        published = [f"{kind}-debug-2x4" for kind in EARLIER_KINDS]
    found += [Part("observe", name, 60, partial(op, "observe", name)) for name in earlier]
    found += [Part("update", name, 120, partial(update_earlier, name)) for name in published]
    found += [Part("hardware", "", 90, hardware)]
    found += [
        Part("first", name + kind, limit, partial(first_update, name, *how))
        for kind, limit, *how in (("", 60, False, False), ("-cold", 150, True, False))
        for name in (first, last)
    ]
    found += [Part("first", f"{last}-cold-alone", 150, partial(first_update, last, True, True))]
    found += [
        Part("profile", name, 60, partial(profiles, name)) for name in ([first] if dry else [first, last])
    ]
    found += [Part("transfer", last, 30, partial(transfer, last))]
    found += [
        Part("policy", f"{name}-{n}", 30, partial(policy, name, n)) for name in (first, last) for n in (1, 16)
    ]
    found += [
        Part("peer", f"{peer.name}-{name}", 120, partial(peer_update, i, name))
        for i, peer in enumerate(bench.peers)
        for name in (jobs if not dry else ["proprio-1m-1x2"])
    ]
    found += [
        Part("op", f"{name}-{size}", 30, partial(op, name, size))
        for name in PLANS
        if name not in ("observe", "imagine")
        for size in (op_sizes(name, dry))
    ]
    found += [Part("compiled", f"observe-{size}", 150, partial(compiled_op, size)) for size in sizes("12m")]
    return [*found, Part("compiled", first, 240, partial(compiled_update, first))]


def op_sizes(name: str, dry: bool) -> tuple[str, ...]:
    """The presets at which an op is timed; those of earlier agents stand for themselves."""
    presets = PLANS[name].presets
    if not dry:
        return presets
    return ("debug",) if presets[0][0].isdigit() else presets[:1]
