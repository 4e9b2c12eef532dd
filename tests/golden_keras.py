"""Parameters of Keras layers, by the official names, as ours."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

KINDS = [("kernel$", "weight"), ("gamma$", "scale"), ("beta$", "shift")]


Rule = tuple[str, str | Callable[[re.Match[str]], str]]


def renamed(path: str, rules: Sequence[Rule]) -> str:
    """Every rule (pattern, replacement) is applied in turn, and those of KINDS."""
    for pattern, replacement in (*rules, *KINDS):
        path = re.sub(pattern, replacement, path)
    return path


def as_ours(array: np.ndarray, transposed: bool = False) -> Tensor:
    """Kernels [in, out], [height, width, in, out], or of transposed convolutions [height, width, out, in]."""
    value = torch.from_numpy(np.array(array, np.float32))
    if value.ndim == 2:
        return value.T.contiguous()
    if value.ndim == 4:
        return value.permute(2, 3, 0, 1) if transposed else value.permute(3, 2, 0, 1)
    return value


def moved(weight: Tensor, widths: Sequence[int], order: Sequence[int]) -> Tensor:
    """Columns of a weight [out, in], whose inputs are parts of these widths, in another order of the parts."""
    parts = weight.split([*widths, weight.shape[1] - sum(widths)], 1)
    return torch.cat([*(parts[i] for i in order), *parts[len(order) :]], 1)


def categorical_noise(logit: np.ndarray, onehot: np.ndarray) -> Tensor:
    """The uniform numbers, in the middle of their range, that draw these one-hots: [..., C] -> [...]."""
    logit = logit.astype(np.float64)
    prob = np.exp(logit - logit.max(-1, keepdims=True))
    prob /= prob.sum(-1, keepdims=True)
    index = onehot.argmax(-1)[..., None]
    upper = np.take_along_axis(prob.cumsum(-1), index, -1)
    return torch.from_numpy((upper - np.take_along_axis(prob, index, -1) / 2)[..., 0].astype(np.float32))


def load(parameters: Mapping[str, torch.nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Copy into all of our parameters; each must have its value."""
    assert parameters.keys() == values.keys(), parameters.keys() ^ values.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            assert parameter.shape == values[name].shape, (name, parameter.shape, values[name].shape)
            parameter.copy_(values[name])
