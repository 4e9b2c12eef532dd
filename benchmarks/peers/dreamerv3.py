"""DreamerV3 (github.com/danijar/dreamerv3), the official JAX code: its train step after compilation.

    git clone https://github.com/danijar/dreamerv3 DIR
    pip install jax==0.4.33 jaxlib==0.4.33 'numpy<2' chex colored_traceback einops elements ninjax optax portal \\
        ruamel.yaml

The networks and the update are fastdream's `current` variant, with as many parameters. Compilation takes minutes; with
JAX_COMPILATION_CACHE_DIR=FOLDER that is so once for each job and number of threads.

On a GPU (`pip install 'jax[cuda12]==0.4.33'`, or a later one with cuda13) matrix products are in bfloat16, as by
default; on a CPU in float32.

JAX starts as many threads as there are cores that it may run on, so the process is pinned to N cores for N threads.
XLA runs without its thunk runtime, with which jax 0.4.33 takes 1.5 to 2.6 times as long for an update on a CPU. It
reads its flags once, at its first use, which therefore comes before the peer's set-up, which writes other flags.
"""

import os
import sys
from pathlib import Path
from typing import Any

from protocol import Job, Peer, revision, serve

REMEDY = (
    "git clone https://github.com/danijar/dreamerv3 DIR && pip install jax==0.4.33 jaxlib==0.4.33 'numpy<2' chex "
    "colored_traceback einops elements ninjax optax portal ruamel.yaml"
)


def build(path: Path, job: Job, threads: int, device: str) -> Peer:
    """The agent as the peer's main.py makes it, with a batch instead of a replay and without a policy."""
    if device == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
        os.environ["XLA_FLAGS"] = "--xla_cpu_use_thunk_runtime=false"
    os.environ["JAX_PLATFORMS"] = device
    if cache := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # What was compiled for another number of cores is found there all the same, and crashes.
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{cache}/{threads}"
    sys.path.insert(0, str(path))
    import elements
    import jax
    import numpy as np

    jax.jit(lambda x: x + 1)(0.0)
    by_name(jax)
    from dreamerv3.agent import Agent
    from embodied.jax import internal

    scalar, flag = elements.Space(np.float32), elements.Space(bool)
    obs = elements.Space(np.uint8 if job.pixels else np.float32, job.observation)
    obs_space = {"image" if job.pixels else "sensors": obs, "reward": scalar}
    obs_space |= {"is_first": flag, "is_last": flag, "is_terminal": flag}
    discrete = elements.Space(np.int32, (), 0, job.action)
    action = discrete if job.pixels else elements.Space(np.float32, (job.action,), -1, 1)
    agent = Agent(obs_space, {"action": action}, settings(path, job, device))
    rng = np.random.default_rng(0)
    data = {key: random(space, (job.batch, job.length + 1), rng) for key, space in agent.spaces.items()}
    data["consec"][:] = (
        0  # the chunks are the first of their sequences, so each starts from its stored latents
    )
    data = internal.device_put(data, agent.train_sharded)
    seeds = iter(range(10**9))
    state = {"carry": agent.init_train(job.batch)}

    def update() -> None:
        seed = agent._seeds(next(seeds), agent.train_mirrored)
        state["carry"], *_ = agent.train(state["carry"], {**data, "seed": seed})
        jax.block_until_ready((agent.params, state["carry"]))

    learnt = {module.name for module in agent.model.modules}
    parameters = sum(value.size for key, value in agent.params.items() if key.split("/")[0] in learnt)
    return Peer(update, parameters, revision(path))


def by_name(jax: Any) -> None:
    """Let `jax.jit` take its options by position too, as the peer gives them; jax 0.10 takes them by name alone."""
    jit, names = (
        jax.jit,
        ("in_shardings", "out_shardings", "static_argnums", "static_argnames", "donate_argnums"),
    )

    def positional(function: Any, *args: Any, **options: Any) -> Any:
        given = options | dict(zip(names, args, strict=False))
        return jit(function, **{key: value for key, value in given.items() if value is not None})

    jax.jit = positional


def settings(path: Path, job: Job, device: str) -> Any:
    """The peer's defaults with the widths of the job."""
    import elements
    import ruamel.yaml

    defaults = ruamel.yaml.YAML(typ="safe").load(path / "dreamerv3" / "configs.yaml")["defaults"]
    config = elements.Config(defaults).update(
        {
            r".*\.rssm": {
                "deter": job.deter,
                "hidden": job.hidden,
                "classes": job.classes,
                "stoch": job.stoch,
            },
            r".*\.depth": job.depth,
            r".*\.units": job.units,
            "agent.imag_length": job.horizon,
            "jax.platform": device,
            "jax.compute_dtype": "float32" if device == "cpu" else "bfloat16",
            "jax.prealloc": False,
            "jax.enable_policy": False,
        }
    )
    return elements.Config(
        **config.agent,
        logdir="",
        seed=0,
        jax={**config.jax, "profiler": False, "precompile": False},
        batch_size=job.batch,
        batch_length=job.length,
        replay_context=config.replay_context,
        report_length=config.report_length,
        replica=0,
        replicas=1,
    )


def random(space: Any, lead: tuple[int, ...], rng: Any) -> Any:
    """Entries [*lead, *space.shape] of a space of the peer; of flags, one in fifty is set."""
    dims = lead + space.shape
    if space.dtype == bool:
        return rng.random(dims) < 0.02
    if space.discrete:
        return rng.integers(space.low, space.high, dims).astype(space.dtype)
    return rng.standard_normal(dims).astype(space.dtype)


if __name__ == "__main__":
    serve("dreamerv3", "dreamerv3/configs.yaml", REMEDY, build)
