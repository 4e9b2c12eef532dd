"""The rules of the house, read off the source: who imports whom, sizes, no waiting for the device, no dead options."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fastdream"

# Modules by layer; a layer may import itself and those that it names. What stands nowhere is plumbing.
LAYERS = {
    "ops": {"ops"},
    "spaces": {"spaces"},
    "parts": {
        "nets",
        "casts",
        "convs",
        "encoder",
        "decoder",
        "cores",
        "latents",
        "heads",
        "policy",
        "distributions",
        "normalize",
        "optim",
        "transfer",
        "adam",
        "annealing",
        "keras",
        "strided",
        "pages",
        "generators",
    },
    "model": {"rssm", "behavior", "openloop", "official", "dreamer"},
    "agents": {"agents"},
    "integrations": {"integrations"},
    "process": {"allocator"},
    "top": {
        *("run", "train", "summary", "eval", "config", "ahead", "precompile"),
        "presets",
        "presets_dreamer_v1",
        "presets_dreamer_v2",
        "presets_dreamer_v3",
        "presets_shared",
        "presets_offline_dv2",
        "offline",
        "unread",
        "presets_world_models",
        "stages",
        "doctor",
        "cli",
        "build",
        "learner",
        "replay_device",
        "scores",
        "restore",
    },
}
MAY_IMPORT = {
    "ops": set(),
    "spaces": set(),
    "parts": {"ops", "spaces"},
    "model": {"ops", "spaces", "parts"},
    "agents": {"ops", "spaces", "parts", "model"},
    "plumbing": {"spaces"},
    "integrations": {"ops", "process"},
    "top": {"ops", "spaces", "parts", "model", "agents", "plumbing", "process"},
}
# Packages beyond the standard library that a layer may import, anywhere in its files; None: no restriction.
THIRD_PARTY = {
    "ops": {"torch", "triton"},  # the latter in ops.triton alone
    "spaces": {"numpy"},
    "parts": {"torch", "numpy"},
    "model": {"torch", "numpy"},
    "agents": {"torch", "numpy"},
    "integrations": {"torch"},  # and what they are for, when it is there
}
MODEL_CODE = ("ops", "parts", "model", "agents")

# Where model code may wait for the device: (file, function) and why.
MAY_SYNC = {
    ("transfer.py", "back"): "actions leave for the environments",
    ("transfer.py", "arrays"): "what has arrived in host memory",
    ("generators.py", "restore"): "a checkpoint is loaded before training",
    ("openloop.py", "open_loop"): "a report is pictures for people, outside of training",
    ("openloop.py", "clip"): "likewise",
    ("official.py", "to_official"): "conversion of checkpoints",
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def layer_of(module: str) -> str:
    """Layer of a dotted module inside fastdream, "" for the package itself."""
    top = module.partition(".")[0]
    return next((layer for layer, modules in LAYERS.items() if top in modules), "plumbing" if top else "")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").strip(".")


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, each name of `from x import name` as x.name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", sources("fastdream"), ids=module_of)
def test_layers(path: Path):
    module = module_of(path)
    layer = layer_of(module)
    allowed = MAY_IMPORT.get(layer, set()) | {layer, ""}
    for name in imports(path):
        package, _, rest = name.partition(".")
        if package == "fastdream":
            rest = "" if rest in ("__version__", "__path__") else rest
            assert layer_of(rest) in allowed, f"{module} ({layer}) imports {name} ({layer_of(rest)})"


@pytest.mark.parametrize("path", sources("fastdream"), ids=module_of)
def test_third_parties(path: Path):
    allowed = THIRD_PARTY.get(layer_of(module_of(path)))
    packages = {name.partition(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"fastdream"}
    assert allowed is None or packages <= allowed, packages - (allowed or set())
    assert layer_of(module_of(path)) or not packages, f"the package itself imports {packages}"
    assert "triton" not in packages or module_of(path).startswith("ops.triton."), "imports Triton at once"


def test_agents_do_not_know_each_other():
    names = {path.stem for path in (PACKAGE / "agents").glob("*.py")} - {"__init__"}
    families = {name for name in names if not any(name.startswith(f"{other}_") for other in names)}
    for name in names:
        own = next(family for family in families if name == family or name.startswith(f"{family}_"))
        for imported in imports(PACKAGE / "agents" / f"{name}.py"):
            other = re.match(r"fastdream\.agents\.(\w+)", imported)
            known = not other or other[1] == own or other[1].startswith(f"{own}_")
            assert known, f"{name} imports {imported}"
    assert families == {"dreamer_v1", "dreamer_v2", "dreamer_v3", "world_models"}


def test_files_are_short():
    files = sources("fastdream", "tests", "benchmarks") + sorted((ROOT / "csrc").rglob("*.*"))
    limits = dict.fromkeys(files, 300) | {ROOT / "setup.py": 100}
    lengths = {path: len(path.read_text().splitlines()) for path in limits}
    too_long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > limits[path]}
    assert not too_long


def calls_by_function(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file with the name of the innermost function around it."""

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, ast.Call]]:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        if isinstance(node, ast.Call):
            yield function, node
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    return visit(ast.parse(path.read_text()), "")


def waits_for_device(call: ast.Call) -> bool:
    """`x.item()` and the like, and bool(x); x.bool() only converts."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("item", "cpu", "tolist", "numpy")
    return isinstance(call.func, ast.Name) and call.func.id == "bool"


def model_files() -> list[Path]:
    return [path for path in sources("fastdream") if layer_of(module_of(path)) in MODEL_CODE]


@pytest.mark.parametrize("path", model_files(), ids=module_of)
def test_model_code_never_waits_for_the_device(path: Path):
    name = path.relative_to(PACKAGE).as_posix()
    found = {
        (name, function): ast.unparse(call)
        for function, call in calls_by_function(path)
        if waits_for_device(call)
    }
    assert not {place: call for place, call in found.items() if place not in MAY_SYNC}


@pytest.mark.parametrize("path", model_files(), ids=module_of)
def test_model_code_uses_no_distribution_objects(path: Path):
    assert not [name for name in imports(path) if name.startswith("torch.distributions")]
    assert "torch.distributions" not in path.read_text()


def test_exceptions_from_the_rules_are_still_needed():
    needed = {
        (path.relative_to(PACKAGE).as_posix(), function)
        for path in model_files()
        for function, call in calls_by_function(path)
        if waits_for_device(call)
    }
    assert set(MAY_SYNC) <= needed, set(MAY_SYNC) - needed
    known = {module_of(path).partition(".")[0] for path in sources("fastdream")}
    assert LAYERS["ops"] | LAYERS["parts"] | LAYERS["model"] <= known


def is_dataclass(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def test_every_setting_is_read():
    """A field of a dataclass that is read nowhere outside of its class is an option that does nothing."""
    fields: dict[str, set[str]] = {}
    read: dict[str, set[str]] = {}  # name -> classes (or "") in whose bodies it is read
    for path in sources("fastdream"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if is_dataclass(node):
                names = {
                    s.target.id
                    for s in node.body
                    if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
                }
                fields.setdefault(node.name, set()).update(names)
        for owner, attribute in reads(tree, ""):
            read.setdefault(attribute, set()).add(owner)
    dead = {
        f"{owner}.{name}"
        for owner, names in fields.items()
        for name in names
        if not read.get(name, set()) - {owner}
    }
    assert not dead, sorted(dead)


def reads(node: ast.AST, owner: str) -> Iterator[tuple[str, str]]:
    """Attributes that are read, with the dataclass in whose body that happens."""
    if is_dataclass(node):
        owner = node.name
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        yield owner, node.attr
    for child in ast.iter_child_nodes(node):
        yield from reads(child, owner)


# What nothing in the package needs, for whoever uses it as a library.
OFFERED = {"from_official", "read_checkpoint"}


def test_nothing_is_defined_that_nobody_uses():
    """Of classes, functions and constants of modules, and of members of classes; tests alone are no use."""
    trees = {path: ast.parse(path.read_text()) for path in sources("fastdream", "benchmarks")}
    used = set(OFFERED)
    for node in (node for tree in trees.values() for node in ast.walk(tree)):
        if isinstance(node, ast.ImportFrom):
            used |= {alias.name for alias in node.names}
        elif not isinstance(getattr(node, "ctx", None), ast.Store):
            named = (getattr(node, name, None) for name in ("id", "attr", "arg", "value"))
            used |= {name for name in named if isinstance(name, str)}
    for path in sources("fastdream"):
        classes = [node for node in trees[path].body if isinstance(node, ast.ClassDef)]
        for node in (part for tree in (trees[path], *classes) for part in tree.body):
            target = getattr(node, "target", None) or getattr(node, "targets", [None])[0]
            name = getattr(node, "name", getattr(target, "id", "__"))
            assert name.startswith("__") or name in used, f"{module_of(path)}: {name} is used nowhere"


def test_no_commented_out_code_in_csrc():
    pattern = re.compile(r"^\s*(//|#\s).*[;{}]\s*$")
    files = [*(ROOT / "csrc").rglob("*.*"), ROOT / "CMakeLists.txt"]
    dead = [
        f"{path.name}: {line}"
        for path in files
        for line in path.read_text().splitlines()
        if pattern.match(line)
    ]
    assert not dead


@pytest.mark.parametrize("path", sources("tests"), ids=lambda path: path.stem)
def test_every_test_can_fail(path: Path):
    """Each test asserts, expects an exception, or calls a helper that says it checks."""
    word = re.compile(r"\bassert|raises|check")
    tests = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    idle = [
        test.name for test in tests if test.name.startswith("test_") and not word.search(ast.unparse(test))
    ]
    assert not idle
