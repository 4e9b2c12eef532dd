"""python -m fastdream.datasets: look at a dataset, or write it as a Minari dataset."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
import tyro.extras

from fastdream import entry
from fastdream.datasets import Survey, find, survey
from fastdream.datasets.export import export
from fastdream.datasets.runs import Run

Dataset = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
Id = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]


@dataclass(frozen=True)
class Check:
    """Read all of a dataset: what it holds, or everything that is wrong with it."""

    dataset: Dataset
    """A folder, a file, a run, or minari:<id>."""
    json: bool = False
    """Print it as one JSON object."""


@dataclass(frozen=True)
class Export:
    """Write a run's replay, or any other dataset, as a Minari dataset."""

    dataset: Dataset
    """A run, or a folder or file with a dataset."""
    name: Id
    """Its id there: (namespace/)(environment/)name-v0."""
    root: str = ""
    """Folder that keeps it; where Minari keeps all of them if not given."""
    jpeg: bool = False
    """Pack pictures as JPEG, which is smaller and changes them."""


def main(args: Sequence[str] | None = None) -> None:
    """The command. Exits with 2 after a mistake of its user or for a dataset that is not sound."""
    commands: dict[str, Callable[..., Check | Export]] = {"check": Check, "export": Export}
    command = tyro.extras.subcommand_cli_from_dict(commands, args=args, prog="python -m fastdream.datasets")
    try:
        check(command) if isinstance(command, Check) else write(command)
    except ValueError as error:
        entry.fail(str(error))


def check(command: Check) -> None:
    """Print what the dataset holds."""
    source = find(command.dataset)
    facts = survey(source)
    if command.json:
        print(json.dumps({"layout": source.layout, **facts.summary()}))
    else:
        print(f"{source.layout}: {facts}\n{describe(facts)}")


def describe(facts: Survey) -> str:
    """The spaces, a line each."""
    named = [("observes", key, space) for key, space in facts.obs_space.items()]
    named += [("acts", key, space) for key, space in facts.act_space.items()]
    return "\n".join(
        f"{what:9} {key}: {space.kind} {list(space.shape)}{f' of {space.classes}' * bool(space.classes)}"
        for what, key, space in named
    )


def write(command: Export) -> None:
    """Write the Minari dataset, and say how it is learned from."""
    source = find(command.dataset)
    task = source.task if isinstance(source, Run) else ""
    root = Path(command.root) if command.root else None
    facts = export(source, command.name, root=root, jpeg=command.jpeg, task=task)
    where = root / command.name if root else f"minari:{command.name}"
    print(f"wrote {facts}\nto learn from it: python -m fastdream.train --dataset {where}")


if __name__ == "__main__":
    entry.run(main)
