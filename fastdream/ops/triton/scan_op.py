"""torch.ops.fastdream.triton_observe and its gradient: what `scan` calls.

params, filled, sizes, scalars   core and posterior, see `native.params.Flat`
layout                           S, C, form of std, whether the posterior sees the embedding alone: see `read_model`
embed                            None: the net sees deter alone, as the prior does
The last result is what the gradient needs: `Saved.flat`.
"""

from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.params import with_gaps
from fastdream.ops.triton.layer_gradients import Pieces
from fastdream.ops.triton.library import (
    check_floats,
    check_shape,
    contiguous,
    empty_like,
    register,
    register_once_differentiable,
)
from fastdream.ops.triton.scan_backward import backward_scan
from fastdream.ops.triton.scan_forward import forward_scan
from fastdream.ops.triton.scan_gradients import Inputs, Wanted, gradients
from fastdream.ops.triton.scan_model import packed, read_model, sizes_of
from fastdream.ops.triton.scan_saved import Outputs, allocate, saved_of

Results = tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]


def _check(
    params: list[Tensor],
    layout: list[int],
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor | None,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
) -> None:
    check_floats("observe", deter=deter, stoch=stoch, action=action, embed=embed, noise=noise)
    check_floats("observe", deter=deter, **{f"parameter {i}": x for i, x in enumerate(params)})
    batch, length, width = action.shape
    check_shape("observe", "deter", deter, batch, deter.shape[-1])
    check_shape("observe", "stoch", stoch, batch, *(n for n in layout[:2] if n))
    check_shape("observe", "action", action, batch, length, width)
    if embed is not None:
        check_shape("observe", "embed", embed, batch, length, embed.shape[-1])
    check_shape("observe", "reset", reset, batch, length)
    for name, x in (("noise", noise), ("index", index)):
        if x is not None:
            check_shape("observe", name, x, batch, length, layout[0])
    for name, x, dtype in (("reset", reset, torch.bool), ("index", index, torch.int64)):
        if x is not None and (x.dtype != dtype or x.device != deter.device):
            raise ValueError(
                f"observe: {name} is {x.dtype} on {x.device}, expected {dtype} on {deter.device}"
            )


def _fake(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    *others: Any,
) -> Results:
    _check(params, layout, deter, stoch, action, *others)
    model = read_model(params, filled, sizes, scalars, layout)
    outputs, saved = allocate(model, sizes_of(model, len(deter), deter.itemsize), deter, action)
    return (*outputs, saved.flat())


def _forward(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    *inputs: Any,
) -> Results:
    _check(params, layout, *inputs)
    model = read_model(params, filled, sizes, scalars, layout)
    outputs, saved = forward_scan(model, *contiguous(*inputs))  # type: ignore[arg-type]
    return (*outputs, saved.flat())


def _backward_fake(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor | None,
    reset: Tensor,
    noise: Tensor | None,
    outputs: list[Tensor],
    saved: list[Tensor],
    d_deter: Tensor | None,
    d_stoch: Tensor | None,
    d_logit: Tensor | None,
    wanted: list[int],
) -> list[Tensor]:
    results = [*params, deter, stoch, action, embed]
    return [empty_like(x) for x, want in zip(results, wanted, strict=True) if x is not None and want]


def _backward(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor | None,
    reset: Tensor,
    noise: Tensor | None,
    outputs: list[Tensor],
    saved: list[Tensor],
    *others: Any,
) -> list[Tensor]:
    *given, wanted = others
    model = read_model(params, filled, sizes, scalars, layout)
    results = [*params, deter, stoch, action, embed]
    if reset.numel() == 0:
        pairs = zip(results, wanted, strict=True)
        return [torch.zeros_like(x) for x, want in pairs if x is not None and want]
    deter, stoch, action, reset = (x.contiguous() for x in (deter, stoch, action, reset))
    widths, kept, out = sizes_of(model, len(deter), deter.itemsize), saved_of(model, saved), Outputs(*outputs)
    weights = packed(model, widths, deter.dtype)
    grads = backward_scan(model, widths, weights, deter, reset, out, kept, *contiguous(noise, *given))
    count = len(params)
    pieces = Pieces(model, widths, weights, reset, out, kept, grads, any(wanted[:count]))
    inputs = Inputs(deter, stoch.flatten(1), action, None if embed is None else embed.contiguous())
    layers, d_inputs = gradients(pieces, inputs, Wanted(*map(bool, wanted[count:])))
    found = [x for layer in layers for x in layer[:4]]
    present = [x for x, there in zip(found, filled, strict=True) if there] if layers else [None] * count
    return [
        g.reshape(x.shape).to(x.dtype)
        for g, x, want in zip([*present, *d_inputs], results, wanted, strict=True)
        if want and x is not None and g is not None
    ]


def _setup(ctx: Any, inputs: tuple, output: Results) -> None:
    params, filled, sizes, scalars, layout, *tensors, _ = inputs
    *outputs, saved = output
    ctx.mark_non_differentiable(outputs[3], *saved)
    ctx.set_materialize_grads(False)
    ctx.static = filled, sizes, scalars, layout
    ctx.counts = len(tensors), len(saved)
    ctx.save_for_backward(*tensors, *outputs, *saved, *params)


def _gradient(ctx: Any, d_deter: Tensor, d_stoch: Tensor, d_logit: Tensor, *_: None) -> tuple:
    inputs, saved = ctx.counts
    every = ctx.saved_tensors  # read once: checkpointing does not give them twice
    tensors, outputs = every[:inputs], every[inputs : inputs + 4]
    kept, params = every[inputs + 4 :][:saved], every[inputs + 4 + saved :]
    needs = ctx.needs_input_grad
    wanted = [int(need) for need in (*needs[0], *needs[5:9])]
    given = d_deter, d_stoch, d_logit
    grads = torch.ops.fastdream.triton_observe_backward(
        list(params), *ctx.static, *tensors, list(outputs), list(kept), *given, wanted
    )
    placed, count = with_gaps(grads, wanted), len(params)
    return placed[:count], None, None, None, None, *placed[count:], None, None, None


_MODEL = "Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout"
_INPUTS = "Tensor deter, Tensor stoch, Tensor action, Tensor? embed, Tensor reset"
register_once_differentiable(
    register(
        f"observe({_MODEL}, {_INPUTS}, Tensor? noise, Tensor? index)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor[])",
        _forward,
        _fake,
    ),
    register(
        f"observe_backward({_MODEL}, {_INPUTS}, Tensor? noise, Tensor[] outputs, Tensor[] saved,"
        " Tensor? d_deter, Tensor? d_stoch, Tensor? d_logit, int[] wanted) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
    _gradient,
    _setup,
    "observe",
)
