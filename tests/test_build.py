"""The build: what setup.py decides, what CMake alone does, what wheels hold, and that each outcome is recorded."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fastdream
from fastdream import ops
from fastdream.ops.native import library as native_ops

ROOT = Path(__file__).parents[1]
SOURCES = (
    "setup.py",
    "pyproject.toml",
    "CMakeLists.txt",
    "MANIFEST.in",
    "LICENSE",
    "README.md",
    "csrc",
    "fastdream",
)


def setup_module_for(monkeypatch: pytest.MonkeyPatch, mode: str | None, **tools: bool) -> ModuleType:
    """setup.py as it is read with FASTDREAM_BUILD=mode on a machine that lacks the tools given as False."""
    monkeypatch.delenv("CXX", raising=False)
    if mode is None:
        monkeypatch.delenv("FASTDREAM_BUILD", raising=False)
    else:
        monkeypatch.setenv("FASTDREAM_BUILD", mode)
    compiler, cmake = tools.get("compiler", True), tools.get("cmake", True)
    monkeypatch.setattr(shutil, "which", lambda name: cmake if name == "cmake" else compiler)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: tools.get("pybind11", True) or None)
    spec = importlib.util.spec_from_file_location("fastdream_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("mode", "tools", "extensions", "why"),
    [
        (None, {}, 1, ""),
        ("auto", {"compiler": False}, 0, "no C++ compiler found"),
        ("auto", {"cmake": False}, 0, "cmake not found"),
        ("auto", {"pybind11": False}, 0, "pybind11 not found"),
        ("cpp", {"compiler": False}, 1, ""),
        ("cuda", {}, 1, ""),
        ("off", {}, 0, "FASTDREAM_BUILD=off"),
    ],
)
def test_what_is_planned(monkeypatch: pytest.MonkeyPatch, mode, tools, extensions: int, why: str):
    setup = setup_module_for(monkeypatch, mode, **tools)
    assert len(setup.EXTENSIONS) == extensions
    assert why == setup.WHY_NOT


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("", ""),
        ("clang++", ""),
        ("clang++ --gcc-toolchain=/opt/gcc", ""),
        ("/opt/my tools/c++", ""),
        ("g++-99 -m64", "CXX=g++-99 -m64 not found"),
        (" ", "CXX=  not found"),
    ],
)
def test_the_compiler_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch, named: str, why: str):
    setup = setup_module_for(monkeypatch, "auto")
    monkeypatch.setattr(shutil, "which", lambda name: name in ("clang++", "/opt/my tools/c++", "cmake"))
    monkeypatch.setenv("CXX", named)
    assert setup.missing_tool() == why


def test_unknown_mode_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        SystemExit, match="FASTDREAM_BUILD='gpu' is unknown; it is one of auto, cuda, cpp, off"
    ):
        setup_module_for(monkeypatch, "gpu")


@pytest.mark.parametrize(
    ("mode", "broken", "expected"),
    [
        ("auto", (), ("C++ and CUDA", "")),
        ("auto", ("AUTO",), ("C++", "compilation failed: AUTO")),
        ("auto", ("AUTO", "OFF"), ("nothing", "compilation failed: AUTO")),
        ("cpp", (), ("C++", "CUDA was not asked for")),
        ("cuda", (), ("C++ and CUDA", "")),
    ],
)
def test_ways_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode, broken, expected):
    setup = setup_module_for(monkeypatch, mode)

    def compile_with(cuda: str, target: Path) -> dict[str, str]:
        if cuda in broken:
            raise RuntimeError(cuda)
        what, why = ("C++", "CUDA was not asked for") if cuda == "OFF" else ("C++ and CUDA", "")
        return {"built": what, "why": why, "compilers": "some"}

    monkeypatch.setattr(setup, "compile_with", compile_with)
    result = setup.build_native(mode, tmp_path / "_C.so")
    assert (result["built"], result["why"]) == expected


@pytest.mark.parametrize("mode", ["cpp", "cuda"])
def test_what_was_asked_for_must_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: str):
    setup = setup_module_for(monkeypatch, mode, compiler=False)
    with pytest.raises(
        SystemExit, match=f"FASTDREAM_BUILD={mode} is not possible here: no C[+][+] compiler found"
    ):
        setup.build_native(mode, tmp_path / "_C.so")


def test_a_failure_is_told_by_its_error_lines(monkeypatch: pytest.MonkeyPatch):
    setup = setup_module_for(monkeypatch, "auto")
    lines = ["fine", "x.cpp:3: error:", "", "  no such", "", "  thing", "", "as this", "nor that"]
    script = f"print(*{lines}, sep='\\n'); raise SystemExit(1)"
    with pytest.raises(RuntimeError, match=r"^x.cpp:3: error: no such thing as this$"):
        setup.run(sys.executable, "-c", script)


def test_record_agrees_with_what_loads():
    record = native_ops.build_record()
    if not record:
        pytest.skip("this copy of fastdream was not installed by its setup.py")
    assert set(record) == {"mode", "built", "why", "compilers"}
    works = native_ops.available(torch.device("cpu")) is None
    assert works == (record["built"] != "nothing"), record
    if works:
        assert native_ops.C.version == fastdream.__version__
        assert native_ops.C.cuda == ("CUDA" in record["built"])


REMEDY = "with a C++ compiler, `FASTDREAM_BUILD=cpp pip install .` compiles it or shows why not"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (None, f"not compiled (no luck); {REMEDY}"),
        (
            SimpleNamespace(version="0.0"),
            f"compiled for version 0.0, this is {fastdream.__version__}; {REMEDY}",
        ),
    ],
)
def test_without_the_module_everything_says_so(monkeypatch: pytest.MonkeyPatch, module: object, reason: str):
    monkeypatch.setitem(sys.modules, "fastdream._C", module)
    monkeypatch.setattr(native_ops, "build_record", lambda: {"built": "nothing", "why": "no luck"})
    monkeypatch.setattr(native_ops, "C", None)
    monkeypatch.setattr(native_ops, "WHY_NOT", native_ops._load()[1])
    assert native_ops.available(torch.device("cpu")) == reason
    table = ops.load()
    assert table.lambda_return(*[torch.ones(1, 2)] * 4).tolist() == [[3, 2]]
    assert {row.reason for row in ops.table(table) if row.op == "lambda_return"} == {f"native: {reason}"}


def test_a_module_that_cannot_load_says_why(monkeypatch: pytest.MonkeyPatch):
    def fail(name: str) -> None:
        raise ImportError(f"{name}: wrong ELF class")

    monkeypatch.setattr(native_ops, "import_module", fail)
    assert native_ops._load() == (
        None,
        f"compiled, but cannot be loaded (fastdream._C: wrong ELF class); {REMEDY}",
    )


def copy_sources(to: Path) -> Path:
    """The files that a build reads, without what earlier builds left."""
    to.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "_C.*.so", "_build.json")
    for path in (ROOT / name for name in SOURCES if (ROOT / name).exists()):
        shutil.copytree(path, to / path.name, ignore=ignore) if path.is_dir() else shutil.copy(path, to)
    return to


def pip(python: str | Path, *args: str, mode: str = "auto") -> str:
    env = os.environ | {"FASTDREAM_BUILD": mode}
    done = subprocess.run([python, "-m", "pip", *args], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_off_makes_a_pure_wheel(tmp_path: Path):
    source = copy_sources(tmp_path / "source")
    pip(sys.executable, "wheel", "--no-deps", "-w", str(tmp_path), str(source), mode="off")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        record = json.loads(archive.read("fastdream/_build.json"))
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "fastdream").rglob("*.py")}
    assert modules <= files and "fastdream/py.typed" in files
    assert record == {"mode": "off", "built": "nothing", "why": "FASTDREAM_BUILD=off", "compilers": ""}


@pytest.mark.slow
def test_sdist_builds_isolated_and_loads_without_torch(tmp_path: Path):
    """From a source archive, in an environment that has nothing: the compiled module itself needs no torch."""
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler found")
    python = tmp_path / "env" / "bin" / "python"
    venv.create(tmp_path / "env", with_pip=True)
    pip(python, "install", "build")
    source = copy_sources(tmp_path / "source")
    subprocess.run(
        [python, "-m", "build", "--sdist", "-o", tmp_path, source], check=True, capture_output=True
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    pip(python, "install", "--no-deps", str(archive), mode="cpp")
    code = "import fastdream._C as c, sys; print(c.version, c.cuda, 'torch' in sys.modules)"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [fastdream.__version__, "False", "False"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("compiler", "cuda"), [("c++", "AUTO"), ("clang++", "OFF")])
def test_cmake_alone_builds_and_passes_its_tests(tmp_path: Path, compiler: str, cuda: str):
    for tool in ("cmake", compiler):
        if not shutil.which(tool):
            pytest.skip(f"{tool} not found")
    configure = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        tmp_path,
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCMAKE_CXX_COMPILER={compiler}",
        f"-DFASTDREAM_CUDA={cuda}",
        "-DFASTDREAM_WERROR=ON",
    ]
    for command in (configure, ["cmake", "--build", tmp_path], ["ctest", "--test-dir", tmp_path]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "100% tests passed" in done.stdout
