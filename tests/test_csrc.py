"""csrc on its own: its tests under sanitizers, and what the objects of each instruction set may define."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def need(*tools: str) -> None:
    """Skips the test on a machine that cannot compile."""
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"{missing[0]} not found")


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder of the kernels of all instruction sets, as users compile them."""
    need("cmake", "nm")
    build = tmp_path_factory.mktemp("objects")
    flags = ["-DFASTDREAM_CUDA=OFF", "-DFASTDREAM_TESTS=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), *flags],
        ["cmake", "--build", str(build), "--parallel", "2", "--target", "fastdream_cpu"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.mark.slow
def test_an_instruction_set_defines_nothing_that_others_could_be_given(objects: Path):
    """A function that several objects define is linked once, whichever comes first: one made of AVX-512, say, into code
    for processors that have none. So the objects of an instruction set define names of its own namespace alone.
    """
    found = {path: path.parents[3].stem.removeprefix("fastdream_") for path in objects.rglob("kernels/*.o")}
    assert "portable" in found.values()
    for path, isa in found.items():
        command = ["nm", "--defined-only", str(path)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        names = re.findall(r"^[0-9a-f]+ ([A-Za-z]) (?!DW\.ref\.)(.*)$", listed, re.MULTILINE)
        own = f"9fastdream3cpu{len(isa)}{isa}"  # as compilers write fastdream::cpu::isa; nm cannot read all of clang's
        assert any(own in name for _, name in names), (path.name, isa)
        # Lower case is for what this object alone knows; but v, w and u are for what the linker shares.
        shared = [name for kind, name in names if (kind.isupper() or kind in "vwu") and own not in name]
        assert not shared, (path.name, isa, shared)


@pytest.mark.slow
def test_sanitizers_find_nothing(tmp_path: Path):
    need("cmake", "g++")
    environment = os.environ | {"PYTHON": sys.executable}
    script = ROOT / "tests" / "csrc" / "sanitize.sh"
    done = subprocess.run(
        ["bash", str(script), str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "100% tests passed" in done.stdout
