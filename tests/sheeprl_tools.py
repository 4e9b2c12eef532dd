"""Stand-ins for sheeprl's models of states: its interfaces, and the formulas of the papers that it follows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .standin_tools import drawn, mixed_probs

B, T, D, H, S, C, A, E, G = 3, 7, 16, 12, 4, 5, 4, 6, 2


class Mlp(nn.Module):
    """A chain in `model`, as sheeprl's MLP has it."""

    def __init__(
        self, inp: int, units: int, out: int | None, act: type[nn.Module], bias: bool, eps: float
    ) -> None:
        super().__init__()
        norm = [] if bias else [nn.LayerNorm(units, eps)]
        last = [] if out is None else [nn.Linear(units, out)]
        self.model = nn.Sequential(nn.Linear(inp, units, bias), *norm, act(), *last)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class Cell(nn.Module):
    def __init__(self, inp: int, hidden_size: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.linear = nn.Linear(hidden_size + inp, 3 * hidden_size, bias)
        self.layer_norm = nn.LayerNorm(3 * hidden_size, eps)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        reset, cand, update = self.layer_norm(self.linear(torch.cat([h, x], -1))).chunk(3, -1)
        weight = torch.sigmoid(update - 1)
        return weight * torch.tanh(torch.sigmoid(reset) * cand) + (1 - weight) * h


class Recurrent(nn.Module):
    def __init__(self, act: type[nn.Module], bias: bool, eps: float) -> None:
        super().__init__()
        self.mlp, self.rnn = Mlp(S * C + A, H, None, act, bias, eps), Cell(H, D, bias, eps)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.rnn(self.mlp(x), h)


class RSSM(nn.Module):
    """dreamer_v3's."""

    def __init__(self, unimix: float = 0.01) -> None:
        super().__init__()
        parts = nn.SiLU, False, 1e-3
        self.recurrent_model = Recurrent(*parts)
        self.representation_model, self.transition_model = (
            Mlp(D + E, H, S * C, *parts),
            Mlp(D, H, S * C, *parts),
        )
        self.discrete, self.unimix = C, unimix
        self.initial_recurrent_state = nn.Parameter(torch.zeros(D))

    def logits(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (-1, C))
        return (mixed_probs(x, self.unimix).log() if self.unimix else x).flatten(-2)

    def get_initial_states(self, batch_shape: Any) -> tuple[Tensor, Tensor]:
        deter = torch.tanh(self.initial_recurrent_state).expand(*batch_shape, -1)
        likely = self.prior_logits(deter).unflatten(-1, (-1, C)).argmax(-1)
        return deter, F.one_hot(likely, C).to(deter)

    def project_observations(self, embedded_obs: Tensor) -> Tensor:
        return F.linear(embedded_obs, self.representation_model.model[0].weight[:, D:])

    def prior_logits(self, recurrent_states: Tensor) -> Tensor:
        return self.logits(self.transition_model(recurrent_states))

    def dynamic(
        self,
        posterior: Tensor,
        recurrent_state: Tensor,
        action: Tensor,
        embedded_obs: Tensor,
        is_first: Tensor,
        initial_states: Any = None,
        projected: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        deter, stoch = initial_states or self.get_initial_states((1, is_first.shape[1]))
        h = torch.lerp(recurrent_state, deter, is_first)
        z = torch.lerp(posterior.flatten(-2), stoch.flatten(-2), is_first)
        h = self.recurrent_model(torch.cat([z, action * (1 - is_first)], -1), h)
        first, *rest = self.representation_model.model
        seen = embedded_obs if projected else self.project_observations(embedded_obs)
        logit = self.logits(nn.Sequential(*rest)(F.linear(h, first.weight[:, :D], first.bias) + seen))
        return h, drawn(logit.unflatten(-1, (-1, C)).softmax(-1)), logit


class RSSMv2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        parts = nn.ELU, True, 1e-5
        self.recurrent_model = Recurrent(*parts)
        self.representation_model, self.transition_model = (
            Mlp(D + E, H, S * C, *parts),
            Mlp(D, H, S * C, *parts),
        )
        self.discrete = C

    def dynamic(
        self,
        posterior: Tensor,
        recurrent_state: Tensor,
        action: Tensor,
        embedded_obs: Tensor,
        is_first: Tensor,
    ) -> tuple[Tensor, ...]:
        keep = 1 - is_first
        h = self.recurrent_model(
            torch.cat([posterior.flatten(-2) * keep, action * keep], -1), recurrent_state * keep
        )
        prior, post = self.transition_model(h), self.representation_model(torch.cat([h, embedded_obs], -1))
        draws = [drawn(x.unflatten(-1, (-1, C)).softmax(-1)) for x in (prior, post)]
        return h, draws[1], draws[0], post, prior


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Blocks(nn.Module):
    def __init__(self, inp: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.zeros(G, inp // G, out // G)),
            nn.Parameter(torch.zeros(out)),
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = [part @ weight for part, weight in zip(x.chunk(G, -1), self.weight, strict=True)]
        return torch.cat(parts, -1) + self.bias


def dense(inp: int, *rest: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inp, H), RMSNorm(H), nn.SiLU(), *rest)


class BlockRecurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent_projection, self.stochastic_projection = dense(D), dense(S * C)
        self.action_projection = dense(A)
        self.hidden = nn.Sequential(Blocks(D + G * 3 * H, D), RMSNorm(D), nn.SiLU())
        self.gates = Blocks(D, 3 * D)

    def forward(self, h: Tensor, z: Tensor, a: Tensor) -> Tensor:
        shared = torch.cat([self.recurrent_projection(h), self.stochastic_projection(z), a], -1)
        x = torch.cat([torch.cat([part, shared], -1) for part in h.chunk(G, -1)], -1)
        gates = self.gates(self.hidden(x)).unflatten(-1, (G, 3, -1))
        reset, cand, update = (gate.flatten(-2) for gate in gates.unbind(-2))
        weight = torch.sigmoid(update - 1)
        return weight * torch.tanh(torch.sigmoid(reset) * cand) + (1 - weight) * h


class Representation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layer = nn.Linear(D + E, H)
        self.model = nn.Sequential(RMSNorm(H), nn.SiLU(), nn.Linear(H, S * C))


class BlockRSSM(nn.Module):
    """dreamer_v3_5's."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent_model, self.representation_model = BlockRecurrent(), Representation()
        self.transition_model = dense(D, nn.Linear(H, S * C))
        self.discrete, self.unimix = C, 0.01

    def embed_actions(self, actions: Tensor) -> Tensor:
        return self.recurrent_model.action_projection(actions / actions.detach().abs().clamp_min(1))

    def project_observations(self, embedded_obs: Tensor) -> Tensor:
        return F.linear(embedded_obs, self.representation_model.input_layer.weight[:, D:])

    def log_probs(self, x: Tensor) -> Tensor:
        return mixed_probs(x.unflatten(-1, (-1, C)), self.unimix).log()

    def dynamic(
        self,
        posterior: Tensor,
        recurrent_state: Tensor,
        action_embedding: Tensor,
        observation_projection: Tensor,
        is_first: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        keep = 1 if is_first is None else 1 - is_first
        h = self.recurrent_model(recurrent_state * keep, posterior * keep, action_embedding)
        post = self.representation_model
        seen = F.linear(h, post.input_layer.weight[:, :D], post.input_layer.bias) + observation_projection
        logit = self.log_probs(post.model(seen))
        return h, drawn(logit.softmax(-1)).flatten(-2), logit

    def imagination(self, prior: Tensor, recurrent_state: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        h = self.recurrent_model(recurrent_state, prior, self.embed_actions(actions))
        return drawn(self.log_probs(self.transition_model(h)).softmax(-1)).flatten(-2), h
