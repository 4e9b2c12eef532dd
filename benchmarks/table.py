"""A Markdown table of benchmarks' results: medians by backend, side by side, with ratios and what they come down to.

    pytest benchmarks/test_ops.py --benchmark-json=ops.json
    python benchmarks/table.py ops.json --output benchmarks/results/ops.md

Ratios are of medians of one run; several files make several tables.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))


@dataclass(frozen=True)
class Command:
    """Make Markdown tables of what `pytest benchmarks --benchmark-json=FILE` wrote."""

    files: tuple[Path, ...]
    """Result files."""
    output: Path | None = None
    """Where to write; the terminal if not given."""

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("no result file is given")


def seconds(value: float) -> str:
    """A time with three digits in the unit that suits it."""
    unit, scale = next((u for u in UNITS if value >= u[1]), UNITS[-1])
    return f"{value / scale:.3g} {unit}" if value / scale < 999.5 else f"{value / scale:.0f} {unit}"


def rate(amount: float, time: float) -> str:
    """Billions a second, empty where there is nothing to count."""
    return f"{amount / time / 1e9:.3g}" if amount else ""


def grouped(results: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, dict[str, Any]]]:
    """Results of backends by what was timed: op or task, preset, mode."""
    groups: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for result in results:
        about = result["extra_info"]
        if "what" in about:
            key = about["what"], about["preset"], about["mode"]
            groups.setdefault(key, {})[about["backend"]] = result
    return groups


def compare(results: list[dict[str, Any]]) -> list[list[str]]:
    """Header and rows: each backend's median, its ratio to the first, and the rates of the fastest."""
    groups = grouped(results)
    backends = list(dict.fromkeys(name for group in groups.values() for name in group))
    base, *others = backends or [""]
    rows = [["what", "preset", "pass", *backends, *(f"{base} / {name}" for name in others)]]
    rows[0] += ["GFLOP", "GFLOP/s", "MB", "GB/s"]
    for key, group in groups.items():
        medians = {name: result["stats"]["median"] for name, result in group.items()}
        about = next(iter(group.values()))["extra_info"]
        flops, moved, best = about["flops"], about["bytes"], min(medians.values())
        times = [seconds(medians[name]) if name in medians else "" for name in backends]
        both = [base in medians and name in medians for name in others]
        ratios = [
            f"{medians[base] / medians[name]:.2f}" if known else ""
            for name, known in zip(others, both, strict=True)
        ]
        floor = [
            f"{flops / 1e9:.3g}" if flops else "",
            rate(flops, best),
            f"{moved / 1e6:.3g}",
            rate(moved, best),
        ]
        rows.append([*key, *times, *ratios, *floor])
    return rows


def plain(results: list[dict[str, Any]]) -> list[list[str]]:
    """Header and rows of benchmarks that have no backends: median and spread."""
    rows = [["benchmark", "median", "interquartile range", "rounds"]]
    for result in results:
        if "what" not in result["extra_info"]:
            stats = result["stats"]
            rows.append(
                [result["name"], seconds(stats["median"]), seconds(stats["iqr"]), str(stats["rounds"])]
            )
    return rows


def markdown(rows: list[list[str]]) -> str:
    """Rows as a table; the first is its header, and numbers stand right. Nothing without rows."""
    if len(rows) < 2:
        return ""
    words = ("what", "preset", "pass", "benchmark")
    line = ["---" if name in words else "---:" for name in rows[0]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], line, *rows[1:]]) + "\n"


def describe(data: dict[str, Any]) -> str:
    """How, where and when a file was made."""
    machine, results = data["machine_info"], data["benchmarks"]
    threads = {r["extra_info"]["threads"] for r in results if "threads" in r["extra_info"]}
    counts = " or ".join(map(str, sorted(threads))) or "an unknown number of"
    return (
        f"`{data['command']}`, {data['datetime'][:10]}: {machine['cpu']}, {machine['cores']} cores, {counts} "
        f"thread{'' if threads == {1} else 's'}, Python {machine['python']}, PyTorch {machine['torch']}. "
        "Medians; GFLOP and MB are the least that the work comes down to, GFLOP/s and GB/s what the fastest backend "
        "makes of it.\n"
    )


def page(data: dict[str, Any]) -> str:
    """The tables of one result file, with the command that made it. Raises ValueError if it holds no results."""
    if not isinstance(data, dict) or not data.get("benchmarks") or "command" not in data:
        raise ValueError(
            "not a result of `pytest benchmarks --benchmark-json=FILE`: it has no benchmarks or command"
        )
    tables = (markdown(make(data["benchmarks"])) for make in (compare, plain))
    return "\n".join([describe(data), *filter(None, tables)])


def tables_of(path: Path) -> str:
    """The tables of a file; ValueError that names it if it is none of results."""
    try:
        return page(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def main(args: list[str] | None = None) -> None:
    """The command."""
    import tyro  # not where others take tables from here

    try:
        command = tyro.cli(Command, args=args, config=(tyro.conf.PositionalRequiredArgs,))
        text = "\n".join(tables_of(path) for path in command.files)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    if command.output is None:
        print(text)
        return
    command.output.parent.mkdir(parents=True, exist_ok=True)
    command.output.write_text(text)


if __name__ == "__main__":
    main()
