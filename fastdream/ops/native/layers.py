"""norm_act, and what it shares with mlp."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastdream.ops.native.library import check_float, check_shape, contiguous, empty_like, rows_of, run
from fastdream.ops.native.params import ACTS, NORMS, code, with_gaps
from fastdream.ops.native.registry import call, register, register_once_differentiable
from fastdream.ops.params import Act, Norm

Optional = Tensor | None
Flags = Sequence[bool]


def norm_act(
    x: Tensor, scale: Optional, shift: Optional, norm: Norm = "rms", act: Act = "silu", eps: float = 1e-4
) -> Tensor:
    """As `fastdream.ops.reference.norm_act`, all float32 or all float64. Differentiable once."""
    codes = code(NORMS, norm, "norm"), code(ACTS, act, "activation")
    if norm == "none":
        scale = shift = None  # they belong to the norm
    return call("norm_act", x, scale, shift, *codes, eps)


def _check_norm_act(op: str, x: Tensor, scale: Optional, shift: Optional) -> None:
    given = {"x": x} | {name: p for name, p in (("scale", scale), ("shift", shift)) if p is not None}
    check_float(op, **given)
    if x.dim() < 1:
        raise ValueError(f"{op}: x has shape [], expected [..., N]")
    for name, p in given.items():
        if name != "x":
            check_shape(op, name, p, x.shape[-1])


def _norm_act_fake(x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float) -> Tensor:
    _check_norm_act("norm_act", x, scale, shift)
    return empty_like(x)


def _norm_act(x: Tensor, scale: Optional, shift: Optional, norm: int, act: int, eps: float) -> Tensor:
    y = _norm_act_fake(x, scale, shift, norm, act, eps)
    run("norm_act", (*contiguous(x, scale, shift), y), (norm, act, *rows_of(x)), (eps,))
    return y


def _norm_act_backward_fake(
    x: Tensor,
    scale: Optional,
    shift: Optional,
    norm: int,
    act: int,
    eps: float,
    grad: Tensor,
    wanted: Sequence[bool],
) -> list[Tensor]:
    _check_norm_act("norm_act_backward", x, scale, shift)
    check_float("norm_act_backward", x=x, grad=grad)
    check_shape("norm_act_backward", "grad", grad, *x.shape)
    inputs = zip((x, scale, shift), (True, *wanted[1:]), strict=True)
    return [empty_like(p) for p, want in inputs if p is not None and want]


def _norm_act_backward(*inputs: Any) -> list[Tensor]:
    gradients = _norm_act_backward_fake(*inputs)
    x, scale, shift, norm, act, eps, grad, wanted = inputs
    outputs = with_gaps(gradients, (True, *wanted[1:]))
    run("norm_act_backward", (*contiguous(x, scale, shift, grad), *outputs), (norm, act, *rows_of(x)), (eps,))
    return gradients


def save_norm_act(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, shift, *ctx.statics = inputs
    ctx.present = scale is not None, shift is not None
    ctx.save_for_backward(x, *(p for p in (scale, shift) if p is not None))


def _norm_act_gradient(ctx: Any, grad: Tensor) -> tuple[Optional, ...]:
    x, *present = ctx.saved_tensors
    scale, shift = with_gaps(present, ctx.present)
    # A norm with neither scale nor shift in it does not read them.
    wanted = [True, *ctx.needs_input_grad[1:3]]
    gradients = call("norm_act_backward", x, scale, shift, *ctx.statics, grad, wanted)
    return (*with_gaps(gradients, wanted), None, None, None)


_NORM_ACT = "Tensor x, Tensor? scale, Tensor? shift, int norm, int act, float eps"
register_once_differentiable(
    register(f"norm_act({_NORM_ACT}) -> Tensor", _norm_act, _norm_act_fake),
    register(
        f"norm_act_backward({_NORM_ACT}, Tensor grad, bool[] wanted) -> Tensor[]",
        _norm_act_backward,
        _norm_act_backward_fake,
    ),
    _norm_act_gradient,
    save_norm_act,
    "norm_act",
)
