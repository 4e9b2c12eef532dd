"""Settings that nothing reads as others are: who asks for one is told so, instead of waiting for what never comes."""

from collections.abc import Container
from typing import NamedTuple

from fastdream import agents
from fastdream.config import Config, flatten, to_dict

COLLECTING = (
    "env.count",
    "train.ratio",
    "train.prefill",
    "train.pretrain",
    "replay.capacity",
    "replay.online",
)
WITHOUT_STAGES = ("train", "replay", "eval.every", "eval.episodes", "log.report_every", "holdout")
# Of an agent that learns in stages, where the first one reads a dataset.
RECORDING = ("env.count", "dreamer.start", "dreamer.collect.actions", "dreamer.collect.hold")


class Off(NamedTuple):
    """A setting of some agents with which nothing reads others."""

    agents: tuple[str, ...]
    setting: str
    values: Container[object]
    unread: tuple[str, ...]


def _norm(name: str) -> tuple[Off, Off]:
    setting = f"{name}.impl"
    return (
        Off(V3, setting, ("none",), tuple(f"{name}.{key}" for key in ("rate", "limit", "debias"))),
        Off(V3, setting, ("none", "meanstd"), (f"{name}.perclo", f"{name}.perchi")),
    )


V3, V2 = ("dreamer_v3",), ("dreamer_v2", "offline_dv2")
OFF = (
    *(off for name in ("retnorm", "valnorm", "advnorm") for off in _norm(name)),
    Off(V3, "opt.schedule", ("const",), ("opt.anneal",)),
    Off(V3, "opt.momentum", (False,), ("opt.beta1", "opt.nesterov")),
    Off(V3, "loss_scales.repval", (0.0,), ("replay_lam", "replay_slowreg", "repval_grad")),
    Off(V2, "dyn.classes", range(1, 257), ("dyn.min_std",)),
    Off(V2, "kl.free", (0.0,), ("kl.clamp",)),
    Off(("dreamer_v1",), "pcont", (False,), ("pconthead", "pcont_scale")),
    Off(V2, "pred_discount", (False,), ("dishead", "loss_scales.dis")),
    Off(V2, "actor_grad", ("auto", "reinforce", "dynamics"), ("actor_mix",)),
    Off(
        ("dreamer_v2",),
        "explore.behavior",
        ("greedy",),
        tuple(f"explore.{name}" for name in ("until", "models", "net", "opt", "intrinsic", "extrinsic")),
    ),
    Off(("offline_dv2",), "offline.penalty", ("none",), ("offline.lam",)),
    Off(("offline_dv2",), "offline.tune", (0.0,), ("offline.tune_lr",)),
    Off(("world_models",), "memory.ends", (False,), ("memory.end_weight",)),
    Off(("world_models",), "collect.actions", ("networks",), ("collect.hold",)),
)


def not_for(config: Config) -> dict[str, str]:
    """What nothing reads with this agent, learning from this, and why: names as those of `unread`."""
    found: dict[str, str] = {}
    if config.agent in agents.STAGED:
        why = f"{config.agent} learns in stages, and what it has instead is --dreamer.*"
        found |= dict.fromkeys(WITHOUT_STAGES, why)
        if config.dataset:
            found["steps"] = "all steps of a dataset are learned from"
    if config.dataset:
        collecting = RECORDING if config.agent in agents.STAGED else COLLECTING
        found |= dict.fromkeys(collecting, "nothing is collected where a dataset is learned from")
        if not config.task:
            found |= dict.fromkeys(("eval", "env.parallel"), "there is nothing to evaluate in without --task")
    if config.agent == "offline_dv2":
        found["dreamer.explore"] = "nothing is explored where a dataset is learned from"
    return found


def unread(config: Config) -> dict[str, str]:
    """What nothing reads with these settings, and why: dotted names of settings, or of whole groups of them."""
    found = not_for(config)
    if config.agent == "offline_dv2" and config.dreamer.offline.tune:
        found["dreamer.offline.lam"] = "the weight adapts, from 1 on, with --dreamer.offline.tune"
    now = flatten(to_dict(config))
    for off in OFF:
        if config.agent in off.agents and (value := now[f"dreamer.{off.setting}"]) in off.values:
            why = f"--dreamer.{off.setting.replace('_', '-')} is {value}"
            found |= {f"dreamer.{name}": why for name in off.unread}
    if not config.eval.every and "eval" not in found:
        found.setdefault("eval.episodes", "--eval.every is 0; the last one has --eval.final-episodes")
    if not config.log.report_every:
        found["holdout"] = "losses on what is held out are reported, and --log.report-every is 0"
    if "wandb" not in config.log.outputs:
        found["log.wandb_project"] = "--log.outputs has no wandb"
    return found


def refuse_unread(base: Config, asked: Config) -> None:
    """Raise ValueError if anything is asked for that nothing would read.

    base   what holds if nothing is asked for, which may say anything of what is not read.
    """
    before, after, lines = flatten(to_dict(base)), flatten(to_dict(asked)), []
    for name, why in unread(asked).items():
        keys = [key for key in after if key == name or key.startswith(name + ".")]
        flags = [f"--{key.replace('_', '-')}" for key in keys if after[key] != before.get(key)]
        lines += [f"{flag}: {why}" for flag in flags]
    if lines:
        listed = "\n  ".join(lines)
        raise ValueError(f"nothing would read this:\n  {listed}\nLeave it out.")
