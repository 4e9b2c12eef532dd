"""Stand-ins for dreamerv3-torch, and its modules: those of the checkout where it is on the path."""

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .sheeprl_train_tools import symexp, symlog, twohot
from .standin_tools import drawn, mixed_probs

B, T, D, H, S, C, A, E = 3, 7, 16, 12, 4, 5, 3, 6
NAMES = "models", "networks", "tools"
REMEDY = (
    "no checkout of dreamerv3-torch is on the path; git clone https://github.com/NM512/dreamerv3-torch, "
    "then PYTHONPATH=dreamerv3-torch, with tensorboard installed"
)

State = dict[str, Tensor]


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(H + D, 3 * D, bias=False), nn.LayerNorm(3 * D, 1e-3))
        self._act, self._update_bias = torch.tanh, -1

    def forward(self, x: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        reset, cand, update = self.layers(torch.cat([x, *state], -1)).chunk(3, -1)
        weight = torch.sigmoid(update - 1)
        h = weight * torch.tanh(torch.sigmoid(reset) * cand) + (1 - weight) * state[0]
        return h, [h]


def chain(inp: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inp, H, bias=False), nn.LayerNorm(H, 1e-3), nn.SiLU())


class RSSM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._stoch, self._discrete, self._unimix_ratio, self._rec_depth = S, C, 0.01, 1
        self._img_in_layers, self._cell = chain(S * C + A), Cell()
        self._img_out_layers, self._obs_out_layers = chain(D), chain(D + E)
        self._imgs_stat_layer, self._obs_stat_layer = nn.Linear(H, S * C), nn.Linear(H, S * C)
        self.W = nn.Parameter(torch.zeros(1, D))

    def initial(self, batch_size: int) -> State:
        deter = torch.tanh(self.W).repeat(batch_size, 1)
        log_probs = mixed_probs(self.logit(deter), 0.01).log()
        onehot = F.one_hot(log_probs.argmax(-1), C) + log_probs - log_probs.detach()
        return {"logit": torch.zeros_like(log_probs), "stoch": onehot, "deter": deter}

    def logit(self, deter: Tensor) -> Tensor:
        return self._imgs_stat_layer(self._img_out_layers(deter)).unflatten(-1, (S, C))

    def get_feat(self, state: State) -> Tensor:
        return torch.cat([state["stoch"].flatten(-2), state["deter"]], -1)

    def img_step(self, prev_state: State, prev_action: Tensor, sample: bool = True) -> State:
        x = self._img_in_layers(torch.cat([prev_state["stoch"].flatten(1), prev_action], -1))
        deter, _ = self._cell(x, [prev_state["deter"]])
        logit = self.logit(deter)
        probs = mixed_probs(logit, 0.01)
        return {"stoch": drawn(probs) if sample else probs, "deter": deter, "logit": logit}

    def observe(
        self, embed: Tensor, action: Tensor, is_first: Tensor, state: State | None = None
    ) -> tuple[State, State]:
        steps = []
        for t in range(embed.shape[1]):
            new, old = self.initial(len(embed)), steps[-1][0] if steps else state
            first, led = is_first[:, t], action[:, t]
            if old is None:
                old, first = new, torch.ones_like(first)
            keep = 1 - first
            start = {
                key: x * keep.view(-1, *[1] * (x.dim() - 1)) + new[key] * first.view(-1, *[1] * (x.dim() - 1))
                for key, x in old.items()
            }
            prior = self.img_step(start, led * keep[:, None])
            x = self._obs_out_layers(torch.cat([prior["deter"], embed[:, t]], -1))
            logit = self._obs_stat_layer(x).unflatten(-1, (S, C))
            post = {"stoch": drawn(mixed_probs(logit, 0.01)), "deter": prior["deter"], "logit": logit}
            steps.append((post, prior))
        posts, priors = zip(*steps, strict=True)
        join = lambda parts: {key: torch.stack([part[key] for part in parts], 1) for key in parts[0]}  # noqa: E731
        return join(posts), join(priors)

    def imagine_with_action(self, action: Tensor, state: State) -> State:
        steps = [state]
        for led in action.unbind(1):
            steps.append(self.img_step(steps[-1], led))
        return {key: torch.stack([step[key] for step in steps[1:]], 1) for key in steps[-1]}

    def kl_loss(self, post: State, prior: State, free: float, dyn_scale: float, rep_scale: float) -> Any:
        def kl(p: Tensor, q: Tensor) -> Tensor:
            p, q = mixed_probs(p, 0.01), mixed_probs(q, 0.01)
            return (p * (p / q).log()).sum((-2, -1))

        value = kl(post["logit"], prior["logit"].detach())
        dyn, rep = kl(post["logit"].detach(), prior["logit"]).clamp_min(free), value.clamp_min(free)
        return dyn_scale * dyn + rep_scale * rep, value, dyn, rep


class DiscDist:
    def __init__(self, logits: Tensor, low: float = -20.0, high: float = 20.0) -> None:
        self.logits, self.buckets = logits, torch.linspace(low, high, 255).to(logits.dtype)
        self.transfwd, self.transbwd = symlog, symexp

    def mean(self) -> Tensor:
        return self.transbwd((self.logits.softmax(-1) * self.buckets).sum(-1, keepdim=True))

    def mode(self) -> Tensor:
        return self.mean()

    def log_prob(self, x: Tensor) -> Tensor:
        return (twohot(symlog(x).squeeze(-1), self.buckets) * self.logits.log_softmax(-1)).sum(-1)


class ImagBehavior(nn.Module):
    def _imagine(self, start: State, policy: Any, horizon: int) -> Any:
        net, states, actions = (
            self._world_model.dynamics,
            [{k: x.flatten(0, 1) for k, x in start.items()}],
            [],
        )
        for _ in range(horizon):
            actions.append(policy(net.get_feat(states[-1]).detach()).sample())
            states.append(net.img_step(states[-1], actions[-1]))
        together = {key: torch.stack([state[key] for state in states[:-1]]) for key in states[0]}
        return net.get_feat(together), together, torch.stack(actions)


@pytest.fixture(params=["stand-in", "checkout"])
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """Its modules, and functions that make a small model of states and nets."""
    if request.param == "checkout":
        spec = find_spec("networks")
        if not (spec and spec.origin and (Path(spec.origin).parent / "exploration.py").exists()):
            pytest.skip(REMEDY)
        models, networks, tools = map(import_module, NAMES)
        rssm = lambda: networks.RSSM(S, D, H, 1, C, num_actions=A, embed=E, device="cpu")  # noqa: E731

        def disc(logits: Tensor) -> Any:
            made = tools.DiscDist(logits, device="cpu")
            made.buckets = made.buckets.to(logits.dtype)
            return made

        return SimpleNamespace(models=models, networks=networks, rssm=rssm, disc=disc)
    found = {name: ModuleType(name) for name in NAMES}
    found["models"].ImagBehavior = ImagBehavior
    found["networks"].RSSM, found["tools"].DiscDist = RSSM, DiscDist
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    both = {"models": found["models"], "networks": found["networks"]}
    return SimpleNamespace(**both, rssm=RSSM, disc=DiscDist)
