"""What layers are in Keras unless one says otherwise, which the first two Dreamers never do."""

import math

import torch
from torch import nn

from fastdream.convs import Valid
from fastdream.nets import Dense, NormAct

EPS = 1e-3  # of norms


@torch.no_grad()
def keras_defaults(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Glorot-uniform weights of all dense and convolutional layers within, zero biases, and the eps of norms."""
    for layer in module.modules():
        if isinstance(layer, NormAct):
            layer.eps = EPS
        if isinstance(layer, Dense | Valid):
            out, inp, *kernel = layer.weight.shape
            limit = math.sqrt(6 / ((inp + out) * math.prod(kernel)))
            layer.weight.uniform_(-limit, limit, generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
