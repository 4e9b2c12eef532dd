"""The README's Python: what it imports exists, and what needs no files of the reader's runs."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
GIVEN = "runs/", "replay."  # of the reader: a run, and a replay


@pytest.mark.parametrize("block", BLOCKS)
def test_imports(block: str):
    imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.ImportFrom)]
    assert imports
    for node in imports:
        for name in node.names:
            if not hasattr(import_module(str(node.module)), name.name):
                import_module(f"{node.module}.{name.name}")


@pytest.mark.parametrize("block", [block for block in BLOCKS if not any(word in block for word in GIVEN)])
def test_runs(block: str):
    names: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), names)
    assert names["loss"].isfinite()
