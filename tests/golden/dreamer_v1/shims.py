"""What stands between the official TensorFlow 2.1 code and a newer TensorFlow, and what watches it draw."""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability.python.internal import samplers


class Optimizer(tf.keras.mixed_precision.LossScaleOptimizer):
    """Stands where TensorFlow 2.1 had its experimental one; keeps the last gradients, before they are clipped."""

    def __new__(cls, inner: Any, scale: str) -> "Optimizer":
        assert scale == "dynamic"
        made = tf.keras.mixed_precision.LossScaleOptimizer(inner)
        made.__class__ = type("Optimizer", (cls, type(made)), {})
        return made

    def __init__(self, inner: Any, scale: str) -> None:
        pass

    def get_unscaled_gradients(self, grads: Any) -> Any:
        self.seen = super().get_unscaled_gradients(grads)
        return self.seen


def official(source: Path) -> Any:
    """The official modules, with what TensorFlow no longer has and without what needs an environment."""
    keras = importlib.import_module("tensorflow.keras.mixed_precision")
    keras.experimental = types.SimpleNamespace(
        global_policy=keras.global_policy, LossScaleOptimizer=Optimizer
    )
    tf.optimizers.Adam = tf.keras.optimizers.legacy.Adam
    for name in ("gym", "wrappers"):
        sys.modules[name] = types.ModuleType(name)
    sys.path.insert(0, str(source))
    return importlib.import_module("dreamer")


class Draws:
    """All random numbers that are drawn while it watches, in their order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, np.ndarray]] = []
        normal, categorical, uniform = tf.random.normal, tf.random.categorical, tf.random.uniform
        unit = samplers.normal

        def latent(shape: Any, mean: Any, std: Any, *args: Any) -> Any:
            noise = self.note("latent", normal(shape, dtype=mean.dtype))
            return noise * std + mean

        def classes(logits: Any, count: Any, *args: Any) -> Any:
            index = categorical(logits, count, *args)
            assert count == 1
            # The middle of what the class has of the interval from 0 to 1.
            probs = tf.nn.softmax(tf.cast(logits, tf.float64), -1).numpy()
            chosen = index.numpy()
            ends = np.take_along_axis(probs.cumsum(-1), chosen, -1)
            middle = ends - np.take_along_axis(probs, chosen, -1) / 2
            self.note("index", index[:, 0])
            self.note("uniform", middle[:, 0])
            return index

        tf.random.normal = latent
        tf.random.categorical = classes
        tf.random.uniform = lambda *args: self.note("chance", uniform(*args))
        samplers.normal = lambda *args, **kwargs: self.note("normal", unit(*args, **kwargs))

    def note(self, kind: str, value: Any) -> Any:
        self.log.append((kind, np.asarray(value)))
        return value

    def take(self, kind: str) -> list[np.ndarray]:
        """All of one kind; they are then forgotten."""
        taken = [value for name, value in self.log if name == kind]
        self.log = [(name, value) for name, value in self.log if name != kind]
        return taken
