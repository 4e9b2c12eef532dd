"""What the doctor says of an installation, to people and as data."""

import json
import sys
from typing import Any

import pytest
import torch

from fastdream import doctor
from fastdream.ops import native


def said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str) -> str:
    monkeypatch.setattr(sys, "argv", ["doctor", *args])
    doctor.main()
    return capsys.readouterr().out


def test_it_reports_the_same_to_people_and_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    data = json.loads(said(capsys, monkeypatch, "--json"))
    assert data["versions"]["torch"] == torch.__version__ or data["versions"]["torch"] in torch.__version__
    assert {row["op"] for row in data["ops"]["cpu"]} >= {"lambda_return", "observe"}
    assert data["build"]["on cpu"] and data["build"]["on cuda"]
    assert data["build"].get("CPU kernels", "") == native.cpu_kernels()
    titles, lines = [], []
    for line in said(capsys, monkeypatch).splitlines():
        (lines if line.startswith("  ") else titles).append(" ".join(line.split()))
    assert titles[:3] == ["versions", "", "devices"] and {"compiled", "ops on cpu", "extras"} < set(titles)
    rows = [" ".join(row.values()).split() for row in data["ops"]["cpu"]]
    assert {" ".join(row) for row in rows} < set(lines) and any(len(row) > 2 for row in rows)
    for part in ("versions", "build", "extras"):
        assert {" ".join(f"{key} {value}".split()) for key, value in data[part].items()} < set(lines)


def test_it_names_what_an_extra_lacks(monkeypatch: pytest.MonkeyPatch):
    lines = [
        "torch>=2.10",
        'crafter; extra == "crafter"',
        'numba ; extra == "crafter"',
        'mujoco==3.17.0; extra == "dmc"',
        'crafter; extra == "noise"',
        'fastdream[crafter,dmc]; extra == "all"',
        """fastdream[dmc]; python_version < "3.13" and extra == 'all'""",
    ]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor, "installed", {"crafter": "1.8.3", "mujoco": "4.0.0"}.get)
    assert doctor.extras() == {
        "crafter": "numba is missing: pip install 'fastdream[crafter]'",
        "dmc": "mujoco is 4.0.0, 3.17.0 is needed: pip install 'fastdream[dmc]'",
        "noise": "ok",
    }
    monkeypatch.setattr(doctor, "installed", {"crafter": "1.8.3", "mujoco": "3.17.0"}.get)
    assert doctor.extras()["dmc"] == "ok"


def test_it_says_what_is_not_there(monkeypatch: pytest.MonkeyPatch):
    def nothing(name: str) -> Any:
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "requires", nothing)
    monkeypatch.setattr(doctor.metadata, "version", nothing)
    monkeypatch.setattr(native, "build_record", dict)
    monkeypatch.setattr(native, "cpu_kernels", lambda: "")
    monkeypatch.setattr(native, "available", lambda device: f"no luck with {device}")
    data = doctor.report()
    assert {data["versions"][name] for name in doctor.PACKAGES} == {"missing"}
    assert data["build"] == {
        "built": "unknown",
        "why": "no record of the build",
        "on cpu": "no luck with cpu",
        "on cuda": "no luck with cuda",
    }
    (why,) = data["extras"].values()
    assert "pip install ." in why and why in doctor.format_report(data)
