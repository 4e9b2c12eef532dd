"""The algorithms once more, in NumPy float64 and as the papers write them: slow, with every replica made.

They share no code and no rearrangement with `fastdream.ops.reference`. Parameters are the same nested
tuples, holding arrays.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mixed(logit: Array, unimix: float) -> Array:
    return (1 - unimix) * softmax(logit) + unimix / logit.shape[-1]


def activation(x: Array, act: str) -> Array:
    forms = {
        "none": lambda: x,
        "silu": lambda: x * sigmoid(x),
        "gelu": lambda: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "elu": lambda: np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1),
        "relu": lambda: np.maximum(x, 0),
        "tanh": lambda: np.tanh(x),
    }
    return forms[act]()


def norm(x: Array, scale: Array, shift: Array | None, kind: str, eps: float) -> Array:
    if kind == "none":
        return x
    if kind == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale
    mean = x.mean(-1, keepdims=True)
    var = np.maximum(0, (x**2).mean(-1, keepdims=True) - mean**2)
    return (x - mean) / np.sqrt(var + eps) * scale + shift


def dense(x: Array, layer: Any) -> Array:
    if layer.weight.ndim == 2:
        y = x @ layer.weight.T
    else:
        parts = np.split(x, len(layer.weight), -1)
        y = np.concatenate([p @ w for p, w in zip(parts, layer.weight, strict=True)], -1)
    y = y if layer.bias is None else y + layer.bias
    return activation(norm(y, layer.scale, layer.shift, layer.norm, layer.eps), layer.act)


def mlp(x: Array, layers: Any) -> Array:
    for layer in layers:
        x = dense(x, layer)
    return x


def block_gru(core: Any, deter: Array, stoch: Array, action: Array) -> Array:
    """Specification 1.4: the inputs repeated for every block and concatenated with the block's deter."""
    blocks = len(core.gates.weight)
    action = action / np.maximum(1, np.abs(action))
    x0, x1, x2 = dense(deter, core.deter), dense(stoch, core.stoch), dense(action, core.action)
    x = np.concatenate([np.concatenate([h, x0, x1, x2], -1) for h in np.split(deter, blocks, -1)], -1)
    parts = [np.split(p, 3, -1) for p in np.split(dense(mlp(x, core.hidden), core.gates), blocks, -1)]
    reset, cand, update = (np.concatenate([part[i] for part in parts], -1) for i in range(3))
    cand = np.tanh(sigmoid(reset) * cand)
    update = sigmoid(update - 1)
    return update * cand + (1 - update) * deter


def layernorm_gru(core: Any, deter: Array, stoch: Array, action: Array) -> Array:
    x = dense(np.concatenate([stoch, action], -1), core.inputs)
    reset, cand, update = np.split(dense(np.concatenate([x, deter], -1), core.gates), 3, -1)
    cand = np.tanh(sigmoid(reset) * cand)
    update = sigmoid(update - 1)
    return update * cand + (1 - update) * deter


def gru(core: Any, deter: Array, stoch: Array, action: Array) -> Array:
    x = dense(np.concatenate([stoch, action], -1), core.inputs)
    wr, wu, wc = np.split(core.weight_ih, 3)
    vr, vu, vc = np.split(core.weight_hh, 3)
    br, bu, bc = np.split(core.bias_ih, 3)
    cr, cu, cc = np.split(core.bias_hh, 3)
    reset = sigmoid(x @ wr.T + br + deter @ vr.T + cr)
    update = sigmoid(x @ wu.T + bu + deter @ vu.T + cu)
    if core.reset_after:
        cand = np.tanh(x @ wc.T + bc + reset * (deter @ vc.T + cc))
    else:
        cand = np.tanh(x @ wc.T + bc + (reset * deter) @ vc.T + cc)
    return update * deter + (1 - update) * cand


CORES = {"BlockGRU": block_gru, "LayerNormGRU": layernorm_gru, "GRU": gru}


def core_step(core: Any, deter: Array, stoch: Array, action: Array) -> Array:
    return CORES[type(core).__name__](core, deter, stoch, action)


def draw(latent: Any, logit: Array, draw: Array, anchor: Array | None) -> Array:
    """The stochastic latent. draw: class indices or normal noise. anchor: constant probabilities.

    With anchor equal to this very call's probabilities, onehot + probs - anchor is the straight-through
    value, and its plain derivative is the straight-through gradient.
    """
    if hasattr(latent, "classes"):
        onehot = np.eye(latent.classes)[draw]
        return onehot if anchor is None else onehot + mixed(logit, latent.unimix) - anchor
    mean, raw = np.split(logit, 2, -1)
    softplus = np.log1p(np.exp(raw))
    std = softplus if latent.std == "softplus" else 2 * sigmoid(raw / 2)
    return mean + (std + latent.min_std) * draw


def shaped(latent: Any, logit: Array) -> Array:
    return logit.reshape(*logit.shape[:-1], latent.stoch, -1) if hasattr(latent, "classes") else logit


def observe(
    rssm: Any,
    deter: Array,
    stoch: Array,
    action: Array,
    embed: Array,
    reset: Any,
    draws: Any,
    anchors: Any = None,
) -> tuple[Array, Array, Array]:
    """deter, stoch, logit of all T steps; anchors [T] as in `draw`."""
    outs = []
    for t in range(action.shape[1]):
        keep = 1.0 - reset[:, t, None]
        deter = core_step(rssm.core, deter * keep, stoch.reshape(len(deter), -1) * keep, action[:, t] * keep)
        seen = embed[:, t] if rssm.absolute else np.concatenate([deter, embed[:, t]], -1)
        logit = shaped(rssm.latent, mlp(seen, rssm.post))
        stoch = draw(rssm.latent, logit, draws[:, t], None if anchors is None else anchors[t])
        outs.append((deter, stoch, logit))
    return tuple(np.stack(x, 1) for x in zip(*outs, strict=True))  # type: ignore[return-value]


def rollout(rssm: Any, deter: Array, stoch: Array, action: Array, draws: Any) -> tuple[Array, Array, Array]:
    outs = []
    for t in range(action.shape[1]):
        deter = core_step(rssm.core, deter, stoch.reshape(len(deter), -1), action[:, t])
        logit = shaped(rssm.latent, mlp(deter, rssm.prior))
        stoch = draw(rssm.latent, logit, draws[:, t], None)
        outs.append((deter, stoch, logit))
    return tuple(np.stack(x, 1) for x in zip(*outs, strict=True))  # type: ignore[return-value]
