"""`lstm_scan`, with its gradient: see `recurrence` for the kernels."""

from typing import Any

import torch
import triton
from torch import Tensor

from fastdream.ops.reference.layers import match
from fastdream.ops.triton.block_product import Tiles
from fastdream.ops.triton.library import (
    check_floats,
    check_shape,
    launch,
    register,
    register_once_differentiable,
)
from fastdream.ops.triton.lstm import PRECISION, lstm_tiles
from fastdream.ops.triton.recurrence import lstm_scan_bwd_kernel, lstm_scan_fwd_kernel

Forward = tuple[Tensor, Tensor, Tensor, Tensor]


def lstm_scan(
    entered: Tensor, weight: Tensor, restart: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor]:
    """As `fastdream.ops.reference.lstm_scan`, in entered's dtype, float32 or half precision. Differentiable once."""
    others = (match(x, entered.dtype) for x in (weight, hidden, cell))
    weight, hidden, cell = others
    hiddens, last, _, _ = torch.ops.fastdream.triton_lstm_scan(entered, weight, restart, hidden, cell)
    return hiddens, last


def _fake(entered: Tensor, weight: Tensor, restart: Tensor, hidden: Tensor, cell: Tensor) -> Forward:
    op = "lstm_scan"
    check_floats(op, entered=entered, weight=weight, hidden=hidden, cell=cell)
    if entered.dim() != 3 or not entered.shape[1] or entered.shape[2] % 4:
        raise ValueError(f"{op}: entered has shape {list(entered.shape)}, expected [rows, steps, 4 * units]")
    rows, steps, width = entered.shape
    units = width // 4
    check_shape(op, "weight", weight, width, units)
    for name, x in (("hidden", hidden), ("cell", cell)):
        check_shape(op, name, x, rows, units)
    check_shape(op, "restart", restart, rows, steps)
    if restart.dtype != torch.bool or restart.device != entered.device:
        raise ValueError(
            f"{op}: restart is {restart.dtype} on {restart.device}, expected torch.bool on {entered.device}"
        )
    states = [entered.new_empty(rows, steps, units) for _ in range(2)]
    gates = entered.new_empty((rows, steps, width), dtype=torch.float32)
    return states[0], entered.new_empty(rows, units), states[1], gates


def _forward(entered: Tensor, weight: Tensor, restart: Tensor, hidden: Tensor, cell: Tensor) -> Forward:
    outputs = _fake(entered, weight, restart, hidden, cell)
    hiddens, last, cells, gates = outputs
    entered, weight, restart = entered.contiguous(), weight.contiguous(), restart.contiguous()
    hidden, cell = hidden.contiguous(), cell.contiguous()
    rows, steps, units = hiddens.shape
    tiles = lstm_tiles(rows, units, entered.element_size())._replace(stages=4)
    for time in range(steps):
        inputs = entered[:, time], restart[:, time], hidden, cell, weight
        strides = [x.stride(0) for x in inputs[:4]]
        hidden, cell, after = hiddens[:, time], cells[:, time], gates[:, time]
        _launch(
            lstm_scan_fwd_kernel,
            tiles,
            (rows, units),
            *inputs,
            hidden,
            cell,
            after,
            rows,
            *strides,
            hidden.stride(0),
            after.stride(0),
        )
    last.copy_(cell)
    return outputs


def _launch(kernel: Any, tiles: Tiles, shape: tuple[int, int], *args: Any) -> None:
    """For states of a shape, rows and units."""
    rows, units = shape
    launch(
        kernel,
        (triton.cdiv(units, tiles.n), triton.cdiv(rows, tiles.m)),
        *args,
        D=units,
        PRECISION=PRECISION,
        BM=tiles.m,
        BU=tiles.n,
        BK=tiles.k,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _backward_fake(
    grad: Tensor | None,
    grad_last: Tensor | None,
    weight: Tensor,
    restart: Tensor,
    hidden: Tensor,
    cell: Tensor,
    hiddens: Tensor,
    cells: Tensor,
    gates: Tensor,
) -> Gradients:
    d_states = torch.empty_like(hidden), torch.empty_like(cell)
    return weight.new_empty(gates.shape), torch.empty_like(weight), *d_states


def _backward(
    grad: Tensor | None,
    grad_last: Tensor | None,
    weight: Tensor,
    restart: Tensor,
    hidden: Tensor,
    cell: Tensor,
    hiddens: Tensor,
    cells: Tensor,
    gates: Tensor,
) -> Gradients:
    rows, steps, units = hiddens.shape
    d_entered = weight.new_empty(gates.shape)
    d_cell = (
        cell.new_zeros(cell.shape, dtype=torch.float32) if grad_last is None else grad_last.float().clone()
    )
    weight, restart, d_cell = weight.contiguous(), restart.contiguous(), d_cell.contiguous()
    hidden, cell = hidden.contiguous(), cell.contiguous()
    grad = None if grad is None else grad.contiguous()
    tiles = lstm_tiles(rows, units, weight.element_size())
    tiles = Tiles(tiles.m, max(16, tiles.n), 2 * tiles.k, 4, 4)  # it sums four times as many numbers
    later = later_restart = None
    for time in reversed(range(steps)):
        own = None if grad is None else grad[:, time]
        before = cells[:, time - 1] if time else cell
        now, at, out = cells[:, time], restart[:, time], d_entered[:, time]
        saved = gates[:, time], now, before, at
        _launch(
            lstm_scan_bwd_kernel,
            tiles,
            (rows, units),
            own,
            later,
            later_restart,
            weight,
            *saved,
            d_cell,
            out,
            rows,
            0 if own is None else own.stride(0),
            out.stride(0),
            at.stride(0),
            gates.stride(0),
            now.stride(0),
            before.stride(0),
            out.stride(0),
        )
        later, later_restart = out, at
    keep = ~restart[..., None]
    first = d_entered[:, 0] * keep[:, 0]
    seen = torch.cat([hidden[:, None], hiddens[:, :-1]], 1) * keep
    d_weight = d_entered.flatten(0, 1).t() @ seen.flatten(0, 1)
    return d_entered, d_weight, first @ weight, d_cell.to(cell.dtype)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Forward) -> None:
    _, *others = inputs
    hiddens, _, cells, gates = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*others, hiddens, cells, gates)


def _gradient(
    ctx: Any, grad: Tensor | None, grad_last: Tensor | None, *unused: Any
) -> tuple[Tensor | None, ...]:
    weight, restart, hidden, cell, *outputs = ctx.saved_tensors
    d_entered, d_weight, d_hidden, d_cell = torch.ops.fastdream.triton_lstm_scan_backward(
        grad, grad_last, weight, restart, hidden, cell, *outputs
    )
    return d_entered, d_weight, None, d_hidden, d_cell


register_once_differentiable(
    register(
        "lstm_scan(Tensor entered, Tensor weight, Tensor restart, Tensor hidden, Tensor cell)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _forward,
        _fake,
    ),
    register(
        "lstm_scan_backward(Tensor? grad, Tensor? grad_last, Tensor weight, Tensor restart, Tensor hidden, Tensor cell,"
        " Tensor hiddens, Tensor cells, Tensor gates) -> (Tensor, Tensor, Tensor, Tensor)",
        _backward,
        _backward_fake,
    ),
    _gradient,
    _save,
    "lstm_scan",
)
