"""World Models: recurrent world models facilitate policy evolution (Ha & Schmidhuber, NeurIPS 2018).

Three parts, learned one after another from rollouts of a random policy: V makes a latent vector z of each picture; M
predicts the next z from z, the action and all that was before; C, one linear layer on what V sees and M remembers, is
evolved, in the environment or in the dream that M is. Neither V nor M ever meets a reward.

What differs from the authors' code: the step of an episode's end is not followed by the next episode's
first in M's loss of z; M forgets wherever an episode begins, where theirs returns to the state that it began the batch
with; M sees a car's actions before they become gas and brake; and pictures are reduced with area support. The rest is
small, and named in tests/test_golden_world_models.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream import generators
from fastdream import ops as fd
from fastdream.agents.world_models_config import SIZES, Config, size
from fastdream.agents.world_models_nets import Controller, Memory, State, Vision, draw, picture_key
from fastdream.ops import Ops
from fastdream.spaces import Spaces, refuse_none, seen, spaces_seen
from fastdream.transfer import Inputs

__all__ = ["SIZES", "Config", "WorldModels", "size"]

Carry = dict[str, Tensor]

# Steps of dreams at once, after which those that are over leave the batch: until then nothing waits for the device.
STRIDE = 16


class WorldModels:
    """V, M and C, and what each learns from.

    obs_space, act_space   what the environment shows and takes, without reward and flags.
    config    `Config()`, through `size` where wanted.
    ops       table of kernels; None loads the best for the device.
    seed      of the initial parameters and of all later draws.
    """

    capturable = False  # as a CUDA graph: see fastdream.graphs
    together = 1  # rows of dreams leave the batch in such numbers that a multiple of it remains
    dtype = torch.float32

    def __init__(
        self,
        obs_space: Spaces,
        act_space: Spaces,
        config: Config,
        ops: Ops | None = None,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        self.obs_space, self.act_space, self.config = obs_space, act_space, config
        self.device = torch.device(device)
        self.ops = fd.load(device=self.device) if ops is None else ops
        self.inputs = Inputs(self.device)
        self.key = picture_key(obs_space)
        self._seen = spaces_seen({self.key: obs_space[self.key]})
        generator = torch.Generator().manual_seed(seed)
        self.controller = Controller(act_space, config)
        channels = obs_space[self.key].shape[-1]
        self.vision = Vision(self.ops, channels, config, generator).to(self.device)
        self.memory = Memory(self.ops, self.controller.actions, config, generator).to(self.device)
        self.controls = torch.zeros(self.controller.count, device=self.device)
        self.generators = {"policy": torch.Generator(self.device).manual_seed(seed + 1)}

    @property
    def param_count(self) -> int:
        """Trained and evolved parameters."""
        nets = (*self.vision.parameters(), *self.memory.parameters())
        return sum(p.numel() for p in nets) + self.controller.count

    # Acting: C on what V sees and M remembers ("Putting Everything Together").

    def init_policy(self, n: int) -> Carry:
        """State before the first observation of n environments."""
        refuse_none(n)
        hidden, cell = self.memory.initial(n)
        return {"hidden": hidden.detach(), "cell": cell.detach()}

    def policy(
        self, carry: Carry, obs: Mapping[str, np.ndarray], mode: str = "sample"
    ) -> tuple[Carry, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Choose actions for n environments.

        obs     the picture and is_first, [n, ...].
        mode    "sample" draws z, as in the paper; "mode" takes its mean.
        Returns the next carry, actions [n, ...] by key, and nothing for replay.
        """
        if mode not in ("sample", "mode"):
            raise ValueError(f"mode={mode!r} is unknown; use 'sample' or 'mode'")
        return self.control(self.controls, carry, obs, greedy=mode == "mode")

    def control(
        self, controls: Tensor, carry: Carry, obs: Mapping[str, np.ndarray], greedy: bool = False
    ) -> tuple[Carry, dict[str, np.ndarray], dict[str, np.ndarray]]:
        """`policy` of other controllers, [P] or [n, P]: the same in all environments or one for each."""
        inputs = self.inputs(seen(obs, self._seen, len(carry["hidden"])))
        carry, action = self.act(controls, carry, inputs[self.key], inputs["is_first"], greedy)
        (host,) = self.inputs.back({"action": action})
        return carry, self.controller.decode(host["action"]), {}

    @torch.no_grad()
    def act(
        self, controls: Tensor, carry: Carry, image: Tensor, first: Tensor, greedy: bool
    ) -> tuple[Carry, Tensor]:
        """One step of acting on the device: the next carry, and the action [n, A] in [-1, 1]."""
        first = first.bool()
        kept = ~first[:, None]
        state = carry["hidden"] * kept, carry["cell"] * kept
        mean, logvar = self.vision.encode(image)
        latent = mean if greedy else draw(mean, logvar, self.normal(*mean.shape))
        action = self.controller(controls, latent, state)
        _, (hidden, cell) = self.memory.unroll(latent[:, None], action[:, None], first[:, None], state)
        return {"hidden": hidden, "cell": cell}, action

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers from the policy's generator."""
        return torch.randn(*shape, generator=self.generators["policy"], device=self.device)

    # Learning M; V has its loss to itself.

    def memory_loss(
        self, batch: Mapping[str, Tensor], noise: Tensor, state: State
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Of T + 1 steps of streams of episodes, of which the last is only predicted.

        batch   mean and logvar [B, T + 1, Z] of z, action [B, T + 1, A] that follows, first and terminal [B, T + 1].
        noise   normal [B, T + 1, Z]: z is drawn anew each time, so that M does not learn one draw by heart.
        Returns the loss, the state after T steps, and metrics.
        """
        latent, first = draw(batch["mean"], batch["logvar"], noise), batch["first"]
        hidden, state = self.memory.unroll(latent[:, :-1], batch["action"][:, :-1], first[:, :-1], state)
        losses = self.memory.loss(hidden, latent[:, 1:], batch["terminal"][:, 1:], ~first[:, 1:])
        loss = torch.stack(list(losses.values())).sum()
        return loss, (state[0].detach(), state[1].detach()), {"loss": loss, **losses}

    # Evolving C in a dream ("Training Inside of the Dream").

    @torch.no_grad()
    def dream(
        self,
        controls: Tensor,
        latent: Tensor,
        seeds: Tensor,
        generator: torch.Generator,
        temperature: float,
        length: int,
        trail: list[Tensor] | None = None,
    ) -> Tensor:
        """How many steps N controllers survive in dreams of theirs, [N].

        controls [N, P]; latent [N, Z] to begin with. seeds [N]: which of as many sequences of noise a dream meets, so
        that controllers can be compared on the same ones. trail is given z [n, Z] of every step, in the order of
        rows, of those dreams that had not been left.
        """
        count, rows = int(seeds.shape[0]), torch.arange(len(seeds), device=self.device)
        lasted, alive = torch.zeros(count, device=self.device), torch.ones_like(rows, dtype=torch.bool)
        hidden, cell = self.memory.initial(count)
        dream = {"controls": controls, "hidden": hidden, "cell": cell, "latent": latent, "restart": alive}
        draws = controls.new_empty(STRIDE, 2, count, self.config.latents)
        for begin in range(0, length, STRIDE):
            steps = min(STRIDE, length - begin)
            for uniform, normal in draws[:steps]:
                uniform.uniform_(generator=generator)
                normal.normal_(generator=generator)
            uniform, normal = draws[:steps, :, seeds].unbind(1)
            noise = {"uniform": uniform, "normal": normal}
            (after,) = self.dream_steps(dream, noise, temperature=temperature)
            if trail is not None:
                trail += [dream["latent"], *after["latents"][:, :-1].unbind(1)]
            lasted[rows] += alive * after["lasted"]
            alive = alive & after["alive"]
            left = int(alive.sum())
            if not left:
                break
            dream |= {key: after[key] for key in ("hidden", "cell", "latent")}
            dream["restart"] = torch.zeros_like(alive)
            if (kept := min(len(rows), -(-left // self.together) * self.together)) < len(rows):
                order = torch.argsort(alive, descending=True, stable=True)[:kept]
                dream = {key: x[order] for key, x in dream.items()}
                seeds, rows, alive = seeds[order], rows[order], alive[order]
        return lasted

    @torch.no_grad()
    def dream_steps(
        self, dream: Mapping[str, Tensor], noise: Mapping[str, Tensor], temperature: float
    ) -> tuple[dict[str, Tensor]]:
        """T steps of dreams, however they end: what `dream` repeats, and `graphs.capture_dreams` records.

        dream   controls [N, P], hidden and cell [N, D], latent [N, Z], restart [N] of the first step.
        noise   uniform and normal [T, N, Z].
        Returns hidden, cell and latent after the last step, latents [N, T, Z] of all, alive [N] after the last, and
        lasted [N], how many steps a dream lives on that was alive before the first.
        """
        control = self.controller.params(dream["controls"])
        state = dream["hidden"], dream["cell"], dream["latent"], dream["restart"]
        draws = noise["uniform"].transpose(0, 1), noise["normal"].transpose(0, 1)
        hidden, cell, latents, ends = self.ops.lstm_mdn_dream(
            self.memory.params, control, *state, *draws, temperature
        )
        # A dream that ends at a step has survived it.
        alive = (ends <= 0).cumprod(1)
        counts = {"lasted": 1 + alive[:, :-1].sum(1), "alive": alive[:, -1] > 0}
        return ({"hidden": hidden, "cell": cell, "latent": latents[:, -1], "latents": latents, **counts},)

    def state_dict(self) -> dict[str, Any]:
        """Parameters of V, M and C, and the generator."""
        return {
            "vision": self.vision.state_dict(),
            "memory": self.memory.state_dict(),
            "controls": self.controls,
            "generators": generators.states(self.generators),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict` of an agent with the same spaces and configuration."""
        self.vision.load_state_dict(state["vision"])
        self.memory.load_state_dict(state["memory"])
        self.controls.copy_(state["controls"])
        generators.restore(self.generators, state["generators"])
