"""The authors' TensorFlow 1 code under TensorFlow 2.15: what it imports and no longer finds, and its variables."""

import ast
import importlib
import os
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow
import tensorflow.compat.v1 as tf

tf.disable_v2_behavior()


class LayerNormBasicLSTMCell(tf.nn.rnn_cell.RNNCell):
    """tf.contrib.rnn's cell as the authors use it: without layer norm, and without dropout.

    One kernel of [inputs, h] and one bias, neither with an initialiser of its own, to input, candidate, forget and
    output in this order; 1 is added to forget.
    """

    def __init__(self, num_units: int, layer_norm: bool = True) -> None:
        super().__init__()
        assert not layer_norm, "the authors' settings have no layer norm"
        self.num_units = num_units

    @property
    def state_size(self) -> Any:
        return tf.nn.rnn_cell.LSTMStateTuple(self.num_units, self.num_units)

    @property
    def output_size(self) -> int:
        return self.num_units

    def call(self, inputs: Any, state: Any) -> tuple[Any, Any]:
        cell, hidden = state
        joined = tf.concat([inputs, hidden], 1)
        width = 4 * self.num_units
        kernel = tf.get_variable("kernel", [joined.shape[1], width])
        gates = tf.matmul(joined, kernel) + tf.get_variable("bias", [width])
        enter, candidate, forget, out = tf.split(gates, 4, 1)
        cell = cell * tf.sigmoid(forget + 1.0) + tf.sigmoid(enter) * tf.tanh(candidate)
        hidden = tf.tanh(cell) * tf.sigmoid(out)
        return hidden, tf.nn.rnn_cell.LSTMStateTuple(cell, hidden)


class Recorded(np.random.RandomState):
    """The generator of gym at that time; remembers what it gave."""

    def __init__(self, seed: int | None) -> None:
        super().__init__(seed)
        self.uniform_given: list[Any] = []
        self.normal_given: list[Any] = []

    def rand(self, *shape: int) -> Any:
        self.uniform_given.append(super().rand(*shape))
        return self.uniform_given[-1]

    def randn(self, *shape: int) -> Any:
        self.normal_given.append(super().randn(*shape))
        return self.normal_given[-1]


class Env:
    """gym.Env at that time: methods without an underscore call those with one."""

    def seed(self, seed: int | None = None) -> Any:
        return self._seed(seed)

    def reset(self) -> Any:
        return self._reset()

    def step(self, action: Any) -> Any:
        return self._step(action)


def module(name: str, **contents: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    vars(made).update(contents)
    return made


def unused(*args: Any, **kwargs: Any) -> None:
    """What is imported or described and not looked at."""


def stand_ins() -> dict[str, types.ModuleType]:
    """By name: what the official modules import."""
    tf.contrib = module("contrib", rnn=module("rnn", LayerNormBasicLSTMCell=LayerNormBasicLSTMCell))
    seeding = module("gym.utils.seeding", np_random=lambda seed=None: (Recorded(seed), seed))
    box = module("gym.spaces.box", Box=unused)
    spaces, utils = module("gym.spaces", Box=unused, box=box), module("gym.utils", seeding=seeding)
    misc = module("scipy.misc", imresize=unused, toimage=unused)
    pyplot = module("matplotlib.pyplot")
    return {
        "tensorflow": tf,
        "gym": module("gym", Env=Env, spaces=spaces, utils=utils),
        "gym.spaces": spaces,
        "gym.spaces.box": box,
        "gym.utils": utils,
        "gym.utils.seeding": seeding,
        "scipy": module("scipy", misc=misc),
        "scipy.misc": misc,
        "matplotlib": module("matplotlib", pyplot=pyplot),
        "matplotlib.pyplot": pyplot,
        "env": module("env", make_env=unused),
    }


@contextmanager
def official(folder: Path) -> Iterator[None]:
    """Within, modules of one of the two experiments can be imported; each by its name there."""
    assert tf.layers.conv2d, "Keras itself must import TensorFlow before"
    np.float, np.int = float, int  # NumPy 1.24 took these names away
    before, here = dict(sys.modules), os.getcwd()
    sys.modules.update(stand_ins())
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        sys.path.remove(str(folder))
        for name, loaded in list(sys.modules.items()):
            if str(getattr(loaded, "__file__", "")).startswith(str(folder)) or name in ("vae", "rnn"):
                del sys.modules[name]
        for name in stand_ins():
            sys.modules.pop(name)
        sys.modules.update(before)


def load(name: str) -> types.ModuleType:
    """An official module, within `official`."""
    return importlib.import_module(name)


def pieces(script: Path, *names: str, **given: Any) -> dict[str, Any]:
    """Functions and constants of a script that cannot be imported, as it would train."""
    tree = ast.parse(script.read_text())

    def wanted(node: ast.stmt) -> bool:
        if isinstance(node, ast.FunctionDef):
            return node.name in names
        return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in names

    scope = {"np": np, **given}
    exec(compile(ast.Module([n for n in tree.body if wanted(n)], []), str(script), "exec"), scope)
    return {name: scope[name] for name in names}


def expression(script: Path, name: str) -> Any:
    """What a script assigns to a name, wherever it does, as a function of the names in it."""
    assigned = [n for n in ast.walk(ast.parse(script.read_text())) if isinstance(n, ast.Assign)]
    (value,) = (node.value for node in assigned if getattr(node.targets[0], "id", "") == name)
    code = compile(ast.Expression(value), str(script), "eval")
    return lambda **given: eval(code, given)


class Variables:
    """The trainable variables of one of the authors' networks, by name."""

    def __init__(self, net: Any) -> None:
        self.net = net
        with net.g.as_default():
            self.by_name = {v.name.removesuffix(":0"): v for v in tf.trainable_variables()}

    @property
    def shapes(self) -> dict[str, list[int]]:
        return {name: v.shape.as_list() for name, v in self.by_name.items()}

    def read(self) -> dict[str, np.ndarray]:
        return self.net.sess.run(self.by_name)

    def write(self, values: Mapping[str, np.ndarray]) -> None:
        for name, variable in self.by_name.items():
            variable.load(values[name], self.net.sess)

    def gradients(self, loss: Any, *further: Any) -> tuple[dict[str, Any], list[Any]]:
        """Of the loss by every variable, by name, and by further tensors."""
        with self.net.g.as_default():
            found = tf.gradients(loss, [*self.by_name.values(), *further])
        return dict(zip(self.by_name, found, strict=False)), found[len(self.by_name) :]


def versions() -> dict[str, str]:
    return {"tensorflow": tensorflow.__version__, "numpy": np.__version__}
