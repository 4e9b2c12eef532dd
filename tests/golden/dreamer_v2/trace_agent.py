"""What the official agent computes in an update, by name."""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import tensorflow as tf

Arrays = dict[str, np.ndarray]


def networks(agent: Any) -> Iterator[tuple[str, Any]]:
    """Name and variable of every parameter."""
    model = {"encoder": agent.wm.encoder, "rssm": agent.wm.rssm, **agent.wm.heads}
    for name, module in model.items():
        yield from variables(module, name)
    behaviors = {"": agent._task_behavior}
    if agent._expl_behavior is not agent._task_behavior:
        behaviors["expl_"] = agent._expl_behavior.ac
        for index, module in enumerate(agent._expl_behavior._networks):
            yield from variables(module, f"ensemble{index}")
    for prefix, behavior in behaviors.items():
        yield from variables(behavior.actor, prefix + "actor")
        yield from variables(behavior.critic, prefix + "critic")
        yield from variables(behavior._target_critic, prefix + "target")


def variables(module: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(module, tf.keras.layers.Layer):
        for variable in module.weights:
            yield f"{path}/{variable.name.split('/')[-1].split(':')[0]}", variable
        return
    children = dict(getattr(module, "_modules", {}))
    if hasattr(module, "_cell"):
        children |= {"cell": module._cell._layer, "cellnorm": module._cell._norm}
    if getattr(module, "_layer", None) is not None:
        children["norm"] = module._layer
    for name, child in children.items():
        yield from variables(child, f"{path}/{name}")


class Trace:
    """Keeps in `arrays` what the official methods compute, gradients as a whole where it is the `first` update."""

    def __init__(self, agent: Any, names: dict[Any, str]) -> None:
        self.arrays: Arrays = {}
        self.first = True
        self.agent, self.names, self.count = agent, names, 0
        wrap(agent.wm, "loss", self.model)
        wrap(agent.wm, "imagine", self.dream)
        behaviors = {"": agent._task_behavior}
        if agent._expl_behavior is not agent._task_behavior:
            behaviors["expl_"] = agent._expl_behavior.ac
            self.gradients(agent._expl_behavior, "opt", "ensemble")
        self.gradients(agent.wm, "model_opt", "model")
        for prefix, behavior in behaviors.items():
            wrap(behavior, "target", partial(self.returns, prefix))
            self.gradients(behavior, "actor_opt", f"{prefix}actor")
            self.gradients(behavior, "critic_opt", f"{prefix}critic")

    def keep(self, name: str, value: Any) -> None:
        self.arrays[name] = np.asarray(value)

    def model(self, out: Any, *_: Any) -> None:
        """World model: [B, T, ...]."""
        loss, _, outs, metrics = out
        self.keep("model/loss", loss)
        for key, value in metrics.items():
            self.keep(f"model/{key}", value)
        for part in ("post", "prior"):
            for key, value in outs[part].items():
                self.keep(f"{part}/{key}", value)
        for key in ("embed", "kl"):
            self.keep(key, outs[key])
        for key, value in outs["likes"].items():
            self.keep(f"likes/{key}", value)

    def dream(self, out: Any, policy: Any, *_: Any) -> None:
        """A dream, [H+1, N, ...], and the actor's distributions in it."""
        prefix = "expl_imag" if self.count else "imag"
        self.count += 1
        for key, value in out.items():
            if key != "feat":  # stoch and deter
                self.keep(f"{prefix}/{key}", value)
        for key, value in actor_outputs(policy(tf.stop_gradient(out["feat"]))).items():
            self.keep(f"{prefix}/{key}", value)

    def returns(self, prefix: str, out: Any, seq: Any) -> None:
        """Rewards of a dream [H+1, N], and the returns that are learned [H, N]."""
        self.keep(f"{prefix}imag/reward", seq["reward"])
        self.keep(f"{prefix}imag/target", out[0])

    def gradients(self, owner: Any, name: str, label: str) -> None:
        """Gradients before they are clipped."""
        optimizer = getattr(owner, name)

        def step(tape: Any, loss: Any, modules: Any) -> Any:
            return optimizer(
                SimpleNamespace(gradient=lambda *args: kept(tape.gradient(*args), args[1])), loss, modules
            )

        def kept(grads: list[Any], variables: list[Any]) -> list[Any]:
            for grad, variable in zip(grads, variables, strict=True):
                name = f"{label}/{self.names[variable.ref()]}"
                self.keep(f"grad_norm/{name}", tf.norm(grad))
                if self.first:
                    self.keep(f"grad/{name}", grad)
            return grads

        setattr(owner, name, step)


def wrap(owner: Any, name: str, look: Callable[..., None]) -> None:
    """Let `look` see what the method returns, and its arguments."""
    method = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        out = method(*args, **kwargs)
        look(out, *args)
        return out

    setattr(owner, name, wrapped)


def actor_outputs(dist: Any) -> dict[str, Any]:
    if hasattr(dist, "logits"):
        return {"actor/logits": dist.logits}
    return {"actor/mean": dist.distribution.loc, "actor/std": dist.distribution.scale}
