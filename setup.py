"""Runs CMake, which alone knows how csrc/ is compiled, and records the outcome for fastdream.doctor.

FASTDREAM_BUILD=auto (default): C++ and CUDA, C++ alone, or nothing, as this machine allows; never fails.
cuda, cpp: exactly that, or an error. off: pure Python.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# What CMake is asked for, in turn, until one works.
ATTEMPTS = {"auto": ("AUTO", "OFF"), "cuda": ("ON",), "cpp": ("OFF",), "off": ()}
MODE = os.environ.get("FASTDREAM_BUILD", "auto")


def missing_tool() -> str:
    """What any compilation needs and is not here; empty if all is."""
    named = os.environ.get("CXX", "")  # a path, or a command with options
    if not any(map(shutil.which, (named, *named.split()[:1]) if named else ("c++", "g++", "clang++"))):
        return f"CXX={named} not found" if named else "no C++ compiler found"
    if not shutil.which("cmake"):
        return "cmake not found"
    return "" if importlib.util.find_spec("pybind11") else "pybind11 not found"


def run(*command: str) -> None:
    """Run and show it; if it fails, raise with the first lines that speak of an error."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        first = next((i for i, line in enumerate(lines) if "error" in line.lower()), -4)
        raise RuntimeError(" ".join(" ".join(lines[first : first + 4]).split())[:300])


def compile_with(cuda: str, target: Path) -> dict[str, str]:
    """Compile to the file `target` and return CMake's account. Afresh: no cache can be stale."""
    with tempfile.TemporaryDirectory() as build:
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        python, tests = f"-DPython_EXECUTABLE={sys.executable}", "-DFASTDREAM_TESTS=OFF"
        run("cmake", "-S", str(ROOT), "-B", build, *generator, python, tests, f"-DFASTDREAM_CUDA={cuda}")
        run("cmake", "--build", build, "--parallel")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(next(Path(build).glob("_C.*")), target)
        return json.loads(Path(build, "build.json").read_text())


def build_native(mode: str, target: Path) -> dict[str, str]:
    """Try the ways of `mode` in turn. One that was named must work; auto is content with nothing."""
    why = missing_tool()
    for cuda in () if why else ATTEMPTS[mode]:
        try:
            result = compile_with(cuda, target)
            return result | {"why": why or result["why"]}
        except RuntimeError as error:
            why = why or f"compilation failed: {error}"
    if mode != "auto":
        raise SystemExit(f"fastdream: FASTDREAM_BUILD={mode} is not possible here: {why}")
    return {"built": "nothing", "why": why, "compilers": ""}


def record(package: Path, result: dict[str, str]) -> None:
    (package / "_build.json").write_text(json.dumps({"mode": MODE} | result) + "\n")
    why = f"; not more, because: {result['why']}" if result["why"] else ""
    print(f"fastdream: FASTDREAM_BUILD={MODE} built {result['built']}{why}", flush=True)


class BuildPy(build_py):
    def run(self) -> None:
        package = ROOT / "fastdream" if self.editable_mode else Path(self.build_lib, "fastdream")
        for stale in package.glob("_C.*.so" if self.editable_mode else "**/*.*"):
            stale.unlink()
        super().run()
        if WHY_NOT:
            record(package, {"built": "nothing", "why": WHY_NOT, "compilers": ""})


class BuildExt(build_ext):
    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        result = build_native(MODE, target)
        record(ROOT / "fastdream" if self.editable_mode else target.parent, result)


if MODE not in ATTEMPTS:
    raise SystemExit(f"FASTDREAM_BUILD={MODE!r} is unknown; it is one of {', '.join(ATTEMPTS)}")
WHY_NOT = missing_tool() if MODE == "auto" else f"FASTDREAM_BUILD={MODE}" if MODE == "off" else ""
EXTENSIONS = [] if WHY_NOT else [Extension("fastdream._C", sources=[], optional=True)]
if __name__ == "__main__":
    setup(ext_modules=EXTENSIONS, cmdclass={"build_py": BuildPy, "build_ext": BuildExt})
