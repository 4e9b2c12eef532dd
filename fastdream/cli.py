"""From a command line to settings: task, agent, preset, size and variant choose the defaults, flags override them."""

import argparse
import dataclasses
import inspect
import os
import re
import shutil
import textwrap
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

from fastdream import agents, checkpoint, presets, rundir
from fastdream import config as configs
from fastdream.config import Config
from fastdream.datasets import shows_pictures
from fastdream.unread import not_for, refuse_unread

CHOOSERS = ("task", "preset", "size", "variant", "agent", "dataset")
DRY_RUN = "Build everything, make the first update, print memory and parameters, and stop."


@dataclass(frozen=True)
class Parsed:
    """What a command line asks for."""

    config: Config
    dry_run: bool


def parse(args: Sequence[str]) -> Parsed:
    """Settings of a training command.

    Prints and exits for -h, --help and `--preset list`, and with code 2 for a flag that does not exist or has a
    wrong value, with the nearest one. Raises ValueError for an unknown task, agent, preset, size or variant, and
    for a setting that nothing would read.
    """
    if args and not args[0].startswith("-"):
        raise ValueError(f"{args[0]!r} is no flag: did you mean --task {args[0]}?")
    chosen = choosers(args)
    if chosen["preset"] == "list":
        print(presets.describe(chosen["agent"] or Config.agent))
        raise SystemExit(0)
    saved = saved_config(chosen["logdir"])
    base = defaults(saved, chosen)
    if "-h" in args:
        print(short_help(base, width=min(100, shutil.get_terminal_size().columns)))
        raise SystemExit(0)
    default = command_of(type(base.suite), type(base.dreamer))(**shallow(base))
    # Each agent has settings of its own, which --help explains with its name alone.
    agent = "" if base.agent == Config.agent else f" --agent {base.agent}"
    command = read(f"fastdream.train{agent}", args, default)
    config = Config(**{name: getattr(command, name) for name in shallow(base)})
    refuse_unread(base, config)
    return Parsed(dataclasses.replace(config, dataset=lasting(config.dataset)), command.dry_run)


# tyro keeps its registries for the whole process: of two threads that read flags at once, one would fail.
READING = threading.Lock()


def read(module: str, args: Sequence[str], default: Any) -> Any:
    """The flags of `python -m <module>`, as a dataclass like the default; exits for --help and for what is wrong."""
    import tyro

    with READING:
        return tyro.cli(
            type(default), args=list(args), default=default, prog=f"python -m {module}", registry=numbers()
        )


def lasting(dataset: str) -> str:
    """A dataset's path without links, as runs/latest is soon another run; as it was given if there is no such path."""
    path = os.path.expanduser(dataset)
    return os.path.realpath(path) if dataset and os.path.exists(path) else dataset


def numbers() -> Any:
    """How whole numbers are read from flags: 1e6 is one, too."""
    from tyro import constructors

    registry = constructors.ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: constructors.PrimitiveTypeInfo) -> constructors.PrimitiveConstructorSpec[int] | None:
        if info.type is not int:
            return None
        return constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="INT",
            instance_from_str=lambda texts: whole(texts[0]),
            is_instance=lambda value: isinstance(value, int),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def whole(text: str) -> int:
    """A whole number, also as 1e6; ValueError for any other."""
    number = Decimal(text) if re.fullmatch(r"\d+(\.\d+)?[eE]\+?\d{1,2}", text) else None
    return int(number) if number is not None and number == int(number) else int(text)


def defaults(saved: Config | None, chosen: dict[str, str]) -> Config:
    """What flags are defaults of: the run that --logdir holds, unless a flag that chooses defaults is given too."""
    if saved is None:
        task, preset, size, variant, agent, dataset = (chosen[name] for name in CHOOSERS)
        if dataset and not preset:
            preset = "offline_vision" if agent in agents.STAGED or shows_pictures(dataset) else "offline"
        return presets.resolve(task, preset, size, variant or "current", agent or Config.agent, dataset)
    if not any(chosen[name] for name in CHOOSERS):
        return saved
    if chosen["task"] not in ("", saved.task) or chosen["agent"] not in ("", saved.agent):
        return defaults(None, chosen)
    return presets.resolve(*(chosen[name] or getattr(saved, name) for name in CHOOSERS))


def command_of(options: type, dreamer: type) -> type:
    """`Config` with the options of one suite and of one agent, and what a command takes beside a run's settings."""
    import tyro

    suite = Annotated[options, tyro.conf.arg(help="Options of the task's suite.")]  # type: ignore[valid-type]
    agent = Annotated[dreamer, tyro.conf.arg(help="The agent's own settings.")]  # type: ignore[valid-type]
    fields = [
        ("suite", suite, dataclasses.field(default_factory=options)),
        ("dreamer", agent, dataclasses.field(default_factory=dreamer)),
        ("dry_run", Annotated[bool, tyro.conf.arg(help=DRY_RUN)], dataclasses.field(default=False)),
    ]
    namespace = {"__doc__": Config.__doc__}
    return dataclasses.make_dataclass("Command", fields, bases=(Config,), namespace=namespace, frozen=True)


def choosers(args: Sequence[str]) -> dict[str, str]:
    """The flags that choose the defaults of all others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in (*CHOOSERS, "logdir"):
        parser.add_argument(f"--{name}", default="")
    try:
        return vars(parser.parse_known_args(args)[0])
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from error


def shallow(config: Config) -> dict[str, object]:
    """Fields of a configuration; the nested ones as they are."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}


def saved_config(logdir: str) -> Config | None:
    """Settings of the run that a directory holds, None if it holds none; ValueError if they alone are missing."""
    path = Path(logdir).expanduser()
    if not logdir:
        return None
    if rundir.there(path / "config.json"):
        return configs.load(path)
    if checkpoint.any_in(path / "ckpt"):
        raise ValueError(
            f"{logdir} holds checkpoints, but not the config.json that says of what: bring it back, or choose "
            "another --logdir"
        )
    return None


def refuse_differences(asked: Config) -> None:
    """Raise ValueError that lists every setting that a run which --logdir holds may not change."""
    saved = saved_config(asked.logdir)
    if saved is None or not checkpoint.any_in(Path(asked.logdir).expanduser() / "ckpt"):
        return
    lines = configs.differences(saved, asked)
    if lines:
        listed = "\n  ".join(lines)
        raise ValueError(
            f"{asked.logdir} holds a run with other settings (saved -> asked):\n  {listed}\n"
            "Leave those flags out to resume it, or choose another --logdir."
        )


def short_help(config: Config, width: int) -> str:
    """Help that fits a screen: the settings that are not nested, with their values, and the names of the others.

    Without those that the agent, or what it learns from, has no use for.
    """
    docs, hidden = field_docs(Config), not_for(config)
    flags, groups = {}, {}
    for name, value in shallow(config).items():
        if name in hidden:
            continue
        if dataclasses.is_dataclass(value):
            names = [field.name for field in dataclasses.fields(value)]
            groups[f"--{name}.*"] = ", ".join(key for key in names if f"{name}.{key}" not in hidden)
        else:
            default = "" if value == "" else f" (default: {value})"
            flags[f"--{name.replace('_', '-')}"] = docs[name] + default
    flags["--dry-run"] = DRY_RUN
    return "\n".join(
        [
            "usage: python -m fastdream.train [--task SUITE_NAME] [OPTIONS]",
            "",
            *textwrap.wrap(str(inspect.getdoc(Config)), width),
            "",
            *table(flags, width),
            "",
            *textwrap.wrap(
                f"More for {config.task or config.dataset}, such as --log.every; --help explains them all:",
                width,
            ),
            *table(groups, width),
        ]
    )


def table(rows: dict[str, str], width: int) -> list[str]:
    """Names and what is said of them, in two columns."""
    left = max(map(len, rows)) + 4
    return [
        line
        for name, text in rows.items()
        for line in textwrap.wrap(
            text,
            width,
            initial_indent=f"  {name}".ljust(left),
            subsequent_indent=" " * left,
            break_on_hyphens=False,
        )
    ]


def field_docs(cls: type) -> dict[str, str]:
    """The text below each field of a dataclass and of its parents."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        pairs = re.findall(r'^    (\w+): [^\n]*\n    """(.*?)"""', inspect.getsource(base), re.M | re.S)
        docs |= {name: " ".join(text.split()) for name, text in pairs}
    return docs
