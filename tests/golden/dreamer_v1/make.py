"""Runs the official TensorFlow DreamerV1 on small sizes and writes down what it computes; see README.md.

    git clone https://github.com/danijar/dreamer CLONE && git -C CLONE checkout 56d4d44
    pip install tensorflow-cpu==2.15.1 tensorflow-probability==0.23.0
    python make.py --source CLONE [--out FOLDER]

`Dreamer._build_model`, `Dreamer._train` and `Dreamer.__call__` run as they are, step by step instead of as a graph.
What they draw and compute on the way is seen by wrappers around the functions that they call.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # sums in one order on every processor
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from shims import Draws, official

B, T, ACTING = 2, 5, 4
PARTS = ("encode", "dynamics", "decode", "reward", "pcont", "value", "actor")
OPTIMIZERS = ("model", "actor", "value")
# So few latent variables have a small KL.
SIZES = {
    "deter_size": 12,
    "stoch_size": 4,
    "num_units": 10,
    "cnn_depth": 1,
    "precision": 32,
    "free_nats": 1.0,
}

# What is not as `define_config` has it, how many numbers an action has, and how often `_train` is called.
VARIANTS: dict[str, dict[str, Any]] = {
    "dmc": {"seed": 1, "action_width": 3, "updates": 3},
    # What its TensorFlow 1 predecessor sets for Atari and DMLab, as far as this code can.
    "atari": {
        "seed": 2,
        "action_width": 4,
        "updates": 2,
        "action_dist": "onehot",
        "pcont": True,
        "clip_rewards": "tanh",
        "kl_scale": 0.1,
        "free_nats": 0.5,
        "horizon": 10,
        "expl": "epsilon_greedy",
        "expl_amount": 0.6,
        "eval_noise": 0.15,
    },
    # Everything else that has two sides: KL below its free nats, gradients above their bound, other activations.
    "other": {
        "seed": 5,
        "action_width": 2,
        "updates": 2,
        "pcont": True,
        "pcont_scale": 3.0,
        "free_nats": 40.0,
        "grad_clip": 0.05,
        "discount": 0.9,
        "disclam": 0.7,
        "horizon": 4,
        "action_init_std": 0.7,
        "dense_act": "relu",
        "cnn_act": "elu",
        "expl_amount": 0.4,
        "eval_noise": 0.2,
    },
}

Arrays = dict[str, np.ndarray]


def build(dreamer: Any, config: Any, data: dict[str, Any]) -> Any:
    """The official agent, without directories and environments."""
    agent = dreamer.Dreamer.__new__(dreamer.Dreamer)
    agent._c, agent._actdim, agent._float = config, config.action_width, tf.float32
    agent._step = tf.Variable(0, dtype=tf.int64)
    agent._metrics = collections.defaultdict(tf.metrics.Mean)
    agent._dataset = iter([data])
    agent._should_train = agent._should_log = lambda step: False
    agent._strategy = types.SimpleNamespace(
        num_replicas_in_sync=1, experimental_run_v2=lambda function, args: function(*args)
    )
    agent._scalar_summaries = lambda *args: None
    agent._build_model()  # it ends with an update, whose traces in the optimisers go here
    for name in OPTIMIZERS:
        for variable in optimizer(agent, name)._opt.inner_optimizer.variables():
            variable.assign(tf.zeros_like(variable))
    return agent


def optimizer(agent: Any, name: str) -> Any:
    return getattr(agent, f"_{name}_opt")


def variables(agent: Any) -> dict[str, Any]:
    """Every parameter by the name that the official attributes give it: dynamics/img1/kernel."""
    found = {}
    for part in PARTS:
        module = getattr(agent, f"_{part}", None)
        layers = dict(module._modules) if module else {}
        if part == "dynamics":
            layers["cell"] = module._cell
        for name, layer in layers.items():
            for variable in layer.weights:
                found[f"{part}/{name}/{variable.name.split('/')[-1].split(':')[0]}"] = variable
    return found


def generic(params: dict[str, Any], rng: np.random.Generator) -> None:
    """Parameters that hide nothing behind zeros: kernels of std 1 / sqrt(inputs), biases of std 0.2."""
    for name, variable in params.items():
        shape = variable.shape.as_list()
        transposed = name.startswith("decode") and len(shape) == 4
        # A quarter of a transposed kernel's pixels, or less, meets in one output pixel.
        inputs = shape[0] * shape[1] * shape[3] / 4 if transposed else np.prod(shape[:-1])
        scale = 0.2 if name.endswith("bias") else 1 / np.sqrt(inputs)
        variable.assign(scale * rng.standard_normal(shape))


def batch(config: Any, rng: np.random.Generator) -> dict[str, Any]:
    """Sequences of one episode each; the last one ends. Few grey levels, so that files stay small."""
    width = config.action_width
    actions = rng.uniform(-1, 1, (B, T, width))
    if config.action_dist == "onehot":
        actions = np.eye(width)[rng.integers(0, width, (B, T))]
    discount = np.ones((B, T))
    discount[-1, -1] = 0
    image = 17 * rng.integers(0, 16, (B, T, 64, 64, 3))
    reward = 1.5 * rng.standard_normal((B, T))
    floats = {"action": actions, "reward": reward, "discount": discount}
    return {"image": image.astype(np.uint8)} | {k: v.astype(np.float32) for k, v in floats.items()}


def watch(owner: Any, name: str, note: Callable[[tuple, Any], None]) -> None:
    """Have `note` see the arguments and the result of every call of owner.name, from now on to the end."""
    function = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        note((*args, *kwargs.values()), result)
        return result

    setattr(owner, name, watched)


def watch_train(agent: Any, seen: dict[str, list]) -> None:
    """Keep in `seen` what one call of `_train` computes between its batch and its gradients."""
    tools = sys.modules["tools"]

    def keep(key: str, pick: Callable[[Any], Any]) -> Callable[[tuple, Any], None]:
        return lambda args, result: seen.setdefault(key, []).append(pick(result))

    watch(agent, "_encode", keep("embed", lambda x: x))
    watch(agent._dynamics, "observe", keep("observe", lambda x: x))
    watch(agent, "_decode", keep("recon", lambda x: x.mean()[:, :, ::7, ::7]))
    for head in ("reward", "value", "pcont"):
        if hasattr(agent, f"_{head}"):
            watch(agent, f"_{head}", keep(head, lambda x: x.mean()))
    watch(agent, "_imagine_ahead", keep("feat", lambda x: x))
    watch(tools, "lambda_return", keep("returns", lambda x: x))
    watch(tf.math, "cumprod", keep("weight", lambda x: x))

    def losses(data: Any, feat: Any, prior: Any, post: Any, likes: Any, *rest: Any) -> None:
        names = ("kl", "model", "value", "actor")
        seen["loss"] = [{k: -v for k, v in likes.items()} | dict(zip(names, rest[:4], strict=True))]
        seen["norm"] = [dict(zip(("model", "value", "actor"), rest[4:], strict=True))]

    agent._scalar_summaries = losses


def drawn(agent: Any, draws: Draws) -> Iterator[tuple[str, Any]]:
    """The random numbers of one `_train`, in the order of time."""
    latent = draws.take("latent")
    yield "draw/post", latent[1 : 2 * T : 2]  # before each of them, one of the prior that goes nowhere
    yield "draw/prior", latent[2 * T :]
    discrete = agent._c.action_dist == "onehot"
    yield "draw/action", draws.take("uniform") if discrete else [x[0] for x in draws.take("normal")]
    if discrete:
        yield "draw/index", draws.take("index")
    assert not draws.log, [name for name, _ in draws.log]


def computed(seen: dict[str, list]) -> Iterator[tuple[str, Any]]:
    """What `watch_train` saw of one `_train`."""
    (post, prior), *_ = seen.pop("observe")
    for group, values in (("post", post), ("prior", prior)):
        yield from ((f"{group}/{key}", values[key]) for key in ("mean", "std"))
    yield from ((f"post/{key}", post[key]) for key in ("stoch", "deter"))
    yield "reward", seen["reward"].pop(0)
    if "pcont" in seen:
        yield "pcont", seen["pcont"].pop(0)
    for group in ("loss", "norm"):
        yield from ((f"{group}/{key}", value) for key, value in seen.pop(group)[0].items())
    for key in ("embed", "recon"):
        yield key, seen.pop(key)[0]
    yield from ((f"imag/{key}", values[0]) for key, values in seen.items())


def gradients(agent: Any, params: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Of all optimisers after one `_train`, by the names of their parameters."""
    names = {variable.ref(): name for name, variable in params.items()}
    for name in OPTIMIZERS:
        opt = optimizer(agent, name)
        for variable, grad in zip(opt._variables, opt._opt.seen, strict=True):
            yield names[variable.ref()], grad


def act(agent: Any, image: np.ndarray, draws: Draws, training: bool) -> Iterator[tuple[str, Any]]:
    """Steps of one environment, which begins anew in their middle: drawn numbers, states and actions."""
    state, compared = None, {}
    # What `SampleDist.mode` calls: log densities of its draws, and draws.
    watch(tf, "argmax", lambda args, result: compared.update(log_prob=args[0][:, 0]))
    watch(tf, "gather", lambda args, result: compared.update(sample=args[0][:, 0]))
    for step, frame in enumerate(image[:ACTING]):
        obs = {"image": frame[None], "reward": np.zeros(1, np.float32)}
        action, state = agent(obs, np.array([step in (0, 2)]), state, training)
        yield f"{step}/latent", draws.take("latent")[1]
        for kind in ("normal", "uniform", "index", "chance"):
            yield from ((f"{step}/{kind}{i}", value) for i, value in enumerate(draws.take(kind)))
        yield from ((f"{step}/{key}", value) for key, value in compared.items())
        yield f"{step}/action", action
        yield from ((f"{step}/{key}", state[0][key]) for key in ("stoch", "deter"))


def record(dreamer: Any, draws: Draws, config: Any) -> Arrays:
    """All arrays of one file but its configuration."""
    rng = np.random.default_rng(config.seed)
    tf.random.set_seed(config.seed)
    raw = batch(config, rng)
    data = dreamer.preprocess({k: tf.constant(v) for k, v in raw.items()}, config)
    agent = build(dreamer, config, data)
    params = variables(agent)
    generic(params, rng)
    draws.log.clear()
    found: dict[str, Any] = {f"data/{k}": v for k, v in raw.items()}
    found |= {f"param0/{name}": variable.numpy() for name, variable in params.items()}
    seen: dict[str, list] = {}
    watch_train(agent, seen)
    for number in range(config.updates):
        seen.clear()
        agent._train(data, False)
        for part in (drawn(agent, draws), computed(seen)):
            found |= {f"u{number}/{k}": np.array(v) for k, v in part}
        found |= {f"u{number}/grad/{k}": np.array(v) for k, v in gradients(agent, params)}
        found |= {f"u{number}/param/{k}": variable.numpy() for k, variable in params.items()}
    for name, training in (("train", True), ("eval", False)):
        acted = act(agent, raw["image"][0], draws, training)
        found |= {f"act/{name}/{k}": np.array(v) for k, v in acted}
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="clone of danijar/dreamer")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where files go")
    args = parser.parse_args()
    tf.config.run_functions_eagerly(True)
    dreamer, draws = official(args.source), Draws()
    command = ["git", "-C", str(args.source), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    versions = {"commit": commit, "tensorflow": tf.__version__, "tensorflow_probability": tfp.__version__}
    for name, changes in VARIANTS.items():
        config = dreamer.define_config()
        config.update(SIZES | changes)
        found = record(dreamer, draws, config)
        settings = {k: v for k, v in config.items() if not isinstance(v, Path)}
        found["config_json"] = np.array(json.dumps(settings | versions))
        path = args.out / f"{name}.npz"
        np.savez_compressed(path, **found)
        print(f"{path}: {len(found)} arrays, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
