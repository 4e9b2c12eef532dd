"""Telling torch about the ops of this package, and calling them.

torch.ops.fastdream has them all, and serves whoever has to see a call: compilers, tracers, transformations, modes, and
tensors that are not on the CPU, or not what lies in their memory. Its way through torch's dispatcher takes longer than
a small kernel. Where nobody looks on, `call` computes the same past it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastdream.ops.native.library import as_stored, forward_mode, run, transformed, watched

LIBRARY = torch.library.Library("fastdream", "DEF")


class Op:
    """An op that torch knows.

    dispatched  what torch calls.
    kernel      what computes it.
    function    the same with a gradient, of the arguments and of all tensors in them; None where there is none.
    """

    function: type[torch.autograd.Function] | None = None

    def __init__(self, name: str, kernel: Callable[..., Any]) -> None:
        self.dispatched, self.kernel = getattr(torch.ops.fastdream, name), kernel
        schema = self.dispatched.default._schema
        self.types = [str(argument.type) for argument in schema.arguments]
        self.gives_list = str(schema.returns[0].type) == "List[Tensor]"

    def typed(self, args: Sequence[Any]) -> list[Any]:
        """Arguments whose numbers are what the schema says: 0 may stand for 0.0."""
        return [float(x) if kind == "float" else x for x, kind in zip(args, self.types, strict=True)]

    def tensors(self, args: Sequence[Any]) -> list[Any]:
        """Of arguments, or of what belongs to each of them, those of tensors, without the lists around them."""
        found: list[Any] = []
        for x, kind in zip(args, self.types, strict=True):
            if kind == "List[Tensor]":
                found.extend(x)
            elif kind in ("Tensor", "Optional[Tensor]"):
                found.append(x)
        return found

    def nested(self, flat: Iterator[bool], counts: Iterator[int]) -> list[Any]:
        """What belongs to each argument, of what `tensors` would give; counts are how long the lists are."""
        return [
            list(islice(flat, next(counts)))
            if kind == "List[Tensor]"
            else kind in ("Tensor", "Optional[Tensor]") and next(flat)
            for kind in self.types
        ]

    def differentiate(self, gradient: Callable[..., tuple[Any, ...]], setup: Callable[..., None]) -> None:
        """Compute gradients by what torch.library.register_autograd takes."""
        op = self

        def forward(ctx: Any, args: Sequence[Any], *tensors: Tensor | None) -> Any:
            out = op.kernel(*args)
            setup(ctx, args, out)
            ctx.counts = [len(x) for x, kind in zip(args, op.types, strict=True) if kind == "List[Tensor]"]
            return tuple(out) if op.gives_list else out

        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            needs = ctx.needs_input_grad
            ctx.needs_input_grad = op.nested(iter(needs[1:]), iter(ctx.counts))
            try:
                found = gradient(ctx, grads) if op.gives_list else gradient(ctx, *grads)
            finally:
                ctx.needs_input_grad = needs
            return None, *op.tensors(found)

        methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        self.function = type(f"fastdream_{self.dispatched.__name__}", (torch.autograd.Function,), methods)


OPS: dict[str, Op] = {}


def call(name: str, *args: Any) -> Any:
    """torch.ops.fastdream.<name> of these arguments, which writes to none of them, past the dispatcher if it may be."""
    op = OPS[name]
    if torch.compiler.is_compiling() or transformed() or watched():
        return op.dispatched(*args)
    tensors = op.tensors(args)
    there = [x for x in tensors if x is not None]
    if not all(as_stored(x) and x.is_cpu for x in there):
        return op.dispatched(*args)
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in there)):
        return op.kernel(*op.typed(args))
    return op.dispatched(*args) if op.function is None else op.function.apply(op.typed(args), *tensors)


def register(schema: str, kernel: Callable, fake: Callable, devices: Sequence[str] = ("CPU",)) -> str:
    """Tell torch of an op `name(...) -> ...`: what computes it and what its results look like. Returns its name."""
    name = schema.partition("(")[0]

    def guarded(*args: Any) -> Any:
        if forward_mode():  # torch would leave out tangents without a word
            op, backend = named(name)
            raise RuntimeError(
                f"{backend} {op} has no derivative in forward mode (torch.func.jvp, torch.autograd.forward_ad); "
                'the reference has: fastdream.ops.load("reference")'
            )
        return kernel(*args)

    LIBRARY.define(schema)
    for device in devices:
        LIBRARY.impl(name, guarded, device)
    torch.library.register_fake(f"fastdream::{name}", fake, lib=LIBRARY)
    OPS[name] = Op(name, kernel)
    return f"fastdream::{name}"


def register_kernel(schema: str, fake: Callable, sizes: Callable[..., Sequence[int]]) -> str:
    """Tell torch of an op that is one CPU kernel of the same name, and return that name.

    The kernel gets the arguments in the order of the schema: tensors (None stands for one that is not there),
    then fresh outputs as pointers; what `sizes(*args)` gives; floats as scalars. `fake(*args)` checks and allocates.
    """
    name = schema.partition("(")[0]

    def kernel(*args: Any) -> Any:
        out = fake(*args)
        inputs = [x if x is None else x.contiguous() for x in args if x is None or isinstance(x, Tensor)]
        outputs = out if isinstance(out, tuple) else (out,)
        run(name, (*inputs, *outputs), sizes(*args), [x for x in args if isinstance(x, float)])
        return out

    return register(schema, kernel, fake)


def register_once_differentiable(
    forward: str, backward: str, gradient: Callable, setup: Callable, op: str, backend: str = "native"
) -> None:
    """Make `backward` the gradient of `forward`, through `gradient(ctx, *grads)`; a second gradient is refused.

    gradient  is not asked where no output has a gradient: whatever follows may have none for its input.
    """

    def first_gradient(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        outputs = grads[0] if isinstance(grads[0], (list, tuple)) else grads
        if all(grad is None for grad in outputs):
            needs = ctx.needs_input_grad  # a list where the input is one of tensors
            return tuple([None] * len(need) if isinstance(need, list) else None for need in needs)
        return gradient(ctx, *grads)

    def no_second_gradient(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            f"{backend} {op} is differentiable once; for gradients of gradients use the reference: "
            'fastdream.ops.load("reference")'
        )

    def keep_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    for name, compute, keep in (
        (forward, first_gradient, setup),
        (backward, no_second_gradient, keep_nothing),
    ):
        torch.library.register_autograd(name, compute, setup_context=keep, lib=LIBRARY)
        OPS[name.partition("::")[2]].differentiate(compute, keep)


def register_gradient(
    forward: str,
    backward: str,
    saved: Callable[[tuple[Any, ...], Any], Sequence[Tensor | None]],
    outputs: int = 1,
) -> None:
    """As `register_once_differentiable`, where the gradient is `backward(*grads, *saved(inputs, output), *statics)`.

    grads are of the first so many outputs, statics what of the inputs is no tensor. What `backward` returns are the
    gradients of the first inputs; the others have none.
    """
    compute = partial(call, backward.partition("::")[2])

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        others = output[outputs:] if isinstance(output, tuple) else ()
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(outputs > 1)  # one alone is there whenever this is called
        ctx.save_for_backward(*saved(inputs, output))
        ctx.count = len(inputs)
        ctx.statics = [x for x in inputs if x is not None and not isinstance(x, Tensor)]

    def gradient(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = compute(*grads[:outputs], *ctx.saved_tensors, *ctx.statics)
        found = found if isinstance(found, tuple) else (found,)
        return *found, *[None] * (ctx.count - len(found))

    register_once_differentiable(forward, backward, gradient, setup, *named(forward))


def named(name: str) -> tuple[str, str]:
    """The op and the backend of what was registered by this name, or of what `register` returned."""
    name = name.rpartition("::")[2]
    return name.removeprefix("triton_"), "triton" if name.startswith("triton_") else "native"
