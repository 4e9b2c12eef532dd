"""From names to settings: task, preset, size, variant and agent. The presets of each agent are in a file of its own."""

from collections.abc import Mapping
from dataclasses import fields, replace
from importlib import import_module
from typing import Any

from fastdream import agents
from fastdream.config import Config
from fastdream.envs import options_of, suite_of
from fastdream.presets_dreamer_v3 import nature

VARIANTS = ("current", "nature2024")


def catalogue(agent: str) -> Any:
    """The module of an agent's presets: PRESETS by name, SUITES and OPTIONS.

    SUITES says which preset a task starts from: by its name, or by its suite, which is what stands before the first
    underscore. OPTIONS are those of the suite that differ from its defaults, by preset and variant.
    """
    return import_module(f"fastdream.presets_{agent}")


def preset_of(task: str, agent: str = "dreamer_v3") -> str:
    """The preset that a task starts from, if none is given; `gym` if its suite has none, `offline` without that."""
    known = catalogue(agent)
    suite = known.SUITES.get(task) or known.SUITES.get(suite_of(task))
    return suite or ("gym" if "gym" in known.PRESETS else "offline")


def resolve(
    task: str = "",
    preset: str = "",
    size: str = "",
    variant: str = "current",
    agent: str = "dreamer_v3",
    dataset: str = "",
) -> Config:
    """The settings for a task, a preset, a size, a variant, an agent and a dataset, of which any may be left out.

    Raises ValueError for a name that does not exist, with the nearest one that does.
    """
    settings, known = agents.settings(agent), catalogue(agent)
    presets = known.PRESETS
    # Without a task or a preset, what trains soonest.
    preset = preset or (preset_of(task, agent) if task else next(iter(presets)))
    agents.refuse_unknown("preset", preset, presets)
    agents.refuse_unknown("variant", variant, VARIANTS)
    config = presets[preset]()
    if variant == "nature2024":
        if agent != "dreamer_v3":
            raise ValueError(f"variant {variant!r} is one of dreamer_v3; {agent} has none")
        config = nature(config, preset)
    if not config.task and not dataset:
        raise ValueError(f"preset {preset!r} of {agent} is for learning from a dataset: give --dataset")
    # What is learned from a dataset has a task only where it is to be evaluated.
    task = task if dataset else task or config.task
    config = replace(config, preset=preset, task=task, dataset=dataset, size=size or config.size)
    agents.refuse_unknown("size", config.size, settings.SIZES)
    options = suite_options(config.task, known.OPTIONS.get((preset, variant), {}))
    return replace(config, suite=options, dreamer=settings.size(config.dreamer, config.size))


def suite_options(task: str, changes: Mapping[str, Any]) -> Any:
    """Options of the task's suite, with what a preset changes where the suite has it; None without a task.

    Raises EnvError, a ValueError, for a task that no suite offers, with the nearest one.
    """
    if not task:
        return None
    kind_of_options = options_of(task)
    known = {field.name for field in fields(kind_of_options)}
    return kind_of_options(**{k: v for k, v in changes.items() if k in known})


def describe(agent: str = "dreamer_v3") -> str:
    """A line for each preset of an agent, for `--preset list`."""
    agents.settings(agent)  # says which agents there are
    presets = catalogue(agent).PRESETS
    lines, wide = [], max(map(len, presets))
    for name, make in presets.items():
        config = make()
        count, unit, envs = f"{config.steps:,}", "steps  ", "env " if config.env.count == 1 else "envs"
        learns = "in stages" if agent in agents.STAGED else f"ratio {config.train.ratio:g}"
        learns = f"{config.env.count:>2} {envs}  {learns}"
        if not config.task:
            unit, learns = "updates", "from a dataset"
            if agent in agents.STAGED:
                count, unit = "all", "steps  "
        about = (make.__doc__ or "").splitlines()[0]
        lines.append(f"{name:{wide}} {config.size:>5}  {count:>14} {unit}  {learns:<21}  {about}")
    return "\n".join(lines)
