"""DreamerV3's official JAX code trains on the task of a run of fastdream, with that run's settings.

    git clone https://github.com/danijar/dreamerv3 DIR
    python -m venv VENV && VENV/bin/pip install jax==0.4.33 jaxlib==0.4.33 'numpy<2' gymnasium chex \\
        colored_traceback einops elements ninjax optax portal ruamel.yaml
    VENV/bin/python benchmarks/official.py --path DIR --like runs/gym_CartPole-v1/RUN --logdir runs/official-0
    python benchmarks/curves.py --name official runs/official-*
    python benchmarks/curves.py --name both runs/gym_CartPole-v1/* --beside benchmarks/results/official.csv

Its driver, replay, agent, optimiser and loop are the official ones (`embodied.run.train`), without reports. The
environment is wrapped here, as theirs is made for gym, which came before Gymnasium: gym_<id>, or module:function,
called without arguments, with PYTHONPATH so that it is found. For vectors as observations; on a CPU, in float32,
pinned to as many cores as there are threads. The last line says how much CPU time it took.
"""

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

# What fastdream can set and the official code cannot, which does what the value says.
FIXED: dict[str, Mapping[str, Any]] = {
    "dyn": {"logit_bias": True},
    "policy": {"unimix": 0.0},
    "opt": {"nesterov": False},
    "valnorm": {"perclo": 5.0, "perchi": 95.0, "debias": True},
    "advnorm": {"perclo": 5.0, "perchi": 95.0, "debias": True},
}
MODULES = {
    "dyn": "dyn.rssm", "enc": "enc.simple", "dec": "dec.simple", "rewhead": "rewhead", "conhead": "conhead",
    "policy": "policy", "value": "value", "slowvalue": "slowvalue", "opt": "opt", "loss_scales": "loss_scales",
    "retnorm": "retnorm", "valnorm": "valnorm", "advnorm": "advnorm",
}  # fmt: skip
RENAMED = {"min_std": "minstd", "max_std": "maxstd"}
ALIKE = ("horizon", "contdisc", "imag_length", "imag_last", "reward_grad", "repval_grad", "ac_grads")


def overrides(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings, of its config.json, by their official names. ValueError for what the official code lacks."""
    agent, train = run["dreamer"], run["train"]
    known = run["task"].startswith("gym_") or ":" in run["task"]
    if (run["agent"], run["variant"]) != ("dreamer_v3", "current") or not known:
        raise ValueError(
            "need dreamer_v3, variant current, on a gym_ or module:function task, got "
            f"{run['agent']} on {run['task']!r}"
        )
    if agent["imag_start"] != "predicted" or train["prefill"] or train["pretrain"] != 1:
        raise ValueError(
            "the official code begins without prefill and pretraining, and dreams from predicted starts"
        )
    modules = {f"agent.{theirs}": renamed(name, agent[name]) for name, theirs in MODULES.items()}
    modules["agent.dec.simple"].pop("symlog")  # the encoder's counts for both there
    returns = {key: agent[key] for key in ("slowtar", "lam", "actent", "slowreg")}
    replayed = {"slowtar": agent["slowtar"], "lam": agent["replay_lam"], "slowreg": agent["replay_slowreg"]}
    return {
        **modules,
        **{f"agent.{name}": agent[name] for name in ALIKE},
        "agent.imag_loss": returns,
        "agent.repl_loss": replayed,
        "agent.report": False,
        "task": run["task"],
        "batch_size": train["batch_size"],
        "batch_length": train["batch_length"],
        "replay_context": agent["replay_context"],
        "replay.size": run["replay"]["capacity"],
        "replay.online": run["replay"]["online"],
        "run.steps": run["steps"],
        "run.train_ratio": train["ratio"],
        "run.envs": run["env"]["count"],
        "run.report_every": 0,
        "run.save_every": 0,
    }


def renamed(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A module's settings by their official names."""
    fixed = FIXED.get(name, {})
    for key, value in fixed.items():
        if settings[key] != value:
            raise ValueError(
                f"dreamer.{name}.{key} is {value} in the official code, and {settings[key]} in the run"
            )
    return {RENAMED.get(key, key): value for key, value in settings.items() if key not in fixed}


def environment(task: str, seed: int) -> Any:
    """A task, gym_<id> or module:function, as the official driver wants environments."""
    import elements
    import embodied
    import gymnasium
    import numpy as np

    if task.startswith("gym_"):
        env = gymnasium.make(task.removeprefix("gym_"))
    else:
        module, _, function = task.partition(":")
        env = getattr(importlib.import_module(module), function)()
    flag, action = elements.Space(bool), env.action_space
    discrete = isinstance(action, gymnasium.spaces.Discrete)
    if isinstance(action, gymnasium.spaces.Discrete):
        act = elements.Space(np.int32, (), 0, int(action.n))
    else:
        assert isinstance(action, gymnasium.spaces.Box), action
        act = elements.Space(np.float32, action.shape, action.low, action.high)

    class Environment(embodied.Env):
        obs_space = {
            "vector": elements.Space(np.float32, env.observation_space.shape),
            "reward": elements.Space(np.float32),
            **dict.fromkeys(("is_first", "is_last", "is_terminal"), flag),
        }
        act_space = {"action": act, "reset": flag}

        def __init__(self) -> None:
            self.over = True
            self.seed: int | None = seed

        def step(self, action: Mapping[str, Any]) -> dict[str, Any]:
            first = action["reset"] or self.over
            if first:
                vector, _ = env.reset(seed=self.seed)
                reward, terminated, truncated = 0.0, False, False
                self.seed = None
            else:
                given = int(action["action"]) if discrete else action["action"]
                vector, given_reward, terminated, truncated, _ = env.step(given)
                reward = float(given_reward)
            self.over = bool(terminated or truncated)
            flags = {"is_first": bool(first), "is_last": self.over, "is_terminal": bool(terminated)}
            return {"vector": np.asarray(vector, np.float32), "reward": np.float32(reward), **flags}

    return Environment()


def logger_of(config: Any, path: Path) -> Any:
    """The official logger to the terminal, which also writes each episode's score as runs of fastdream do."""
    import elements

    output = elements.logger.TerminalOutput(config.logger.filter, "Agent")
    logger = elements.Logger(elements.Counter(), [output])
    lines, add = path.open("w", buffering=1), logger.add

    def adds(values: Mapping[str, Any], prefix: str | None = None) -> None:
        if prefix == "episode":
            facts = {f"episode/{key}": float(value) for key, value in values.items()}
            lines.write(json.dumps({"step": int(logger.step), "time": time.time(), **facts}) + "\n")
        add(values, prefix)

    logger.add = adds
    return logger


def train(path: Path, run: Mapping[str, Any], seed: int, logdir: Path) -> None:
    """The official training, to its end."""
    sys.path.insert(0, str(path))
    import elements
    import embodied
    import jax
    import ruamel.yaml

    jax.jit(lambda x: x + 1)(0.0)  # XLA reads its flags here, before the official code writes others
    from dreamerv3 import main as official

    defaults = ruamel.yaml.YAML(typ="safe").load(path / "dreamerv3" / "configs.yaml")["defaults"]
    device = {"jax.platform": "cpu", "jax.compute_dtype": "float32", "jax.prealloc": False}
    quiet = {f"run.usage.{name}": False for name in defaults["run"]["usage"]} | {"logger.timer": False}
    config = elements.Config(defaults).update(
        {**overrides(run), **device, **quiet, "seed": seed, "logdir": str(logdir)}
    )
    # Of their agent, and not among their settings.
    config = elements.Config({**config, "jax": {**config.jax, "profiler": False, "precompile": False}})

    def make_env(_: Any, index: int) -> Any:
        return official.wrap_env(environment(run["task"], seed * 1000 + index), config)

    official.make_env = make_env
    shared = (
        "replica", "replicas", "logdir", "batch_size", "batch_length", "report_length", "consec_train",
        "consec_report", "replay_context",
    )  # fmt: skip
    embodied.run.train(
        partial(official.make_agent, config),
        partial(official.make_replay, config, "replay"),
        partial(make_env, config),
        partial(official.make_stream, config),
        partial(logger_of, config, logdir / "scores.jsonl"),
        elements.Config(**config.run, **{name: config[name] for name in shared}),
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--path", type=Path, required=True, help="a checkout of danijar/dreamerv3")
    parser.add_argument(
        "--like", type=Path, required=True, help="a run of fastdream, whose settings it takes"
    )
    parser.add_argument("--logdir", type=Path, required=True, help="a new directory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if args.logdir.exists() or not (args.like / "config.json").is_file():
        parser.error("--logdir must be new, and --like a run's directory with its config.json")
    run = json.loads((args.like / "config.json").read_text())["config"]
    try:
        overrides(run)
    except ValueError as error:
        parser.error(str(error))
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= args.threads <= len(cores):
        parser.error(f"--threads {args.threads}: this process may run on {len(cores)} cores")
    os.sched_setaffinity(0, cores[-args.threads :])
    os.environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_use_thunk_runtime=false"}
    args.logdir.mkdir(parents=True)
    (args.logdir / "config.json").write_text(json.dumps({"config": {**run, "seed": args.seed}}))
    train(args.path.resolve(), run, args.seed, args.logdir)
    print(f"done: {args.logdir}, {time.process_time():.0f} s of CPU time", flush=True)
    os._exit(0)  # their threads would keep the process alive


if __name__ == "__main__":
    main()
