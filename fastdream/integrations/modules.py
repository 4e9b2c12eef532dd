"""Networks that other codebases build of torch's modules, as ops take them."""

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from fastdream.ops import Act, Layer, Layers

_ACTS: dict[type[nn.Module], Act] = {
    nn.ELU: "elu",
    nn.GELU: "gelu",
    nn.Identity: "none",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.Tanh: "tanh",
}


def layers_of(
    net: Iterable[Any],
    weight: Callable[[Any], Tensor] = attrgetter("weight"),
    norms: tuple[Any, ...] = (nn.RMSNorm,),
    others: tuple[str, ...] = (),
) -> Layers:
    """The modules of a chain as layers: each with weights begins one, a norm and an activation complete it.

    weight  what gives that of a linear map or a convolution as the op wants it.
    norms   which modules are RMS norms, with weight and eps; torch's layer norms are known.
    others  classes of modules that are no part of a layer, as a change of shape.
    Raises ValueError for a module that no op has, and for modules in another order.
    """
    layers: list[Layer] = []
    for module in net:
        last, act = layers[-1] if layers else None, _act(module)
        if isinstance(module, (*norms, nn.LayerNorm)):
            if last is None or last.norm != "none" or last.act != "none":
                raise ValueError(
                    f"no op has {module} there: a norm comes after weights, before an activation"
                )
            layers[-1] = _normed(last, module)
        elif act:
            if last is None or "none" not in (act, last.act):
                raise ValueError(f"no op has {module} there: one activation comes after weights")
            layers[-1] = last._replace(act=last.act if act == "none" else act)
        elif _has_weights(module):
            layers.append(Layer(weight(module), module.bias))
        elif type(module).__name__ not in others:
            raise ValueError(
                f"there is no op for {module}; undo() the patch, or use {', '.join(t.__name__ for t in _ACTS)}"
            )
    return tuple(layers)


def _normed(layer: Layer, module: Any) -> Layer:
    """The layer with that norm, of the layer norms of torch or an RMS norm."""
    if isinstance(module, nn.LayerNorm):
        return layer._replace(norm="layer", scale=module.weight, shift=module.bias, eps=module.eps)
    eps = torch.finfo(torch.float32).eps if module.eps is None else module.eps
    return layer._replace(norm="rms", scale=module.weight, eps=eps)


def _has_weights(module: Any) -> bool:
    """Whether it is a linear map or a convolution."""
    weight = getattr(module, "weight", None)
    return weight is not None and weight.dim() > 1 and hasattr(module, "bias")


def _act(module: nn.Module) -> Act | None:
    """What an op calls the activation that the module computes, if it does."""
    if isinstance(module, nn.GELU) and module.approximate != "tanh":
        return None
    if isinstance(module, nn.ELU) and module.alpha != 1:
        return None
    return _ACTS.get(type(module))
