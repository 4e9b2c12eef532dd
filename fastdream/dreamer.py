"""What the first two Dreamers have in common: how they are made, act, report and are saved."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastdream import generators
from fastdream import ops as fd
from fastdream.nets import ActionDecoder
from fastdream.openloop import open_loop
from fastdream.ops import Ops
from fastdream.spaces import Spaces, refuse_short, seen, spaces_seen
from fastdream.transfer import Inputs

Carry = dict[str, Tensor]
Metrics = dict[str, Tensor]


class Stateful(Protocol):
    """What a checkpoint keeps: networks, optimisers, and what else learns."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


class Dreamer(ABC):
    """An agent that keeps no state in replay: every sequence that it learns from starts from nothing.

    obs_space, act_space   what the environment shows and takes, without reward and flags.
    dtype     of matrix products: "auto", "float32" or "bfloat16".
    ops       table of kernels; None loads the best for the device.
    seed      of the initial parameters and of all later draws.
    """

    replay_context = 0
    capturable = True  # as a CUDA graph: see fastdream.graphs

    nets: Any  # the agent's Networks: `model`, `action_width`, `flat_action`, `draw`

    def __init__(
        self,
        obs_space: Spaces,
        act_space: Spaces,
        dtype: str,
        ops: Ops | None,
        device: str | torch.device,
        seed: int,
    ) -> None:
        self.obs_space, self.act_space = obs_space, act_space
        self.device = torch.device(device)
        auto = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.dtype: torch.dtype = auto if dtype == "auto" else getattr(torch, dtype)
        self.ops = fd.load(device=self.device) if ops is None else ops
        self.inputs, self._decode = Inputs(self.device), ActionDecoder(act_space)
        self._seen = spaces_seen(obs_space)
        self.generators = generators.separate(self.device, seed)

    @property
    def latent_spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """What `policy` and `update` give replay to keep: nothing."""
        return {}

    def init_policy(self, n: int) -> Carry:
        """State before the first observation of n environments."""
        carry = self.init_train(n)
        return carry | {"action": carry["deter"].new_zeros(n, self.nets.action_width)}

    def init_train(self, b: int) -> Carry:
        """State before training sequences, which always start from it."""
        deter, stoch = self.nets.model.dyn.initial(b, device=self.device, dtype=self.dtype)
        return {"deter": deter, "stoch": stoch}

    def policy(
        self, carry: Carry, obs: Mapping[str, np.ndarray], mode: str = "sample"
    ) -> tuple[Carry, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Choose actions for n environments.

        obs     observation keys and is_first, [n, ...].
        mode    "sample" draws from the policy and explores; "mode" takes what it holds most likely, as the official
                codes do in evaluation.
        Returns the next carry, actions [n, ...] by key, and nothing for replay.
        """
        if mode not in ("sample", "mode"):
            raise ValueError(f"mode={mode!r} is unknown; use 'sample' or 'mode'")
        inputs = self.inputs(seen(obs, self._seen, len(carry["deter"])))
        carry, made = self.act(carry, inputs, greedy=mode == "mode")
        (host,) = self.inputs.back(made)
        return carry, self._decode(host["action"]), {}

    def report(
        self, carry: Carry, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Metrics of one batch without learning from it, and what the model would have predicted.

        Returns losses and the like, and for each observation key an open-loop prediction: see `openloop.open_loop`.
        """
        refuse_short(batch, 2)  # one to observe, and one to dream
        generator, nets, (B, T) = self.generators["report"], self.nets, batch["is_first"].shape
        with torch.no_grad():
            metrics = self.metrics(carry, batch, nets.draw(B, T, generator))
            action, parts = nets.flat_action(batch), (nets.model.enc, nets.model.dyn, nets.model.dec)
            pictures = open_loop(self.ops, *parts, carry, batch, action, generator)
        return metrics, pictures

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: parameters, optimisers, generators."""
        parts = {name: part.state_dict() for name, part in self.stateful().items()}
        return parts | {"generators": generators.states(self.generators)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of an agent with the same spaces and configuration."""
        for name, part in self.stateful().items():
            part.load_state_dict(state[name])
        generators.restore(self.generators, state["generators"])

    @property
    @abstractmethod
    def param_count(self) -> int:
        """Trained parameters, without target critics."""

    @abstractmethod
    def stateful(self) -> dict[str, Stateful]:
        """What a checkpoint keeps beside the generators, by name."""

    @abstractmethod
    def act(
        self, carry: Carry, obs: Mapping[str, Tensor], greedy: bool = False
    ) -> tuple[Carry, dict[str, Tensor]]:
        """`policy` on the device: the next carry; and the flat action, for the host."""

    @abstractmethod
    def update(self, carry: Carry, batch: Mapping[str, Tensor]) -> tuple[Carry, dict[str, Tensor], Metrics]:
        """One gradient step of every optimiser on sequences [B, T, ...] in replay's time convention.

        Returns the carry as it came, nothing for replay, and metrics (0-d tensors).
        """

    @abstractmethod
    def metrics(self, carry: Carry, batch: Mapping[str, Tensor], draws: Any) -> Metrics:
        """What `update` would say of all losses, without learning."""
