"""The memory step of World Models: an LSTM and a mixture of normals for every latent dimension, without gradient."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native.library import check_float, check_shape, contiguous, run
from fastdream.ops.native.params import Flat, add_layer, check_params, with_gaps
from fastdream.ops.native.registry import call, register
from fastdream.ops.params import MDNRNN, Control, Layer, MDNDream, MDNStep
from fastdream.ops.reference.layers import match
from fastdream.ops.reference.mdn import dreamt


class Layout(NamedTuple):
    """What the kernel must know beside parameters, in the order in which it reads it."""

    latent: int
    action: int  # width
    flag: int  # 1 if the restart flag is an input
    mixtures: int


def flatten(op: str, model: MDNRNN, hidden: Tensor, latent: Tensor, action: Tensor) -> tuple[Flat, Layout]:
    """The model for the states and inputs of a step; ValueError naming what of it does not fit them."""
    flat, width = Flat([], [], []), hidden.shape[-1]
    layout = Layout(latent.shape[-1], action.shape[-1], int(model.restart), model.mixtures)
    inputs, drawn = sum(layout[:3]), 3 * layout.latent * model.mixtures
    outs = model.out.weight.shape[0]
    if not drawn <= outs <= drawn + 1:  # a compiler finds no unknown number in a tuple
        raise ValueError(
            f"{op}: model.out gives {outs} numbers, expected {drawn}, or {drawn + 1} with an end"
        )
    add_layer(flat, op, "model.weight_ih", Layer(model.weight_ih, model.bias), (inputs, 4 * width))
    add_layer(flat, op, "model.weight_hh", Layer(model.weight_hh), (width, 4 * width))
    add_layer(flat, op, "model.out", Layer(model.out.weight, model.out.bias), (width, outs))
    return flat, layout


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
    """As `fastdream.ops.reference.lstm_mdn_step`, in float32 or float64.

    Parameters have hidden's dtype; the other floats are cast to it. Raises ValueError naming what does not fit.
    """
    op = "lstm_mdn_step"
    flat, layout = flatten(op, model, hidden, latent, action)
    params, filled = flat.present()
    check_params(op, params, hidden, "hidden")
    floats = (match(x, hidden.dtype) for x in (cell, latent, action))
    noise = (match(x, hidden.dtype) for x in (uniform, normal))
    settings = filled, flat.sizes, [temperature, *flat.scalars], list(layout)
    with torch.no_grad():
        results = call("lstm_mdn_step", params, *settings, hidden, *floats, restart, *noise)
    return MDNStep(*results)


def lstm_mdn_dream(
    model: MDNRNN,
    control: Control,
    hidden: Tensor,
    cell: Tensor,
    latent: Tensor,
    restart: Tensor,
    uniform: Tensor,
    normal: Tensor,
    temperature: float = 1.0,
) -> MDNDream:
    """As `fastdream.ops.reference.lstm_mdn_dream`, by steps of `lstm_mdn_step`."""
    return dreamt(lstm_mdn_step, model, control, hidden, cell, latent, restart, uniform, normal, temperature)


Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def check_state(op: str, hidden: Tensor, restart: Tensor) -> None:
    """ValueError unless hidden is [rows, units], and restart [rows] bool beside it."""
    if hidden.dim() != 2:
        raise ValueError(f"{op}: hidden has shape {list(hidden.shape)}, expected [rows, units]")
    check_shape(op, "restart", restart, hidden.shape[0])
    if restart.dtype != torch.bool or restart.device != hidden.device:
        raise ValueError(
            f"{op}: restart is {restart.dtype} on {restart.device}, expected torch.bool on {hidden.device}"
        )


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
    check_state(op, hidden, restart)
    floats = dict(cell=cell, latent=latent, action=action, uniform=uniform, normal=normal)
    check_float(op, hidden=hidden, **floats)
    rows, units = hidden.shape
    widths = dict(cell=units, latent=n.latent, action=n.action, uniform=n.latent, normal=n.latent)
    for name, x in floats.items():
        check_shape(op, name, x, rows, widths[name])
    return (
        hidden.new_empty(rows, units),
        hidden.new_empty(rows, units),
        hidden.new_empty(rows, n.latent),
        hidden.new_empty(rows),
    )


def _kernel(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    *inputs: Any,
) -> Outputs:
    outputs = _fake(params, filled, sizes, scalars, layout, *inputs)
    whole = contiguous(*inputs, *with_gaps(params, filled))
    count = len(inputs)
    run(
        "lstm_mdn_step",
        [*whole[:count], *outputs, *whole[count:]],
        [inputs[0].shape[0], *layout, *sizes],
        scalars,
    )
    return outputs


register(
    "lstm_mdn_step(Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout, Tensor hidden,"
    " Tensor cell, Tensor latent, Tensor action, Tensor restart, Tensor uniform, Tensor normal)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
