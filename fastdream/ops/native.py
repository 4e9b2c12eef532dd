"""Ops compiled from csrc/: C++ on the CPU, CUDA on the GPU, under one `torch.library` name each.

The compiled module `fastdream._C` knows no torch: it takes pointers, sizes and a stream. What torch must know,
shapes for the compiler, gradients, the current device and stream, is said here.
"""

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

import fastdream
from fastdream.ops.reference.layers import upcast


def _load() -> tuple[ModuleType | None, str]:
    """The compiled module, or why there is none."""
    rebuild = "with a C++ compiler, `FASTDREAM_BUILD=cpp pip install .` compiles it or shows why not"
    try:
        module = import_module("fastdream._C")
    except ModuleNotFoundError:
        why = build_record().get("why") or "no record of the build"
        return None, f"not compiled ({why}); {rebuild}"
    except ImportError as error:
        return None, f"compiled, but cannot be loaded ({error}); {rebuild}"
    if module.version != fastdream.__version__:
        return None, f"compiled for version {module.version}, this is {fastdream.__version__}; {rebuild}"
    return module, ""


def build_record() -> dict[str, str]:
    """What the installation compiled: keys mode, built, why (not more), compilers. Empty if nothing is recorded."""
    files = [Path(folder, "_build.json") for folder in fastdream.__path__]
    return next((json.loads(file.read_text()) for file in files if file.exists()), {})


_C, _WHY_NOT = _load()


def available(device: torch.device) -> str | None:
    """Why these ops cannot serve tensors on `device`, with the remedy; None if they can."""
    if _C is None:
        return _WHY_NOT
    if device.type == "cuda":
        return _cuda_problem(device)
    return None if device.type == "cpu" else f"no kernels for {device.type}"


def _cuda_problem(device: torch.device) -> str | None:
    assert _C is not None
    if not _C.cuda:
        why = build_record().get("why", "")
        return f"compiled without CUDA ({why}); with nvcc, `FASTDREAM_BUILD=cuda pip install .` adds it"
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if (devices := _C.cuda_device_count()) < 1:
        return f"the driver does not serve this build: {_C.error_string(-devices)}"
    if (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"kernels need compute capability 8.0, {device} has {capability[0]}.{capability[1]}"
    return None


def lambda_return(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    """As `fastdream.ops.reference.lambda_return`, for four tensors of one shape, dtype and device.

    All [..., T], float32 or float64; half precision is widened to float32. Differentiable once.
    Raises ValueError naming the argument that does not fit.
    """
    return torch.ops.fastdream.lambda_return(upcast(reward), upcast(live), upcast(mix), upcast(value))


def _check(op: str, inputs: dict[str, Tensor]) -> None:
    """Every input like the first one: what the kernels rely on, since they see bare pointers."""
    name, first = next(iter(inputs.items()))
    if first.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: {name} is {first.dtype}, expected torch.float32 or torch.float64")
    if first.dim() < 1:
        raise ValueError(f"{op}: {name} has shape [], expected [..., T]")
    for other, x in inputs.items():
        for what in ("shape", "dtype", "device"):
            actual, expected = getattr(x, what), getattr(first, what)
            if actual != expected:
                raise ValueError(
                    f"{op}: {other} has {what} {_show(actual)}, expected {_show(expected)} like {name}"
                )


def _show(value: Any) -> str:
    return str(list(value)) if isinstance(value, torch.Size) else str(value)


def _launch(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    """Run `_C.<cpu|cuda>_<name>` on contiguous inputs and fresh outputs, on the current stream of their device."""
    assert _C is not None, _WHY_NOT
    kept = [
        x.contiguous() for x in inputs
    ]  # alive until the kernel is queued; torch's allocator orders reuse
    first = kept[0]
    steps = first.shape[-1]
    rows = first.numel() // steps if steps else 0
    args = first.element_size(), [x.data_ptr() for x in (*kept, *outputs)], rows, steps
    if first.device.type == "cpu":
        status = getattr(_C, f"cpu_{name}")(*args)
    else:
        with torch.cuda.device(first.device):
            stream = torch.cuda.current_stream().cuda_stream
            status = getattr(_C, f"cuda_{name}")(*args, stream)
    if status != 0:
        raise RuntimeError(f"{name} on {first.device}: {_C.error_string(status)}")


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _forward_fake(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    _check("lambda_return", {"reward": reward, "live": live, "mix": mix, "value": value})
    return _like(reward)


def _forward(reward: Tensor, live: Tensor, mix: Tensor, value: Tensor) -> Tensor:
    ret = _forward_fake(reward, live, mix, value)
    _launch("lambda_return", (reward, live, mix, value), (ret,))
    return ret


Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _backward_fake(grad: Tensor, live: Tensor, mix: Tensor, value: Tensor, ret: Tensor) -> Gradients:
    inputs = {"grad": grad, "live": live, "mix": mix, "value": value, "ret": ret}
    _check("lambda_return_backward", inputs)
    return _like(grad), _like(live), _like(mix), _like(value)


def _backward(grad: Tensor, live: Tensor, mix: Tensor, value: Tensor, ret: Tensor) -> Gradients:
    gradients = _backward_fake(grad, live, mix, value, ret)
    _launch("lambda_return_backward", (grad, live, mix, value, ret), gradients)
    return gradients


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:], output)


def _gradient(ctx: Any, grad: Tensor) -> Gradients:
    return torch.ops.fastdream.lambda_return_backward(grad, *ctx.saved_tensors)


def _save_nothing(ctx: Any, inputs: tuple[Tensor, ...], output: Gradients) -> None:
    del ctx, inputs, output


def _no_second_gradient(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "native lambda_return is differentiable once; for gradients of gradients use the reference: "
        'fastdream.ops.load("reference")'
    )


def _register(library: torch.library.Library, schema: str, kernel: Callable, fake: Callable) -> str:
    name = schema.partition("(")[0]
    library.define(schema)
    for key in ("CPU", "CUDA"):
        library.impl(name, kernel, key)
    torch.library.register_fake(f"fastdream::{name}", fake, lib=library)
    return f"fastdream::{name}"


_LIBRARY = torch.library.Library("fastdream", "DEF")
torch.library.register_autograd(
    _register(
        _LIBRARY,
        "lambda_return(Tensor reward, Tensor live, Tensor mix, Tensor value) -> Tensor",
        _forward,
        _forward_fake,
    ),
    _gradient,
    setup_context=_save,
    lib=_LIBRARY,
)
torch.library.register_autograd(
    _register(
        _LIBRARY,
        "lambda_return_backward(Tensor grad, Tensor live, Tensor mix, Tensor value, Tensor ret)"
        " -> (Tensor, Tensor, Tensor, Tensor)",
        _backward,
        _backward_fake,
    ),
    _no_second_gradient,
    setup_context=_save_nothing,
    lib=_LIBRARY,
)
