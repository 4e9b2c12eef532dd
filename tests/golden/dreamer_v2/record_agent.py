"""An official agent of TensorFlow made small, and updates of it with what they drew and computed."""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf
from ruamel.yaml import YAML
from tensorflow_probability import distributions as tfd
from trace_agent import Arrays, Trace, actor_outputs, networks

mixed_precision = importlib.import_module("tensorflow.keras.mixed_precision")
mixed_precision.experimental = mixed_precision
sys.modules["gym"] = ModuleType("gym")  # environments are imported, and not used
tf.optimizers.Adam = tf.keras.optimizers.legacy.Adam  # the one there was
tf.config.run_functions_eagerly(True)

B, T, STEPS = 2, 5, 3
SMALL = {
    r"rssm\.(deter|hidden)": 12,
    r"rssm\.stoch": 4,
    r"rssm\.discrete": 5,
    r"(encoder|decoder)\.cnn_depth": 1,
    r"(encoder|decoder)\.mlp_layers": [12, 12],
    r"(reward_head|discount_head|actor|critic|expl_head)\.layers": 2,
    r"(reward_head|discount_head|actor|critic|expl_head)\.units": 12,
    r"(model|actor|critic|expl)_opt\.(lr)": 1e-3,
    "imag_horizon": 4,
    "slow_target_update": 2,
    "disag_models": 3,
}


class Variant(NamedTuple):
    sections: list[str]  # of configs.yaml
    changes: dict[str, Any]
    obs_space: dict[str, tuple[int, ...]]
    actions: str


def record(
    agent: Any, config: Any, variant: Variant, seed: int, updates: Sequence[str] = ("train",) * STEPS
) -> Arrays:
    """All arrays of one variant: parameters, batch, and updates on it, each by one of the agent's methods."""
    rng = np.random.default_rng(seed)
    tf.random.set_seed(seed)
    data = {k: tf.constant(v) for k, v in batch(variant, rng).items()}
    agent.train(data)  # makes the variables
    reset(agent, rng)
    if config.actor_grad == "both":
        stop_actions()
    names = dict(networks(agent))
    arrays = {f"param0/{k}": v.numpy() for k, v in names.items()}
    arrays |= {f"data/{k}": v.numpy() for k, v in data.items()}
    trace = Trace(agent, {v.ref(): k for k, v in names.items()})
    for step, update in enumerate(updates):
        agent.tfstep.assign(step)
        trace.arrays, trace.count = {}, 0
        trace.first = update not in updates[:step]
        metrics = getattr(agent, update)(data)
        metrics = metrics[1] if isinstance(metrics, tuple) else metrics
        arrays |= {f"s{step}/{k}": v for k, v in trace.arrays.items()}
        arrays |= {f"s{step}/metrics/{k}": np.float32(v) for k, v in metrics.items()}
    arrays |= {f"param_after/{k}": v.numpy() for k, v in names.items()}
    arrays |= acting(agent, data)
    about = {"config": config.flat, "obs_space": variant.obs_space, "actions": variant.actions}
    arrays["config_json"] = np.array(json.dumps(about | {"seed": seed, "steps": len(updates)}))
    return {k: narrow(np.asarray(v)) for k, v in arrays.items()}


def acting(agent: Any, data: dict[str, Any]) -> Arrays:
    """Two steps of acting on the first observations of the batch: the most likely action, then a drawn one."""
    arrays, state = {}, None
    for step, mode in enumerate(("eval", "explore")):
        _, state = agent.policy({k: v[:, step] for k, v in data.items() if k != "action"}, state, mode)
        latent, action = state
        actor = agent._task_behavior.actor if mode == "eval" else agent._expl_behavior.actor
        found = {"action": action, **latent} | actor_outputs(actor(agent.wm.rssm.get_feat(latent)))
        arrays |= {f"policy{step}/{k}": np.asarray(v) for k, v in found.items()}
    return arrays


def narrow(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def settings(common: str, folder: Path, variant: Variant) -> Any:
    """The official configuration, made small; `common` is the name of the official module."""
    texts = YAML(typ="safe").load((folder / "configs.yaml").read_text())
    plain = texts["defaults"]
    plain |= {k: str(plain[k]) for k in ("actor_grad_mix", "actor_ent")}  # may be schedules
    config = importlib.import_module(common).Config(plain)
    for section in variant.sections:
        config = config.update(texts[section])
    for change in (SMALL, variant.changes, {"precision": 32, "jit": False}):
        config = config.update(change)
    return config


def build(agent: str, config: Any, variant: Variant) -> Any:
    """The official agent; `agent` is the name of its module."""
    spaces = {k: SimpleNamespace(shape=shape) for k, shape in variant.obs_space.items()}
    act = SimpleNamespace(shape=(5,), n=5) if variant.actions == "discrete" else SimpleNamespace(shape=(2,))
    return importlib.import_module(agent).Agent(config, spaces, {"action": act}, 0)


def batch(variant: Variant, rng: np.random.Generator) -> Arrays:
    """Episodes that begin and end inside the sequences."""
    data: Arrays = {}
    for key, shape in variant.obs_space.items():
        image = len(shape) == 3
        value = rng.integers(0, 256, (B, T, *shape)) if image else rng.standard_normal((B, T, *shape))
        data[key] = value.astype(np.uint8 if image else np.float32)
    if variant.actions == "discrete":
        data["action"] = np.eye(5, dtype=np.float32)[rng.integers(0, 5, (B, T))]
    else:
        data["action"] = rng.uniform(-1, 1, (B, T, 2)).astype(np.float32)
    data["reward"] = (2 * rng.standard_normal((B, T))).astype(np.float32)
    data["is_first"], data["is_terminal"] = np.zeros((B, T), bool), np.zeros((B, T), bool)
    data["is_first"][:, 0] = data["is_first"][1, 3] = True
    data["is_terminal"][1, 2] = data["is_terminal"][0, T - 1] = True
    return data


def reset(agent: Any, rng: np.random.Generator) -> None:
    """Generic values in every parameter, none of which hides a mistake as zeros and ones do; optimisers as new."""
    for name, variable in networks(agent):
        shape, kind = variable.shape, name.rsplit("/")[-1]
        noise = rng.standard_normal(shape)
        if kind == "kernel":
            transposed = "decoder/conv" in name and "convin" not in name
            fan_in = shape[0] * shape[1] * shape[3] / 4 if transposed else np.prod(shape[:-1])
            variable.assign(noise / np.sqrt(fan_in))
        else:
            variable.assign(0.1 * noise + (kind == "gamma"))
    learners = [agent.wm, agent._task_behavior]
    if agent._expl_behavior is not agent._task_behavior:
        learners += [agent._expl_behavior, agent._expl_behavior.ac]
    for learner in learners:
        for optimizer in vars(learner).values():
            if type(optimizer).__name__ == "Optimizer":
                for variable in optimizer.variables:
                    variable.assign(tf.zeros_like(variable))
        if hasattr(learner, "_updates"):
            learner._updates.assign(0)


def stop_actions() -> None:
    """No gradient through the argument of a log-probability; all others than the actor's are constants anyhow."""
    log_prob = tfd.Independent.log_prob
    tfd.Independent.log_prob = lambda self, value, **kw: log_prob(self, tf.stop_gradient(value), **kw)
