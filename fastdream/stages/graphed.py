"""Updates of V and M as CUDA graphs on a GPU, for they are thousands of small launches."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fastdream.adam import Adam
from fastdream.graphs import Captured, CudaGraphs, Recorder, Results


class Fitted:
    """All that an update changes: parameters and what the optimiser knows."""

    def __init__(self, module: nn.Module, opt: Adam) -> None:
        self.module, self.opt = module, opt
        self.generators: dict[str, torch.Generator] = {}

    def state_dict(self) -> dict[str, Any]:
        """Both."""
        return {"module": dict(self.module.state_dict()), "opt": self.opt.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back there."""
        self.module.load_state_dict(state["module"])
        self.opt.load_state_dict(state["opt"])


def recorder_for(device: torch.device) -> Recorder | None:
    """What records updates there; None where each is done anew."""
    return CudaGraphs(device) if device.type == "cuda" else None


def graphed(
    update: Callable[..., Results], module: nn.Module, opt: Adam, device: torch.device
) -> Callable[..., Results]:
    """An update, dictionaries of tensors to such, that is recorded where that is possible."""
    recorder = recorder_for(device)
    return update if recorder is None else Captured(update, Fitted(module, opt), recorder, lambda: None)
