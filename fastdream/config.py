"""Settings of a training run: what they are, how they are saved beside it, and how two of them differ."""

import dataclasses
import json
import math
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastdream import agents, rundir
from fastdream.agents.dreamer_v3_config import Config as DreamerV3Config
from fastdream.agents.dreamer_v3_config import Variant
from fastdream.envs import options_of
from fastdream.graphs import Graph
from fastdream.replay_windows import WindowKind

T = TypeVar("T")

# What no machine has a use for, and some break at.
MOST_ENVS, MOST_THREADS = 10_000, 1024
SEEDS = 2**62  # what PyTorch's generators take, with room for the seeds that are made of one
LEAST = {"deter": 1, "hidden": 1, "units": 1, "blocks": 1, "bins": 2}  # of an agent's numbers; others: 0


def refuse_less(group: str, settings: Any, **least: int) -> None:
    """Raise ValueError that names the flag, `--<group><name>`, of a setting that is less than that or infinite."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if not bound <= value < math.inf:
            flag = f"--{group}{name.replace('_', '-')}"
            raise ValueError(f"{flag} {value}: it must be a number of at least {bound}")


def refuse_more(group: str, settings: Any, **most: int) -> None:
    """Raise ValueError that names the flag, `--<group><name>`, of a setting that is more than that."""
    for name, bound in most.items():
        value = getattr(settings, name)
        if value > bound:
            raise ValueError(f"--{group}{name.replace('_', '-')} {value}: it must be at most {bound:,}")


def refuse_seed(seed: int) -> None:
    """Raise ValueError for a seed that no generator takes."""
    if seed >= SEEDS:
        raise ValueError(f"--seed {seed}: it must be less than {SEEDS:,}")


@dataclass(frozen=True)
class EnvConfig:
    """Environments."""

    count: int = 16
    """Environments that are collected from at once."""
    parallel: Literal["auto", "yes", "no"] = "auto"
    """A process for each environment; auto: yes, unless a step costs less than a message to a process."""

    def __post_init__(self) -> None:
        refuse_less("env.", self, count=1)
        refuse_more("env.", self, count=MOST_ENVS)


@dataclass(frozen=True)
class ReplayConfig:
    """Replay."""

    capacity: int = 5_000_000
    """Steps that are kept."""
    on_disk: bool = False
    """Keep them in files of the run's directory, not in memory."""
    on_device: bool = False
    """Keep them in the memory of the GPU, where batches then need no copy; all of it is taken at the start."""
    online: bool = True
    """Train on every new stretch of experience once, as soon as it is there; of streams only."""
    windows: WindowKind = "stream"
    """What sequences are cut from: each environment's whole stream; or one episode, each as often as any other, at
    any place (episode), with its end more often (ends), or without the last place (not_last)."""

    def __post_init__(self) -> None:
        if self.on_disk and self.on_device:
            raise ValueError("steps are kept in one place: choose replay on_disk or on_device")


@dataclass(frozen=True)
class TrainConfig:
    """Learning."""

    ratio: float = 32.0
    """Replayed steps per step of the environments."""
    batch_size: int = 16
    """Sequences in a batch."""
    batch_length: int = 64
    """Steps of each."""
    graph: Graph = "auto"
    """Record policy steps and updates as CUDA graphs; auto: on a CUDA device. The numbers are the same."""
    prefill: int = 0
    """Steps with random actions before the first update; each environment ends its episode so."""
    pretrain: int = 1
    """Updates at once when learning begins."""

    def __post_init__(self) -> None:
        refuse_less("train.", self, ratio=0, batch_size=1, batch_length=2, prefill=0, pretrain=1)


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation, on environments of its own."""

    every: int = 0
    """Steps between evaluations; 0 evaluates only at the end."""
    episodes: int = 5
    """Episodes of each."""
    final_episodes: int = 20
    """Episodes of the one at the end; 0 leaves it out."""
    count: int = 4
    """Environments at once."""
    mode: Literal["sample", "mode"] = "sample"
    """Draw actions as in training, or take the most likely ones."""

    def __post_init__(self) -> None:
        refuse_less("eval.", self, every=0, episodes=1, final_episodes=0, count=1)
        refuse_more("eval.", self, count=MOST_ENVS)


@dataclass(frozen=True)
class LogConfig:
    """What is written, and how often."""

    outputs: tuple[Literal["console", "jsonl", "tensorboard", "wandb"], ...] = (
        "console",
        "jsonl",
        "tensorboard",
    )
    """Where metrics go."""
    every: float = 10.0
    """Seconds between lines of metrics; 0 writes the last one alone."""
    report_every: int = 50_000
    """Steps between open-loop predictions (videos of truth, dream and error); 0 makes none."""
    save_every: float = 300.0
    """Seconds between checkpoints; 0 writes them after evaluations and at the end alone."""
    wandb_project: str = "fastdream"
    """Project of Weights & Biases."""

    def __post_init__(self) -> None:
        refuse_less("log.", self, every=0, report_every=0, save_every=0)


@dataclass(frozen=True)
class Config:
    """Train a world-model agent. The command that started a run also resumes it: give the same --logdir."""

    task: str = "gym_CartPole-v1"
    """What to learn: gym_<id>, atari_<game>, atari100k_<game>, dmc_<domain>_<task>, crafter_reward, minigrid_<id>,
    vizdoom_take_cover, car_racing, or module:callable that makes an environment."""
    dataset: str = ""
    """Learn from episodes instead of a task: a folder of npz files, V-D4RL's hdf5 files, a run of this library, or
    minari:<id>. Steps are then updates, and a task is for evaluation."""
    resize: int = 0
    """Make a dataset's pictures this large; 0: as they are."""
    holdout: float = 0.0
    """Share of a dataset's episodes to report on (report/unseen/loss/*), and not to learn from."""
    preset: str = ""
    """Settings to start from; follows from task or dataset if not given; 'list' prints them."""
    agent: str = "dreamer_v3"
    """The algorithm: world_models, dreamer_v1, dreamer_v2 or dreamer_v3; or, for datasets, offline_dv2."""
    size: str = ""
    """Model size: debug, tiny, 1m, 12m, 25m, 50m, 100m, 200m or 400m (dreamer_v2: debug, tiny, 15m, 22m, 31m;
    dreamer_v1: debug, tiny, 6m; world_models: debug, small, 5m, 6m); the preset's if not given."""
    variant: Variant = "current"
    """The official code as it is today, or as it was for the published scores (dreamer_v3 alone)."""
    steps: int = 10_000_000_000
    """Steps of all environments together; of world_models those that are recorded, from which all else is learned."""
    seed: int = 0
    """Of everything that is random."""
    logdir: str = ""
    """Directory of the run; runs/<task>/<preset>-s<seed>-<time> if not given, and runs/latest points there."""
    device: str = "auto"
    """auto (CUDA if it is there), cpu, cuda or cuda:<n>."""
    ops: Literal["auto", "reference", "native", "triton"] = "auto"
    """Which implementation of the operations runs; auto takes the fastest."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves it its choice."""
    suite: Any = None
    """Options of the task's suite: an instance of envs.options_of(task), None for its defaults."""
    env: EnvConfig = field(default_factory=EnvConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    log: LogConfig = field(default_factory=LogConfig)
    dreamer: Any = field(default_factory=DreamerV3Config)
    """The agent: an instance of agents.settings(agent).Config."""

    def __post_init__(self) -> None:
        wanted = agents.settings(self.agent).Config
        if not isinstance(self.dreamer, wanted):
            raise ValueError(
                f"agent {self.agent} takes settings of {wanted.__module__}, got {type(self.dreamer).__module__}"
            )
        refuse_less("", self, steps=1, seed=0, threads=0)
        refuse_more("", self, threads=MOST_THREADS)
        for name, value in flatten(dataclasses.asdict(self)).items():
            least = LEAST.get(name.rpartition(".")[2], 0)
            small = name.startswith("dreamer.") and isinstance(value, int) and value < least
            if small or isinstance(value, float) and math.isnan(value):
                more = f" of at least {least}" * small
                raise ValueError(f"--{name.replace('_', '-')} {value}: it must be a number{more}")
        refuse_seed(self.seed)
        if not 0 <= self.holdout < 1 or (self.holdout and not self.dataset):
            raise ValueError(
                f"holdout={self.holdout} must be a share below 1 of the episodes that --dataset gives"
            )
        if self.resize < 0 or (self.resize and not self.dataset):
            raise ValueError(
                f"resize={self.resize} must not be negative, and is of a dataset alone: for environments "
                "see --suite.size"
            )


# What may differ when a run is resumed: nothing here changes what a step or an update computes.
MAY_CHANGE = (
    "steps",
    "logdir",
    "dataset",
    "device",
    "ops",
    "threads",
    "eval",
    "log",
    "env.parallel",
    "replay.on_disk",
    "replay.on_device",
    "train.graph",
)


def to_dict(config: Config) -> dict[str, Any]:
    """The settings as nested dictionaries of numbers, texts and lists, as JSON keeps them."""
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return tree


def from_dict(kind: type[T], tree: dict[str, Any]) -> T:
    """The inverse of `to_dict`; ValueError names settings that are unknown. Missing ones take the default."""
    hints = typing.get_type_hints(kind)
    if kind is Config:
        hints["dreamer"] = agents.settings(tree.get("agent", Config.agent)).Config
        if tree.get("suite") is not None:
            hints["suite"] = options_of(tree["task"])
    unknown = sorted(set(tree) - set(hints))
    if unknown:
        raise ValueError(f"unknown settings in {kind.__name__}: {', '.join(unknown)}")
    return kind(**{key: _restore(hints[key], value) for key, value in tree.items()})


def _restore(hint: Any, value: Any) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_dict(hint, value)
    return tuple(value) if isinstance(value, list) else value


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names to values: {"env.count": 4, ...}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def differences(saved: Config, asked: Config) -> list[str]:
    """What differs in a way that forbids to continue the saved run: 'name: saved -> asked' lines."""
    before, after = flatten(to_dict(saved)), flatten(to_dict(asked))
    fixed = [key for key in before if not any(key == k or key.startswith(k + ".") for k in MAY_CHANGE)]
    if saved.agent != asked.agent:  # none of whose settings are the other's
        fixed = [key for key in fixed if not key.startswith("dreamer.")]
    changed = [key for key in fixed if key not in after or before[key] != after[key]]
    return [f"{key}: {before[key]} -> {after.get(key, 'no such setting')}" for key in changed]


def save(config: Config, logdir: Path, **extra: Any) -> None:
    """Write `config.json`: the settings, and whatever else describes the run (command, versions).

    Raises StorageError when the disk refuses, and leaves the file as it was.
    """
    text = json.dumps({"config": to_dict(config), **extra}, indent=2) + "\n"
    rundir.store(logdir / "config.json", text.encode())


def load(logdir: Path) -> Config:
    """Read the settings of a run; ValueError if there is none or it cannot be read."""
    path = logdir / "config.json"
    if not rundir.there(path):
        raise ValueError(f"{logdir} holds no run: there is no {path.name} in it")
    try:
        return from_dict(Config, json.loads(path.read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
