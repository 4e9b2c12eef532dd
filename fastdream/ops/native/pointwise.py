"""symlog and symexp."""

from torch import Tensor

from fastdream.ops.native.library import check_float, empty_like, run
from fastdream.ops.native.registry import call, register, register_gradient


def symlog(x: Tensor) -> Tensor:
    """As `fastdream.ops.reference.symlog`, x float32 or float64 of any shape. Differentiable once."""
    return call("symlog", x)


def symexp(x: Tensor) -> Tensor:
    """As `fastdream.ops.reference.symexp`, x float32 or float64 of any shape. Differentiable once."""
    return call("symexp", x)


def _register(name: str) -> None:
    """Both ops of that name."""

    def fake(x: Tensor) -> Tensor:
        check_float(name, x=x)
        return empty_like(x)

    def forward(x: Tensor) -> Tensor:
        y = fake(x)
        run(name, (x.contiguous(), y), (x.numel(),))
        return y

    def backward_fake(grad: Tensor, x: Tensor) -> Tensor:
        check_float(f"{name}_backward", x=x, grad=grad)
        return empty_like(x)

    def backward(grad: Tensor, x: Tensor) -> Tensor:
        d_x = backward_fake(grad, x)
        run(f"{name}_backward", (x.contiguous(), grad.contiguous(), d_x), (x.numel(),))
        return d_x

    ops = (
        register(f"{name}(Tensor x) -> Tensor", forward, fake),
        register(f"{name}_backward(Tensor grad, Tensor x) -> Tensor", backward, backward_fake),
    )
    register_gradient(*ops, lambda inputs, output: inputs)


_register("symlog")
_register("symexp")
