"""What the Dreamers have in common beside their papers: how they are made, act, report and are saved."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fastdream import generators
from fastdream import ops as fd
from fastdream.nets import ActionDecoder, flatten_inputs
from fastdream.openloop import open_loop
from fastdream.ops import Ops
from fastdream.spaces import Spaces, refuse_none, refuse_short, seen, spaces_seen
from fastdream.transfer import Inputs

Carry = dict[str, Tensor]
Metrics = dict[str, Tensor]


class Stateful(Protocol):
    """What a checkpoint keeps: networks, optimisers, and what else learns."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


class Dreamer(ABC):
    """An agent with a world model, an actor and a critic.

    obs_space, act_space   what the environment shows and takes, without reward and flags.
    dtype     of matrix products: "auto", "float32" or "bfloat16".
    ops       table of kernels; None loads the best for the device.
    seed      of the initial parameters and of all later draws.
    """

    replay_context = 0  # extra steps at the front of each training sequence
    capturable = True  # as a CUDA graph: see fastdream.graphs

    nets: Any  # the agent's Networks: `action_width`, `draw`
    model: Any  # of the world: `enc`, `dyn`, `dec`

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
        """Shape and dtype of what `policy` and `update` give replay to keep: nothing, if not said otherwise."""
        return {}

    def init_policy(self, n: int) -> Carry:
        """State before the first observation of n environments."""
        refuse_none(n)
        carry = self.init_train(n)
        return carry | {"action": carry["deter"].new_zeros(n, self.nets.action_width)}

    def init_train(self, b: int) -> Carry:
        """State before training sequences, which start from it unless they have replay context."""
        deter, stoch = self.model.dyn.initial(b, device=self.device, dtype=self.dtype)
        return {"deter": deter, "stoch": stoch}

    def policy(
        self, carry: Carry, obs: Mapping[str, np.ndarray], mode: str = "sample"
    ) -> tuple[Carry, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Choose actions for n environments.

        obs     observation keys and is_first, [n, ...].
        mode    "sample" draws from the policy and explores; "mode" takes what it holds most likely: the most likely
                class, the mean. The official codes evaluate with "mode", except DreamerV3's, which draws there, too.
        Returns the next carry, actions [n, ...] by key, and what `latent_spec` names for replay.
        """
        if mode not in ("sample", "mode"):
            raise ValueError(f"mode={mode!r} is unknown; use 'sample' or 'mode'")
        inputs = self.inputs(seen(obs, self._seen, len(carry["deter"])))
        carry, made = self.act(carry, inputs, greedy=mode == "mode")
        (host,) = self.inputs.back(made)
        # NumPy converts to the same numbers as torch, whose calls take longer on so few.
        latents = {key: host[key].astype(dtype) for key, (_, dtype) in self.latent_spec.items()}
        return carry, self._decode(host["action"]), latents

    def report(
        self, carry: Carry, batch: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
        """Metrics of one batch without learning from it, and what the model would have predicted.

        Returns losses and the like, and for each observation key an open-loop prediction: see `openloop.open_loop`.
        """
        refuse_short(batch, 2 + self.replay_context)  # one to observe, and one to dream
        generator, model = self.generators["report"], self.model
        with torch.no_grad():
            carry, batch, action = self.context(carry, batch)
            metrics = self.metrics(carry, batch, self.nets.draw(*action.shape[:2], generator))
            parts = model.enc, model.dyn, model.dec
            pictures = open_loop(self.ops, *parts, carry, batch, action, generator)
        return metrics, pictures

    def context(
        self, carry: Carry, batch: Mapping[str, Tensor]
    ) -> tuple[Carry, Mapping[str, Tensor], Tensor]:
        """Split replay context from a batch: initial state, the T trained steps, their flat actions [B, T, A]."""
        return carry, batch, self.flat_action(batch)

    def flat_action(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Actions of a batch [B, T, A]."""
        action = {k: batch[f"action/{k}"] for k in self.act_space}
        return flatten_inputs(self.act_space, action, dtype=self.dtype, join=self.ops.join_inputs)

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
        """`policy` on the device: the next carry; and for the host the flat action and what replay keeps."""

    @abstractmethod
    def update(self, carry: Carry, batch: Mapping[str, Tensor]) -> tuple[Carry, dict[str, Tensor], Metrics]:
        """One gradient step of every optimiser on sequences [B, replay_context + T, ...] in replay's time convention.

        Returns the next carry, the new latents of the T trained steps for replay, and metrics (0-d tensors).
        """

    @abstractmethod
    def metrics(self, carry: Carry, batch: Mapping[str, Tensor], draws: Any) -> Metrics:
        """What `update` would say of all losses, without learning; sequences without their context."""
