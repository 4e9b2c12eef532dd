"""Kernels compiled beside a run's start: those that it launches, all of them, and nothing else depends on it."""

import io
import json
import os
import subprocess
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastdream import agents, ahead, precompile
from fastdream.config import Config, ReplayConfig, TrainConfig
from fastdream.spaces import Spaces

from .agent_tools import CONTINUOUS, DISCRETE, IMAGE, MIXED, VECTOR
from .test_triton_compile import run

CUDA = torch.device("cuda")


def settings(agent: str, **changes: Any) -> Config:
    """Of a small agent with a small batch."""
    known = agents.settings(agent)
    dreamer = replace(known.size(known.Config(imag_length=2), "debug"), **changes)
    return Config(agent=agent, dreamer=dreamer, train=TrainConfig(batch_size=4, batch_length=5))


def wanted(agent: str, obs: Spaces, act: Spaces, **changes: Any) -> dict[str, Any]:
    return json.loads(ahead.request(settings(agent, **changes), obs, act, 90))


def test_tensors_without_memory_lead_to_the_kernels_of_real_ones():
    requests = {
        "DreamerV3, images": wanted("dreamer_v3", IMAGE, DISCRETE),
        "DreamerV3, vectors": wanted("dreamer_v3", VECTOR, MIXED, dtype="float32"),
        "DreamerV2": wanted("dreamer_v2", IMAGE, DISCRETE),
        "DreamerV1": wanted("dreamer_v1", VECTOR, CONTINUOUS),
        "Offline DV2": wanted("offline_dv2", VECTOR, CONTINUOUS),
    }
    given = json.dumps([*requests.values()])
    found = dict(zip(requests, run("triton_ahead", "found", given=given), strict=True))
    assert {name: each["more"] for name, each in found.items()} == dict.fromkeys(requests, [])
    assert all(each["found"] for each in found.values()) and found["DreamerV3, images"]["found"] > 80, found


def test_the_command_fills_tritons_cache_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    given = json.dumps(wanted("dreamer_v1", {"position": VECTOR["position"]}, CONTINUOUS))
    hits = run("triton_ahead", "command", given=given)
    assert len(hits) > 5 and all(hits)
    assert [path.name for path in tmp_path.glob("fastdream-*")] == [ahead.marker(given).name]


@pytest.mark.parametrize(("capability", "compiled"), [(90, [4]), (89, [4, 3, 2])])
def test_a_gpu_of_little_memory_gets_kernels_of_as_many_stages_as_fit(capability, compiled, monkeypatch):
    from fastdream.ops.triton import ahead as kernels
    from fastdream.ops.triton import library, pointwise

    found: list[int] = []

    def warmup(x: int, *, grid: tuple[int], num_stages: int) -> Any:
        found.append(num_stages)
        return SimpleNamespace(metadata=SimpleNamespace(shared=48 * 1024 * num_stages))

    monkeypatch.setattr(library, "capability", lambda device: capability)
    monkeypatch.setattr(pointwise, "pointwise_fwd_kernel", SimpleNamespace(warmup=warmup))
    kernels.compile_kernel(kernels.Work(pointwise.__name__, "pointwise_fwd_kernel", (1,), {"num_stages": 4}))
    assert found == compiled


@pytest.mark.parametrize("driver", [True, False])
def test_what_launches_a_kernel_is_compiled_with_it_where_a_c_compiler_makes_it(driver, monkeypatch):
    """By Triton 3.6, and beside a driver."""
    from triton.backends.nvidia import driver as nvidia

    from fastdream.ops.triton import ahead as kernels
    from fastdream.ops.triton import library, pointwise

    def libcuda_dirs() -> list[str]:
        assert driver, "libcuda.so cannot found!"
        return ["/usr/lib"]

    made = SimpleNamespace(src="source", metadata=SimpleNamespace(shared=0))
    work = kernels.Work(pointwise.__name__, "pointwise_fwd_kernel", (1,), {"num_stages": 1})
    compiled: list[Any] = []
    monkeypatch.setattr(library, "capability", lambda device: 90)
    monkeypatch.setattr(pointwise, work.name, SimpleNamespace(warmup=lambda *_, **__: made))
    monkeypatch.setattr(nvidia, "make_launcher", object(), raising=False)
    monkeypatch.setattr(nvidia, "libcuda_dirs", libcuda_dirs)
    monkeypatch.setattr(nvidia, "CudaLauncher", lambda *given: compiled.append(given))
    kernels.launchers_are_compiled.cache_clear()
    kernels.compile_kernel(work)
    kernels.launchers_are_compiled.cache_clear()
    assert compiled == [(made.src, made.metadata)] * driver


@pytest.mark.gpu
@pytest.mark.parametrize("agent", ["dreamer_v3", "dreamer_v2", "dreamer_v1"])
def test_a_gpu_finds_all_that_was_compiled_beside_it(agent: str, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    major, minor = torch.cuda.get_device_capability()
    given = ahead.request(settings(agent), IMAGE, CONTINUOUS, 10 * major + minor)
    assert run("triton_ahead", "device", given=given) == []


def test_kernels_are_compiled_for_a_gpu_that_is_not_here(monkeypatch, capsys, tmp_path):
    asked: list[str] = []

    def compiling(command: list[str], *, input: str, env: dict[str, str], **_: Any) -> Any:
        assert command == ahead.COMMAND and env["CUDA_VISIBLE_DEVICES"] == ""
        asked.append(input)
        return SimpleNamespace(returncode=len(asked) - 1)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", compiling)
    flags = ["--task", "dummy_vector", "--preset", "debug", "--train.batch-size", "3"]
    precompile.main(["8.6", *flags])
    assert capsys.readouterr().out == f"for compute capability 8.6; they are in {tmp_path}\n"
    given = json.loads(asked[0])
    assert given["capability"] == 86 and given["batch"][0] == 3 and given["agent"] == "dreamer_v3"
    with pytest.raises(SystemExit) as stopped:
        precompile.main(["8.6", *flags])
    assert stopped.value.code == 1 and "not compiled" in capsys.readouterr().err


def test_without_a_capability_the_command_says_how_it_is_used(monkeypatch, capsys):
    for args, status in ((["-h"], 0), (["--help"], 0), ([], 2)):
        with pytest.raises(SystemExit) as stopped:
            precompile.main(args)
        assert stopped.value.code == status and capsys.readouterr().out.startswith("python -m fastdream.prec")
    assert json.loads(precompile.request("8.0", ["--task", "dummy_vector"]))["capability"] == 80
    monkeypatch.setattr(precompile.triton, "missing", lambda: "no Triton here")
    with pytest.raises(SystemExit) as stopped:
        precompile.main(["8.0", "--task", "dummy_vector"])
    assert stopped.value.code == 2 and capsys.readouterr().err == "error: no Triton here\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_by_hand_another_command_is_named(terminal: bool, monkeypatch):
    stdin = SimpleNamespace(isatty=lambda: terminal, read=lambda: "")
    monkeypatch.setattr(ahead.sys, "stdin", stdin)
    with pytest.raises(SystemExit, match="by hand, use python -m fastdream.precompile"):
        ahead.main()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["90"], "'90' is no compute capability: give one such as"),
        (["--task", "dummy_vector"], "'--task' is no compute capability"),
        (["7.5", "--task", "dummy_vector"], "kernels need compute capability 8.0, asked for is 7.5"),
        (["9.0", "--task", "dummy_vectro"], "dummy_vectro"),
        (
            ["9.0", "--task", "dummy_vector", "--ops", "reference"],
            "--ops reference takes no kernels of Triton",
        ),
        (
            ["9.0", "--agent", "world_models", "--task", "dummy_image"],
            "--agent world_models: it has few kernels",
        ),
    ],
)
def test_what_cannot_be_compiled_for_is_refused(args: list[str], words: str, capsys):
    with pytest.raises(SystemExit) as stopped:
        precompile.main(args)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


class Process:
    """In the place of the one that compiles: what it was given, and what became of it."""

    made: list["Process"]
    status: int | None = None
    words = ""

    def __init__(self, command: list[str], *, stderr: Any, env: dict[str, str], **_: Any) -> None:
        self.command, self.variables, self.stdin, self.pid = command, env, Pipe(), len(self.made) + 1
        stderr.write(self.words)
        self.made.append(self)

    def poll(self) -> int | None:
        return self.status

    def wait(self) -> None:
        pass


class Pipe(io.StringIO):
    """Whose text can still be read when it is closed."""

    text = ""

    def close(self) -> None:
        self.text = self.getvalue()
        super().close()


@pytest.fixture
def processes(monkeypatch, tmp_path) -> list[Process]:
    """Those that are started on a machine with a GPU and eight cores."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(ahead.triton, "available", lambda device: None)
    monkeypatch.setattr(ahead, "cores", lambda: 8)
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(Process, "made", [], raising=False)
    return Process.made


@pytest.fixture
def killed(monkeypatch) -> list[int]:
    """Groups of processes that were ended."""
    groups: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda group, signal: groups.append(group))
    return groups


def test_beside_a_run_a_process_without_a_gpu_compiles_until_the_run_ends(processes, killed, recwarn):
    config = settings("dreamer_v3")
    with ahead.beside(config, VECTOR, DISCRETE, CUDA):
        (process,) = processes
        assert json.loads(process.stdin.text) == wanted("dreamer_v3", VECTOR, DISCRETE)
        assert process.command[-2:] == ["-m", "fastdream.ahead"]
        assert process.variables["CUDA_VISIBLE_DEVICES"] == "" and "TRITON_INTERPRET" not in process.variables
        assert not killed
    assert killed == [process.pid] and not recwarn


def test_a_process_that_has_compiled_all_is_left_alone(processes, killed, monkeypatch, recwarn):
    monkeypatch.setattr(Process, "status", 0)
    with ahead.beside(settings("dreamer_v3"), VECTOR, DISCRETE, CUDA):
        pass
    assert len(processes) == 1 and not killed and not recwarn


def test_a_process_that_failed_is_warned_of_in_a_line(processes, killed, monkeypatch):
    monkeypatch.setattr(Process, "status", 1)
    monkeypatch.setattr(
        Process, "words", "Traceback (most recent call last):\n  ...\nValueError: no such thing\n"
    )
    warned = pytest.warns(
        UserWarning, match="not compiled beside the run's start: ValueError: no such thing$"
    )
    with warned, ahead.beside(settings("dreamer_v3"), VECTOR, DISCRETE, CUDA):
        pass
    assert not killed


@pytest.mark.parametrize("why", ["no GPU", "reference", "few cores", "done before", "no Triton"])
def test_no_process_is_started_where_it_has_nothing_to_do(why, processes, monkeypatch):
    config, device = settings("dreamer_v3"), CUDA
    if why == "no GPU":
        device = torch.device("cpu")
    elif why == "reference":
        config = replace(config, ops="reference")
    elif why == "few cores":
        monkeypatch.setattr(ahead, "cores", lambda: 2)
    elif why == "done before":
        path = ahead.marker(ahead.request(config, VECTOR, DISCRETE, 90))
        path.parent.mkdir(exist_ok=True)
        path.touch()
    else:
        monkeypatch.setattr(ahead.triton, "available", lambda device: "Triton is not installed")
    with ahead.beside(config, VECTOR, DISCRETE, device):
        assert not processes


def test_a_request_is_another_where_other_kernels_may_be_launched_and_there_alone():
    def name(config: Config, obs: Spaces = VECTOR, capability: int = 90) -> str:
        return ahead.marker(ahead.request(config, obs, DISCRETE, capability)).name

    config = settings("dreamer_v3")
    same = replace(config, seed=7, steps=5, logdir="elsewhere", replay=ReplayConfig(capacity=7_000))
    assert name(same) == name(config)
    others = [
        name(replace(config, train=replace(config.train, batch_size=5))),
        name(replace(config, env=replace(config.env, count=3))),
        name(settings("dreamer_v3", imag_length=4)),
        name(settings("dreamer_v2")),
        name(config, IMAGE),
        name(config, capability=80),
    ]
    assert len({name(config), *others}) == 1 + len(others)
