"""What the tests of benchmarks/ share."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]


def load(name: str) -> ModuleType:
    """A module of benchmarks/, which is no installed package."""
    package = sys.modules.setdefault("benchmarks", ModuleType("benchmarks"))
    package.__path__ = [str(ROOT / "benchmarks")]
    return importlib.import_module(f"benchmarks.{name}")
