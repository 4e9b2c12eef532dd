"""Format, lint and types are tests: the tools that the extra `test` installs, with the settings of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    ["ruff format --check --quiet .", "ruff check --quiet .", "mypy fastdream"],
    ids=["format", "lint", "types"],
)
def test_clean(command: str):
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"`{command}` says:\n{done.stdout}{done.stderr}"
