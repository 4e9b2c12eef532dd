"""The tables of what gpu.py measured, in Markdown; where nothing was measured they say so."""

from typing import Any

from .table import markdown, seconds

UNMEASURED = "not yet measured"
SECTIONS = {
    "update": "One update of a whole agent",
    "compiled": "The same through torch.compile",
    "peer": "Other codebases",
    "observe": "observe, forward and backward, 16 × 64 (v1: 50 × 50)",
    "imagine": "imagine, 1024 × 15",
    "policy": "One action in each of n environments",
    "transfer": "Batches up and latents down",
    "op": "Single ops",
}


def page(data: dict[str, Any] | None) -> str:
    """All tables of one result file; None if there is no such file."""
    if data is None:
        return f"On a GPU: {UNMEASURED}. `python benchmarks/gpu.py` measures it.\n"
    parts, rates = data["parts"], data["parts"].get("machine", {}).get("rates")
    blocks = [describe(data, rates)]
    for section, title in SECTIONS.items():
        if rows := timed(select(parts, section), rates):
            blocks += [f"### {title}\n", markdown(rows)]
    for title, rows in (
        ("Kernels of an update, and its start", kernels(parts)),
        ("What decides how recurrent kernels are built", hardware(parts)),
    ):
        blocks += [f"### {title}\n", markdown(rows) or f"{UNMEASURED}\n"]
    failed = [f"- {name}: {part['error']}" for name, part in parts.items() if "error" in part]
    if failed:
        blocks += ["### Parts that did not run\n", "\n".join(failed) + "\n"]
    return "\n".join(blocks)


def describe(data: dict[str, Any], rates: dict[str, float] | None) -> str:
    """How, where and when it was measured."""
    machine = data["machine"]
    if data["dry"]:
        where = "a dry run on a CPU: the times mean nothing"
    else:
        where = f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}"
    best = (
        f"best here: {rates['flops'] / 1e12:.3g} TFLOP/s, {rates['bytes'] / 1e9:.4g} GB/s; "
        "the floor is the longer of FLOPs and bytes at these rates"
        if rates
        else "rates of the machine: not yet measured"
    )
    versions = f"PyTorch {machine['torch']}, Triton {machine['triton']}, Python {machine['python']}"
    made = f"`{data['command']}`, {data['datetime'][:10]}: {where}, {versions}, commit {machine['commit']}"
    return f"{made}. Medians; {best}.\n"


def select(parts: dict[str, Any], section: str) -> dict[str, Any]:
    """The parts of a section by what they are of."""
    return {name.partition(":")[2]: part for name, part in parts.items() if name.partition(":")[0] == section}


def timed(parts: dict[str, Any], rates: dict[str, float] | None) -> list[list[str]]:
    """Header and rows: every candidate's median, its memory, the floor, and the fastest one's ratio to it."""
    found = {what: part for what, part in parts.items() if "candidates" in part}
    if not found:
        return []
    names = list(dict.fromkeys(name for part in found.values() for name in part["candidates"]))
    rows = [["what", *names, "floor", "fastest / floor", "memory"]]
    for what, part in found.items():
        candidates = part["candidates"]
        medians = {name: x["median"] for name, x in candidates.items() if "median" in x}
        floor = floor_seconds(part.get("floor"), rates)
        rows.append([what, *(cell(candidates.get(name)) for name in names)])
        fastest = min(medians, key=lambda name: medians[name], default=None)
        rows[-1] += [
            seconds(floor) if floor else "",
            f"{medians[fastest] / floor:.1f}" if floor and fastest else "",
            gigabytes(candidates[fastest].get("memory")) if fastest else "",
        ]
    return rows


def cell(entry: dict[str, Any] | None) -> str:
    """A candidate's median; `failed` if it has none, nothing if it was not there."""
    if entry is None:
        return ""
    return seconds(entry["median"]) if "median" in entry else "failed"


def floor_seconds(floor: dict[str, int] | None, rates: dict[str, float] | None) -> float | None:
    """Least time of so many FLOPs and bytes, which a GPU does at the same time; None if rates are not known."""
    if not floor or not rates:
        return None
    return max(floor["flops"] / rates["flops"], floor["bytes"] / rates["bytes"])


def gigabytes(count: float | None) -> str:
    """Bytes in GB; empty for None."""
    return f"{count / 1e9:.2f} GB" if count else ""


def kernels(parts: dict[str, Any]) -> list[list[str]]:
    """Header and rows: kernels of an update, the share of its time that they run, and when the first is done."""
    rows = [["what", "candidate", "kernels", "running", "utilisation", "start to first update"]]
    starts = {what: part.get("seconds_to_first_update") for what, part in select(parts, "first").items()}
    for what, part in select(parts, "profile").items():
        for name, x in part.get("profiles", {}).items():
            numbers = [str(x["kernels"]), seconds(x["busy"]), f"{100 * x['utilisation']:.0f} %"]
            rows.append([what, name, *numbers, ""])
    rows += [[what, "", "", "", "", seconds(took)] for what, took in starts.items() if took]
    return rows


def hardware(parts: dict[str, Any]) -> list[list[str]]:
    """Header and rows: the probe's numbers."""
    found = parts.get("hardware", {}).get("hardware", {})
    if not isinstance(found, dict):
        return []
    return [["what", "measured"], *([name, f"{value:.4g}"] for name, value in found.items())]
