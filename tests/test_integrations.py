"""Replacing another codebase's functions, and running its command."""

import os
import subprocess
import sys
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdream.integrations import __main__ as command
from fastdream.integrations.modules import layers_of
from fastdream.integrations.patching import Patch, Place, instead, outside_autocast, say_theirs, table_of

ROOT = Path(__file__).parents[1]


def decorated(function: Any) -> Any:
    @wraps(function)
    def outer(*args: Any) -> Any:
        return function(*args)

    return outer


class Parent:
    def inherited(self, x: Tensor) -> Tensor:
        return x + 1


class Theirs(Parent):
    def twice(self, x: Tensor) -> Tensor:
        return x * 2

    @decorated
    def thrice(self, x: Tensor) -> Tensor:
        return x * 3


def place(name: str, takes: tuple[str, ...] = ("self", "x"), note: str = "") -> Place:
    def ours(old: Any, self: Any, x: Tensor) -> Tensor:
        return old(self, x) + 100

    return Place(Theirs, name, takes, () if note else ("symlog", "mlp"), instead(ours), note)


NAMES = "twice", "thrice", "inherited"


def test_replaced_and_put_back():
    own, one = Theirs(), torch.ones(())
    before = [vars(Theirs).get(name) for name in NAMES]
    with Patch("theirs", "theirs 1.0", [place(name) for name in NAMES]) as patch:
        assert [getattr(own, name)(one).item() for name in NAMES] == [102, 103, 102]
        assert Parent().inherited(one) == 2, "the parent's stays"
        patch.undo()
        assert own.twice(one) == 2
    assert [vars(Theirs).get(name) for name in NAMES] == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (place("four"), r"theirs has no .*Theirs.four; this integration is made for theirs 1.0"),
        (
            place("thrice", ("self",)),
            r"Theirs.thrice takes \(self, x\), expected \(self\); .* for theirs 1.0",
        ),
    ],
    ids=["missing", "arguments"],
)
def test_all_or_nothing(wrong: Place, says: str):
    before = vars(Theirs)["twice"]
    with pytest.raises(ValueError, match=says):
        Patch("theirs", "theirs 1.0", [place("twice"), wrong])
    assert vars(Theirs)["twice"] is before


def test_a_second_patch_is_refused():
    with Patch("theirs", "theirs 1.0", [place("twice")]):
        with pytest.raises(ValueError, match=r"Theirs.twice is replaced already; undo\(\) the first"):
            Patch("theirs", "theirs 1.0", [place("twice")])
        assert Theirs().twice(torch.ones(())) == 102
    Patch("theirs", "theirs 1.0", [place("twice")]).undo()


def test_what_serves_what(native: ModuleType):
    with Patch("theirs", "theirs 1.0", [place("twice"), place("thrice", note="settings alone")]) as patch:
        first, *lines = patch.describe("cpu").splitlines()
    assert first == "theirs on fastdream's ops, on cpu:" and len(lines) == 2
    assert lines[0].endswith("Theirs.twice   symlog (native), mlp (native)")
    assert lines[1].endswith("Theirs.thrice  settings alone")


@pytest.mark.parametrize("compiled", [True, False])
def test_whose_function_runs(compiled: bool):
    function = outside_autocast(lambda x: x + 100, compiled)(lambda x: x + 1)
    one = torch.ones(())
    assert function(one) == function((one, one)[0]) == 101
    with torch.autocast("cpu", torch.bfloat16):
        assert function(one) == function(x=one) == 2
        assert outside_autocast(lambda pair: 100)(lambda pair: 1)((one, one)) == 1
    assert torch.compile(function, backend="eager", fullgraph=True)(one) == (101 if compiled else 2)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_theirs_and_said_once(half: torch.dtype, caplog: pytest.LogCaptureFixture):
    function = outside_autocast(lambda *x: x[-1] + 100)(lambda *x: x[-1] + 1)
    one = torch.ones((), dtype=half)
    say_theirs.cache_clear()
    for _ in range(3):
        assert function(None, one) == function(one) == 2
    assert function(one.double()) == 101 and len(caplog.records) == 1
    assert f"computed in {half} remain the other codebase's own code" in caplog.text


def test_a_table_is_chosen_once():
    assert table_of(torch.device("cpu")) is table_of(torch.device("cpu"))


def test_layers_of_modules():
    net = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4, eps=1e-3), nn.SiLU(), nn.Flatten(), nn.Linear(4, 2))
    first, last = layers_of(net, others=("Flatten",))
    assert first.weight is net[0].weight and first.bias is net[0].bias and first.scale is net[1].weight
    assert (first.norm, first.act, first.eps) == ("rms", "silu", 1e-3)
    assert (last.norm, last.act, last.scale) == ("none", "none", None)
    (alone,) = layers_of([nn.Linear(2, 2), nn.RMSNorm(2, elementwise_affine=False), nn.GELU("tanh")])
    assert (alone.scale, alone.act, alone.eps) == (None, "gelu", torch.finfo(torch.float32).eps)

    assert layers_of([nn.Linear(2, 2), nn.SiLU(), nn.Identity()])[0].act == "silu"


@pytest.mark.parametrize(
    "net",
    [
        [nn.Linear(2, 2), nn.SiLU(), nn.RMSNorm(2)],
        [nn.Linear(2, 2), nn.LayerNorm(2), nn.RMSNorm(2)],
        [nn.Linear(2, 2), nn.SiLU(), nn.Tanh()],
        [nn.LayerNorm(2), nn.Linear(2, 2)],
        [nn.Tanh(), nn.Linear(2, 2)],
    ],
    ids=lambda net: "-".join(type(module).__name__ for module in net),
)
def test_modules_in_an_order_that_no_op_has(net: list[nn.Module]):
    with pytest.raises(ValueError, match="no op has .* there: .* after weights"):
        layers_of(net)


@pytest.mark.parametrize(
    "module",
    [nn.Mish(), nn.GELU(), nn.ELU(2.0), nn.PReLU(), nn.BatchNorm1d(2), nn.Dropout()],
    ids=str,
)
def test_an_activation_that_no_op_has(module: nn.Module):
    with pytest.raises(ValueError, match=r"there is no op for .*undo\(\) the patch, or use ELU, GELU"):
        layers_of([nn.Linear(2, 2), module])


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a script that tells how it was started, and modules that r2dreamer's integration replaces."""
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "__init__.py").touch()
    for name in ("distributions", "dreamer", "networks", "optim.laprop", "rssm"):
        text = "import sys, types\nfolder = sys.modules.setdefault('stand', types.ModuleType('stand'))\n"
        text += f"folder.__path__ = [{str(ROOT / 'tests')!r}]\nfrom stand.r2dreamer_stand_in import modules\n"
        text += f"for k, v in vars(modules()[{name!r}]).items():\n    if k[0] != '_': globals()[k] = v\n"
        (tmp_path / f"{name.replace('.', '/')}.py").write_text(text)
    (tmp_path / "script.py").write_text(
        "import sys, rssm\nprint(sys.argv, __name__, sys.path[0], rssm.Deter.forward.__fastdream__)\n"
        "if sys.argv[-1] == 'fail': raise SystemExit(7)\n"
    )
    return tmp_path


def run(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "fastdream.integrations", *args]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("target", [("script.py",), ("-m", "script")], ids="-".join)
def test_a_script_and_a_module_run_patched(checkout: Path, target: tuple[str, ...]):
    done = run(checkout, "r2dreamer", *target, "env=x", "fail")
    assert done.returncode == 7, done.stderr
    first, *_, last = done.stdout.splitlines()
    assert first == "r2dreamer on fastdream's ops, on cpu:"
    name = str(checkout / "script.py") if target[0] == "-m" else "script.py"
    assert last == f"{[name, 'env=x', 'fail']} __main__ {checkout} r2dreamer"


def test_a_script_elsewhere_finds_its_own_modules(checkout: Path):
    done = run(checkout.parent, "r2dreamer", str(checkout / "script.py"))
    assert done.returncode == 0 and f"__main__ {checkout} r2dreamer" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "usage: python -m fastdream.integrations CODEBASE"),
        (["r2dreamer"], "usage: "),
        (["r2dreamer", "-m"], "usage: "),
        (
            ["dreamer9", "x.py"],
            "there is no integration for 'dreamer9', only for dreamerv3_torch, r2dreamer, sheeprl, torchrl",
        ),
        (["patching", "x.py"], "there is no integration for 'patching'"),
        (["r2dreamer", "nowhere.py"], "there is no file nowhere.py"),
    ],
)
def test_mistakes_are_said(args: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        command.main(args)
    out, err = capsys.readouterr()
    assert not out and says.partition(", torchrl")[0] in err


def test_a_folder_without_the_codebase(tmp_path: Path):
    (tmp_path / "script.py").write_text("raise AssertionError")
    done = run(tmp_path, "r2dreamer", "script.py")
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert done.stderr.startswith("r2dreamer is not found (No module named 'distributions'); run a script")


def test_help(capsys: pytest.CaptureFixture[str]):
    command.main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: ") and "Codebases: " in out and "r2dreamer, " in out and "torchrl" in out
    assert all(len(line) <= 120 for line in out.splitlines())
