"""Lambda-returns, on the CPU and on CUDA devices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdream.ops.native.library import WHY_NOT, C, check_alike, empty_like
from fastdream.ops.native.registry import call, register, register_gradient
from fastdream.ops.reference.layers import upcast


def lambda_return(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    """As `fastdream.ops.reference.lambda_return`, for four tensors of one shape, dtype and device.

    All [..., T], float32 or float64; half precision is widened to float32. Differentiable once.
    Raises ValueError naming the argument that does not fit.
    """
    return call("lambda_return", upcast(reward), upcast(live), upcast(mix), upcast(value))


def _launch(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Run `<cpu|cuda>_<name>` on contiguous inputs and fresh outputs, on the current stream of their device."""
    assert C is not None, WHY_NOT
    kept = [
        x.contiguous() for x in inputs
    ]  # alive until the kernel is queued; torch's allocator orders reuse
    first = kept[0]
    steps = first.shape[-1]
    rows = first.numel() // steps if steps else 0
    args = first.element_size(), [x.data_ptr() for x in (*kept, *outputs)], rows, steps
    if first.device.type == "cpu":
        status = getattr(C, f"cpu_{name}")(*args)
    else:
        with torch.cuda.device(first.device):
            stream = torch.cuda.current_stream().cuda_stream
            status = getattr(C, f"cuda_{name}")(*args, stream)
    if status != 0:
        raise RuntimeError(f"{name} on {first.device}: {C.error_string(status)}")


def _forward_fake(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    check_alike("lambda_return", 1, reward=reward, live=live, mix=mix, value=value)
    return empty_like(reward)


def _forward(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    ret = _forward_fake(reward, live, mix, value)
    _launch("lambda_return", (reward, live, mix, value), (ret,))
    return ret


Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _backward_fake(grad: Tensor, live: Tensor, mix: Tensor, value: Tensor, ret: Tensor) -> Gradients:
    check_alike("lambda_return_backward", 1, grad=grad, live=live, mix=mix, value=value, ret=ret)
    return empty_like(grad), empty_like(live), empty_like(mix), empty_like(value)


def _backward(grad: Tensor, live: Tensor, mix: Tensor, value: Tensor, ret: Tensor) -> Gradients:
    gradients = _backward_fake(grad, live, mix, value, ret)
    _launch("lambda_return_backward", (grad, live, mix, value, ret), gradients)
    return gradients


_DEVICES = ("CPU", "CUDA")
register_gradient(
    register(
        "lambda_return(Tensor reward, Tensor live, Tensor mix, Tensor value) -> Tensor",
        _forward,
        _forward_fake,
        _DEVICES,
    ),
    register(
        "lambda_return_backward(Tensor grad, Tensor live, Tensor mix, Tensor value, Tensor ret)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _backward,
        _backward_fake,
        _DEVICES,
    ),
    lambda inputs, output: (*inputs[1:], output),
)
