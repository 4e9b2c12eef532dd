"""REINFORCE: log probabilities, entropies and loss of an action key in one pass over its outputs, gradients in another.

A program has all elements of its rows, one after the other if they are classes, side by side if they are normals. Of
several keys each adds to what those before it found.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from fastdream.ops.triton.config import row_tile
from fastdream.ops.triton.library import (
    capability,
    check_floats,
    check_shape,
    launch,
    register,
    register_once_differentiable,
)
from fastdream.ops.triton.padding import as_rows, empty_rows
from fastdream.ops.triton.policy_loss_kernels import reinforce_bwd_kernel, reinforce_fwd_kernel

Results = tuple[Tensor, Tensor, Tensor]
Key = tuple[Tensor, Tensor | None, int, int]  # logits or mean, std, elements, classes of each


def reinforce(
    outs: Sequence[tuple[Tensor, ...]],
    action: Tensor,
    adv: Tensor,
    weight: Tensor,
    actent: float,
    unimix: float = 0.0,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """As `fastdream.ops.reference.reinforce`, float32 or half precision. Differentiable once."""
    flat = [x.flatten(2) for out in outs for x in out]
    sizes = [n for out in outs for n in (len(out), *out[0].shape[2:], *[0] * (len(out) == 2))]
    given = action.detach(), adv.detach(), weight.detach()
    loss, log_prob, entropy = torch.ops.fastdream.triton_reinforce(flat, *given, sizes, actent, unimix)
    return loss, log_prob, entropy.unbind()


def _keys(outs: Sequence[Tensor], sizes: Sequence[int]) -> list[Key]:
    """What `reinforce` has flattened, by key."""
    given, found = iter(outs), []
    for i in range(0, len(sizes), 3):
        count, elements, classes = sizes[i : i + 3]
        found.append((next(given), next(given) if count == 2 else None, elements, classes))
    return found


def _check(
    op: str, outs: Sequence[Tensor], action: Tensor, adv: Tensor, weight: Tensor, sizes: Sequence[int]
) -> None:
    check_floats(op, outs=outs[0], action=action, adv=adv, weight=weight)
    if adv.dim() != 2 or outs[0].dim() != 3 or adv.shape[1] > outs[0].shape[1]:
        raise ValueError(
            f"{op}: adv has shape {list(adv.shape)}, expected [N, H] for outputs {list(outs[0].shape)}"
        )
    lead = len(adv), outs[0].shape[1]
    for first, second, elements, classes in _keys(outs, sizes):
        width = elements * max(1, classes)
        check_floats(op, outs=first, stds=second)
        check_shape(op, "outs", first, *lead, width)
        if second is not None:
            check_shape(op, "stds", second, *lead, width)
    check_shape(op, "action", action, *lead, sum(e * max(1, c) for _, _, e, c in _keys(outs, sizes)))
    check_shape(op, "weight", weight, *adv.shape)


def _fake(
    outs: Sequence[Tensor],
    action: Tensor,
    adv: Tensor,
    weight: Tensor,
    sizes: Sequence[int],
    actent: float,
    unimix: float,
) -> Results:
    _check("reinforce", outs, action, adv, weight, sizes)
    loss, log_prob = (adv.new_empty(adv.shape, dtype=torch.float32) for _ in range(2))
    return loss, log_prob, adv.new_empty(len(sizes) // 3, *adv.shape, dtype=torch.float32)


def _alike(first: Tensor, second: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """As rows that lie equally far apart."""
    first = as_rows(first)
    if second is None:
        return first, None
    second = as_rows(second)
    same = first.stride(0) == second.stride(0)
    return (first, second) if same else (first.contiguous(), second.contiguous())


def _forward(*inputs: Any) -> Results:
    results, sizes = _fake(*inputs), inputs[4]
    keys = len(sizes) // 3
    each = [(results, {"KEY": i, "KEYS": keys}) for i in range(keys)]
    _launch(reinforce_fwd_kernel, results[0].numel(), each, *inputs)
    return results


def _backward_fake(grad: Tensor, *inputs: Any) -> list[Tensor]:
    outs, action, adv, weight, sizes, *_ = inputs
    _check("reinforce_backward", outs, action, adv, weight, sizes)
    check_shape("reinforce_backward", "grad", grad, *adv.shape)
    return [empty_rows(x, *x.shape) for x in outs]


def _backward(grad: Tensor, *inputs: Any) -> list[Tensor]:
    gradients, (outs, *_, sizes, _, _) = _backward_fake(grad, *inputs), inputs
    grad, rows = grad.contiguous(), outs[0].shape[:2].numel()
    keys = _keys(gradients, sizes)
    each = [((grad, d, std, as_rows(d).stride(0)), dict[str, int]()) for d, std, *_ in keys]
    _launch(reinforce_bwd_kernel, rows, each, *inputs)
    return gradients


def _launch(
    kernel: Any,
    rows: int,
    each: Sequence[tuple[tuple[Any, ...], dict[str, int]]],
    outs: Sequence[Tensor],
    action: Tensor,
    adv: Tensor,
    weight: Tensor,
    sizes: Sequence[int],
    actent: float,
    unimix: float,
) -> None:
    """each: what the kernel takes of a key beside the op's inputs."""
    acts, begin = as_rows(action), 0
    given, steps = (adv.contiguous(), as_rows(weight)), outs[0].shape[1]
    for (first, second, elements, classes), (others, constants) in zip(_keys(outs, sizes), each, strict=True):
        x, stds = _alike(first, second)
        tile = row_tile(classes or elements, capability(adv.device), tensors=8)
        launch(
            kernel,
            (triton.cdiv(rows, tile.rows),),
            x,
            stds,
            acts[:, begin:],
            *given,
            *others,
            actent,
            rows,
            adv.shape[1],
            steps,
            x.stride(0),
            acts.stride(0),
            given[1].stride(0),
            E=elements,
            C=classes,
            UNIMIX=unimix,
            BM=tile.rows,
            BC=tile.cols,
            num_warps=tile.warps,
            **constants,
        )
        begin += first.shape[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    outs, *tensors = inputs[:4]
    ctx.statics, ctx.count = inputs[4:], len(outs)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*outs, *tensors)


def _gradient(ctx: Any, grad: Tensor, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # read once: checkpointing does not give them twice
    outs, tensors = saved[: ctx.count], saved[ctx.count :]
    gradients = torch.ops.fastdream.triton_reinforce_backward(grad, outs, *tensors, *ctx.statics)
    return gradients, *[None] * 6


_GIVEN = "Tensor[] outs, Tensor action, Tensor adv, Tensor weight, int[] sizes, float actent, float unimix"
register_once_differentiable(
    register(f"reinforce({_GIVEN}) -> (Tensor, Tensor, Tensor)", _forward, _fake),
    register(f"reinforce_backward(Tensor grad, {_GIVEN}) -> Tensor[]", _backward, _backward_fake),
    _gradient,
    _save,
    "reinforce",
)
