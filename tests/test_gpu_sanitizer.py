"""Kernels under compute-sanitizer; and that the script which runs them says what is wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sanitize_gpu.sh")
FAKE = """#!/usr/bin/env bash
echo "$@" >> "$(dirname "$0")/calls"
[ "$(grep -c . "$(dirname "$0")/calls")" != "${FAILS_AT:-0}" ] || exit 9
"""


def run(*args: str, **changes: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable} | changes
    return subprocess.run(["bash", str(SCRIPT), *args], env=environment, capture_output=True, text=True)


@pytest.mark.gpu
@pytest.mark.slow
def test_sanitizers_find_nothing() -> None:
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not there")
    done = run()
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert done.stdout.count("ERROR SUMMARY: 0 errors") + done.stdout.count("0 hazards displayed") >= 3


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    path = tmp_path / "compute-sanitizer"
    path.write_text(FAKE)
    path.chmod(0o755)
    return path


def test_every_tool_runs_over_the_parity_tests(fake: Path) -> None:
    done = run("-x", SANITIZER=str(fake))
    assert done.returncode == 0, done.stderr
    calls = (fake.parent / "calls").read_text().splitlines()
    assert [call.split()[1] for call in calls] == ["memcheck", "racecheck", "synccheck"]
    assert all(call.endswith("-k agrees_with_reference tests/test_triton.py -x") for call in calls)
    given = calls[0].split("-m pytest -q ")[1].split()
    listed = [sys.executable, "-m", "pytest", "-q", "--collect-only", *given]
    found = subprocess.run(listed, cwd=SCRIPT.parents[1], capture_output=True, text=True)
    assert "test_agrees_with_reference[norm_act-" in found.stdout, found.stdout + found.stderr


def test_an_error_is_the_scripts_own(fake: Path) -> None:
    assert run(SANITIZER=str(fake), FAILS_AT="2").returncode == 9
    assert len((fake.parent / "calls").read_text().splitlines()) == 2


def test_without_the_sanitizer_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    done = subprocess.run(
        [shutil.which("bash") or "bash", str(SCRIPT)],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "compute-sanitizer is not there" in done.stderr
