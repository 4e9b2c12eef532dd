"""torch.ops.fastdream.observe and its gradient: what `scan` calls.

params, filled, sizes, scalars   core and posterior, see `params.Flat`
layout                           S, C (0: normals), the form of their std, whether the posterior sees the embedding
                                 alone, whether there is a posterior, elements that the forward scan keeps of every
                                 row and step
The last result is what it keeps.
"""

from typing import Any

import torch
from torch import Tensor

from fastdream.ops.native.categorical import check_index
from fastdream.ops.native.library import check_float, check_shape, contiguous, empty_like, run
from fastdream.ops.native.params import padded, with_gaps
from fastdream.ops.native.registry import call, register, register_once_differentiable

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def _forward_fake(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor | None,
    reset: Tensor | None,
    noise: Tensor | None,
    index: Tensor | None,
) -> Outputs:
    count, classes, _, _, posterior, width = layout
    state = (count, classes) if classes else (count,)
    floats = {"deter": deter, "stoch": stoch, "action": action, "embed": embed, "noise": noise}
    check_float("observe", **{name: x for name, x in floats.items() if x is not None})
    (batch, deter_width), length = deter.shape, action.shape[1]
    check_shape("observe", "stoch", stoch, batch, *state)
    check_shape("observe", "action", action, batch, length, action.shape[-1])
    lead = batch, length
    if embed is not None:
        check_shape("observe", "embed", embed, *lead, embed.shape[-1])
    for name, x, shape, dtype in (
        ("reset", reset, lead, torch.bool),
        ("noise", noise, (*lead, count), deter.dtype),
        ("index", index, (*lead, count), torch.int64),
    ):
        if x is not None:
            check_shape("observe", name, x, *shape)
            if x.dtype != dtype or x.device != deter.device:
                raise ValueError(
                    f"observe: {name} is {x.dtype} on {x.device}, expected {dtype} on {deter.device}"
                )
    drawn = lead if posterior else (0, 0)
    saved = batch * ((length + 1) * padded(deter_width) + length * width)
    return (
        deter.new_empty(*lead, deter_width),
        deter.new_empty(*drawn, *state),
        deter.new_empty(*drawn, *(state if classes else (2 * count,))),
        deter.new_empty((*drawn, count) if classes else (0, 0, 0), dtype=torch.int64),
        deter.new_empty(saved),
    )


def _dims(action: Tensor, embed: Tensor | None, layout: list[int]) -> list[int]:
    return [*action.shape, 0 if embed is None else embed.shape[-1], *layout[:4]]


def _forward(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    *inputs: Any,
) -> Outputs:
    outputs = _forward_fake(params, filled, sizes, scalars, layout, *inputs)
    _, _, action, embed, _, _, index = inputs
    check_index("observe", index, layout[1])
    tensors = with_gaps(params, filled) + list(inputs)
    dims = _dims(action, embed, layout)
    run("observe", [*contiguous(*tensors), *outputs], [*sizes, *dims, outputs[4].numel()], scalars)
    return outputs


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
    reset: Tensor | None,
    noise: Tensor | None,
    index: Tensor,
    logit: Tensor,
    saved: Tensor,
    d_deter: Tensor | None,
    d_stoch: Tensor | None,
    d_logit: Tensor | None,
    wanted: list[int],
) -> list[Tensor]:
    results = [*params, deter, stoch, action, embed]
    return [empty_like(x) for x, want in zip(results, wanted, strict=True) if want and x is not None]


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
    *inputs: Any,
) -> list[Tensor]:
    *others, wanted = inputs
    model = params, filled, sizes, scalars, layout
    gradients = _backward_fake(*model, deter, stoch, action, embed, *inputs)
    if action.shape[0] * action.shape[1] == 0:
        return [x.zero_() for x in gradients]
    count, saved = len(params), others[4]
    placed = with_gaps(gradients, wanted)
    tensors = with_gaps(params, filled) + contiguous(stoch, action, embed, *others)
    outputs = with_gaps(placed[:count], filled) + placed[count:]
    dims = _dims(action, embed, layout)
    run("observe_backward", [*contiguous(*tensors), *outputs], [*sizes, *dims, saved.numel()], scalars)
    return gradients


def _setup(ctx: Any, inputs: tuple, output: Outputs) -> None:
    params, filled, sizes, scalars, layout, deter, stoch, action, embed, reset, noise, _ = inputs
    _, _, logit, index, saved = output
    noise = None if layout[1] else noise  # a gradient of one-hots does not see it
    ctx.mark_non_differentiable(index, saved)
    ctx.set_materialize_grads(False)
    ctx.static = filled, sizes, scalars, layout
    ctx.save_for_backward(deter, stoch, action, embed, reset, noise, index, logit, saved, *params)


def _gradient(ctx: Any, d_deter: Tensor, d_stoch: Tensor, d_logit: Tensor, *_: None) -> tuple:
    saved = ctx.saved_tensors  # read once: checkpointing does not give them twice
    inputs, params = saved[:9], saved[9:]
    needs = ctx.needs_input_grad
    wanted = [int(need) for need in (*needs[0], *needs[5:9])]
    grads = call("observe_backward", list(params), *ctx.static, *inputs, d_deter, d_stoch, d_logit, wanted)
    placed = with_gaps(grads, wanted)
    count = len(params)
    return placed[:count], None, None, None, None, *placed[count:], None, None, None


_MODEL = "Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout"
_INPUTS = "Tensor deter, Tensor stoch, Tensor action, Tensor? embed, Tensor? reset"
register_once_differentiable(
    register(
        f"observe({_MODEL}, {_INPUTS}, Tensor? noise, Tensor? index)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _forward,
        _forward_fake,
    ),
    register(
        f"observe_backward({_MODEL}, {_INPUTS}, Tensor? noise, Tensor index, Tensor logit, Tensor saved,"
        " Tensor? d_deter, Tensor? d_stoch, Tensor? d_logit, int[] wanted) -> Tensor[]",
        _backward,
        _backward_fake,
    ),
    _gradient,
    _setup,
    "observe",
)
