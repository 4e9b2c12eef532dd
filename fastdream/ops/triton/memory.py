"""The memory step of World Models, without gradient: two launches."""

from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.mdn import Layout, flatten
from fastdream.ops.params import MDNRNN, MDNStep
from fastdream.ops.reference.layers import match
from fastdream.ops.triton.library import check_floats, check_shape, register
from fastdream.ops.triton.limits import check_served, unserved_memory
from fastdream.ops.triton.lstm import lstm
from fastdream.ops.triton.mixture import mixture
from fastdream.ops.triton.unflatten import Reader

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def lstm_mdn_step(
    model: MDNRNN,
    hidden: Tensor,
    cell: Tensor,
    latent: Tensor,
    action: Tensor,
    restart: Tensor,
    uniform: Tensor,
    normal: Tensor,
    temperature: float = 1.0,
) -> MDNStep:
    """As `fastdream.ops.reference.lstm_mdn_step`.

    Computes in hidden's dtype, float32 or half precision, whatever that of the parameters. Raises ValueError naming
    what does not fit.
    """
    op = "lstm_mdn_step"
    check_served(op, unserved_memory(model))
    flat, layout = flatten(op, model, hidden, latent, action)
    params, filled = flat.present()
    settings = filled, flat.sizes, [temperature, *flat.scalars], list(layout)
    with torch.no_grad():
        cast = [match(x, hidden.dtype) for x in params]
        inputs = hidden, match(cell, hidden.dtype), latent, action, restart, uniform, normal
        results = torch.ops.fastdream.triton_lstm_mdn_step(cast, *settings, *inputs)
    return MDNStep(*results)


def _fake(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    hidden: Tensor,
    cell: Tensor,
    latent: Tensor,
    action: Tensor,
    restart: Tensor,
    uniform: Tensor,
    normal: Tensor,
) -> Outputs:
    op, n = "lstm_mdn_step", Layout(*layout)
    floats = dict(cell=cell, latent=latent, action=action, uniform=uniform, normal=normal)
    check_floats(op, hidden=hidden, **floats, **{f"parameter {i}": x for i, x in enumerate(params)})
    if hidden.dim() != 2:
        raise ValueError(f"{op}: hidden has shape {list(hidden.shape)}, expected [rows, units]")
    rows, units = hidden.shape
    widths = dict(cell=units, latent=n.latent, action=n.action, uniform=n.latent, normal=n.latent)
    for name, x in floats.items():
        check_shape(op, name, x, rows, widths[name])
    check_restart(op, restart, hidden)
    return (
        hidden.new_empty(rows, units),
        hidden.new_empty(rows, units),
        hidden.new_empty((rows, n.latent), dtype=torch.float32),
        hidden.new_empty(rows, dtype=torch.float32),
    )


def check_restart(op: str, restart: Tensor, hidden: Tensor) -> None:
    """ValueError unless it is a flag of every row."""
    check_shape(op, "restart", restart, len(hidden))
    if restart.dtype != torch.bool or restart.device != hidden.device:
        raise ValueError(
            f"{op}: restart is {restart.dtype} on {restart.device}, expected torch.bool on {hidden.device}"
        )


def _kernel(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    *inputs: Any,
) -> Outputs:
    n, (temperature, *rest) = Layout(*layout), scalars
    outputs = _fake(params, filled, sizes, scalars, layout, *inputs)
    new_hidden, new_cell, drawn, ends = outputs
    hidden, cell, latent, action, restart, uniform, normal = (x.contiguous() for x in inputs)
    reader = Reader([x.contiguous() for x in params], filled, sizes, rest)
    of_input, of_hidden, out = (reader.layer() for _ in range(3))
    assert of_input.bias is not None
    weights = of_input.weight, of_hidden.weight, of_input.bias
    lstm(latent, action, restart, hidden, cell, *weights, new_hidden, new_cell, n.flag == 1)
    mixture(new_hidden, out.weight, out.bias, uniform, normal, drawn, ends, n.mixtures, temperature)
    return outputs


register(
    "lstm_mdn_step(Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout, Tensor hidden,"
    " Tensor cell, Tensor latent, Tensor action, Tensor restart, Tensor uniform, Tensor normal)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
