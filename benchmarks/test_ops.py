"""Every op at the shapes of the presets, forward and with all gradients, by every backend that has it.

    pytest benchmarks/test_ops.py -k "observe and 1m" --benchmark-json=observe.json

Both backends run in one process and one after the other, so that their ratio holds where a time does not.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from fastdream import ops as fd

from . import floors
from .calls import PLANS, forward, forward_backward, leaves
from .shapes import MODES, Mode, backends, shape


def cases() -> list:
    """Name, preset, mode and backend of everything to time; the backends of a thing come one after the other."""
    params = []
    for name, plan in PLANS.items():
        for preset in plan.presets + plan.slow:
            marks = [pytest.mark.slow] if preset in plan.slow else []
            for mode in MODES if plan.backward else MODES[:1]:
                for backend in backends(name.partition(":")[0]):
                    values = name, preset, mode, backend
                    params.append(pytest.param(*values, marks=marks, id="-".join(values)))
    return params


@pytest.mark.parametrize(("name", "preset", "mode", "backend"), cases())
def test_op(timed: Callable[..., Any], name: str, preset: str, mode: Mode, backend: str):
    op = name.partition(":")[0]
    function = getattr(fd.load("reference", **{op: backend}), op)
    call = PLANS[name].call(shape(preset))
    about = {"what": name, "preset": preset, "mode": mode, "backend": backend}
    if mode == "forward":
        floor = floors.forward(call.args, forward(function, call), call.flops)
        floor = floor if call.bytes is None else floor._replace(bytes=call.bytes)
        result = timed(partial(forward, function, call), floor, **about)
    else:
        outputs = function(*call.args, **call.kwargs)
        floor = floors.forward_backward(call.args, outputs, call.flops)
        grads = [torch.ones_like(x) for x in floors.tensors(outputs) if x.requires_grad]
        inputs = leaves(call)
        result = timed(partial(forward_backward, function, call, inputs, grads), floor, **about)
    assert all(x.isfinite().all() for x in floors.tensors(result) if x.is_floating_point())
