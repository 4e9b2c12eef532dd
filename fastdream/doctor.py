"""`python -m fastdream.doctor [--json]`: what is installed, what was compiled and why not more, what serves each op."""

import argparse
import json
import os
import platform
import re
from importlib import metadata
from typing import Any

import torch

import fastdream
from fastdream import entry, ops
from fastdream.ops import native

PACKAGES = ("torch", "triton", "numpy", "gymnasium", "safetensors", "tyro", "rich")


def report() -> dict[str, Any]:
    """Everything that the doctor knows, as plain data."""
    return {
        "versions": versions(),
        "devices": devices(),
        "build": build(),
        "ops": {device: [row._asdict() for row in ops.table(ops.load(device=device))] for device in kinds()},
        "extras": extras(),
    }


def versions() -> dict[str, str]:
    """Python, the system, fastdream and the packages that it always needs."""
    found = {name: installed(name) or "missing" for name in PACKAGES}
    here = {
        "fastdream": fastdream.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    return here | found | {"torch's CUDA": torch.version.cuda or "none"}


def installed(package: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def kinds() -> list[str]:
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def devices() -> list[str]:
    """One line a device; memory in GiB."""
    lines = [f"cpu: {os.cpu_count()} cores, torch threads: {torch.get_num_threads()}"]
    for i in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(i)
        lines.append(f"cuda:{i}: {gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB")
    return lines


def build() -> dict[str, str]:
    """What the installation compiled, and on each kind of device whether it can be used."""
    record = native.build_record() or {"built": "unknown", "why": "no record of the build"}
    usable = {f"on {kind}": native.available(torch.device(kind)) or "works" for kind in ("cpu", "cuda")}
    kernels = {"CPU kernels": native.cpu_kernels()}
    return {key: value for key, value in (record | usable | kernels).items() if value}


def extras() -> dict[str, str]:
    """For every extra: "ok", or what is missing and the command that installs it. Read from the package's metadata."""
    try:
        requirements = metadata.requires("fastdream") or []
    except metadata.PackageNotFoundError:
        return {"none known": "fastdream itself is not installed; run `pip install .`"}
    needs: dict[str, list[str]] = {}
    for requirement in requirements:
        if match := re.match(r"([\w.-]+)(?:==([\w.]+))?[^;]*;.*extra == ['\"](\w+)['\"]", requirement):
            package, pin, extra = match.groups()
            if package != "fastdream":  # an extra of extras
                needs.setdefault(extra, []).extend(_problems(package, pin))
    return {
        extra: f"{', '.join(problems)}: pip install 'fastdream[{extra}]'" if problems else "ok"
        for extra, problems in needs.items()
    }


def _problems(package: str, pin: str | None) -> list[str]:
    version = installed(package)
    if version is None:
        return [f"{package} is missing"]
    return [f"{package} is {version}, {pin} is needed"] if pin and version != pin else []


def format_report(data: dict[str, Any]) -> str:
    """The report for people."""
    sections = [
        ("versions", _pairs(data["versions"])),
        ("devices", data["devices"]),
        ("compiled", _pairs(data["build"])),
        *(
            (f"ops on {kind}", _pairs({r["op"]: _serves(r) for r in rows}))
            for kind, rows in data["ops"].items()
        ),
        ("extras", _pairs(data["extras"])),
    ]
    return "\n\n".join("\n  ".join([title, *lines]) for title, lines in sections)


def _serves(row: dict[str, str]) -> str:
    return f"{row['backend']:<9}  {row['reason']}".rstrip()


def _pairs(entries: dict[str, str]) -> list[str]:
    wide = max(map(len, entries))
    return [f"{name:<{wide}}  {value}".rstrip() for name, value in entries.items()]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m fastdream.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the same as JSON")
    as_json = parser.parse_args().json
    data = report()
    print(json.dumps(data, indent=2) if as_json else format_report(data))


if __name__ == "__main__":
    entry.run(main)
