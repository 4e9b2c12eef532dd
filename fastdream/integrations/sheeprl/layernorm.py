"""sheeprl's `dreamer_v3`, the DreamerV3 of 2023, and `dreamer_v2`: GRU with a LayerNorm over all gates."""

from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastdream.integrations import resets
from fastdream.integrations.modules import layers_of
from fastdream.integrations.patching import Function, Place, instead, table_of
from fastdream.integrations.sheeprl.deferred import Inputs, Output, follow
from fastdream.integrations.sheeprl.fabric import ENTERS, as_it_is, bare, ours, ours_of
from fastdream.ops import RSSM, Categorical, LayerNormGRU, unimix_log_probs
from fastdream.ops.params import frozen


def places() -> list[Place]:
    """What is replaced."""
    v2, v3, train = (
        import_module(f"sheeprl.algos.{name}")
        for name in ("dreamer_v2.agent", "dreamer_v3.agent", "dreamer_v3.dreamer_v3")
    )
    step = "self", "posterior", "recurrent_state", "action", "embedded_obs", "is_first"
    dream = "world_model", "actor", "critic", "posteriors", "recurrent_states", "terminated"
    settings = "horizon", "gamma", "lmbda", "action_clip"
    bins = "logits", "dims", "low", "high", "transfwd", "transbwd"
    returns = "rewards", "values", "continues", "lmbda"
    imagine = instead(partial(_imagine, train=train))
    return [
        Place(v3.RSSM, "project_observations", ("self", "embedded_obs"), (), instead(as_it_is), ENTERS),
        Place(v3.RSSM, "dynamic", (*step, "initial_states", "projected"), ("observe",), instead(_dynamic)),
        Place(train, "imagine", (*dream, *settings), ("imagine_step", "mlps"), imagine),
        Place(train, "compute_lambda_values", returns, ("lambda_return",), instead(_lambda_values)),
        Place(train, "TwoHotEncodingDistribution", bins, ("twohot_loss", "twohot_mean"), _twohot),
        Place(v2.RSSM, "dynamic", step, ("observe", "prior"), instead(_dynamic_v2)),
    ]


def model_of(rssm: Any) -> RSSM:
    """Parameters of all their networks of states, with the gates' columns in our order: their input is [deter, x].

    For one sequence: what is made of parameters is not kept, because players have parameters of their own that share
    memory with the agent's, and do not notice its updates.
    """
    core = bare(rssm.recurrent_model)
    (inputs,), cell = layers_of(core.mlp.model), core.rnn
    (gates,) = layers_of([cell.linear, cell.layer_norm])
    gates = gates._replace(weight=gates.weight.roll(-cell.hidden_size, 1))
    prior = layers_of(bare(rssm.transition_model).model)
    unimix = getattr(rssm, "unimix", 0.0)  # DreamerV2 has none
    latent = Categorical(len(prior[-1].weight) // rssm.discrete, rssm.discrete, unimix)
    return RSSM(LayerNormGRU(inputs, gates), latent, prior, layers_of(bare(rssm.representation_model).model))


def _dynamic(
    old: Function,
    self: Any,
    posterior: Any,
    recurrent_state: Any,
    action: Tensor,
    embedded_obs: Tensor,
    is_first: Tensor,
    initial_states: Any = None,
    projected: bool = False,
) -> Any:
    if not ours_of(self):
        given = posterior, recurrent_state, action, embedded_obs, is_first, initial_states, projected
        return old(self, *given)
    inputs = action, embedded_obs, is_first
    observe = partial(_observe, self, initial_states)
    return follow(self, (recurrent_state, posterior), inputs, observe, 3)


def _observe(rssm: Any, start: Any, state: tuple[Tensor, ...], steps: list[Inputs]) -> tuple[Output, ...]:
    """Recurrent states [T, B, D], posteriors [T, B, S, C] and their logits [T, B, S*C], mixed with the uniform."""
    model, deter, stoch = model_of(rssm), *(x.squeeze(0) for x in state)
    action, embed, first = (torch.cat(x).transpose(0, 1) for x in zip(*steps, strict=True))
    noise = deter.new_empty(*action.shape[:2], model.latent.stoch).uniform_()
    new = rssm.get_initial_states((1, len(deter))) if start is None else start
    new = new[0].squeeze(0), new[1].view(1, -1, *model.latent[:2]).squeeze(0)
    stoch = stoch.view(-1, *model.latent[:2])
    out = resets.observe(model, deter, stoch, action, embed, first.squeeze(-1), noise, new)
    logit = unimix_log_probs(out.logit, rssm.unimix) if rssm.unimix else out.logit
    return tuple(x.transpose(0, 1) for x in (out.deter, out.stoch, logit.flatten(-2)))


def _dynamic_v2(
    old: Function,
    self: Any,
    posterior: Any,
    recurrent_state: Any,
    action: Tensor,
    embedded_obs: Tensor,
    is_first: Tensor,
) -> Any:
    if not ours_of(self):
        return old(self, posterior, recurrent_state, action, embedded_obs, is_first)
    inputs = action, embedded_obs, is_first
    return follow(self, (recurrent_state, posterior), inputs, partial(_observe_v2, self), 5)


def _observe_v2(rssm: Any, state: tuple[Tensor, ...], steps: list[Inputs]) -> tuple[Output, ...]:
    """Recurrent states, posteriors, draws of the prior, logits of the posterior and of the prior, [T, B, ...].

    Nothing is drawn of the prior unless somebody looks at it, which the update does not.
    """
    model, deter, stoch = model_of(rssm), *(x.squeeze(0) for x in state)
    action, embed, first = (torch.cat(x).transpose(0, 1) for x in zip(*steps, strict=True))
    noise = deter.new_empty(*action.shape[:2], model.latent.stoch).uniform_()
    stoch, ops = stoch.view(-1, *model.latent[:2]), table_of(deter.device)
    out = ops.observe(model, deter, stoch, action, embed, first.squeeze(-1) != 0, noise)
    prior = ops.prior(model, out.deter)

    def drawn() -> Tensor:
        return ops.categorical_sample(prior, torch.rand_like(prior[..., 0]))[0].transpose(0, 1)

    deter, stoch, post, prior_logit = (
        x.transpose(0, 1) for x in (out.deter, out.stoch, out.logit.flatten(-2), prior.flatten(-2))
    )
    return deter, stoch, drawn, post, prior_logit


def _imagine(
    old: Function,
    world_model: Any,
    actor: Any,
    critic: Any,
    posteriors: Tensor,
    recurrent_states: Tensor,
    terminated: Tensor,
    *,
    horizon: int,
    gamma: float,
    lmbda: float,
    action_clip: float = 0.0,
    train: ModuleType,
) -> Any:
    networks = world_model.reward_model, world_model.continue_model, critic
    if not (ours_of(world_model.rssm) and ours(*networks)):
        settings = {"horizon": horizon, "gamma": gamma, "lmbda": lmbda, "action_clip": action_clip}
        given = world_model, actor, critic, posteriors, recurrent_states, terminated
        return old(*given, **settings)
    model = frozen(model_of(world_model.rssm))
    nets = [frozen(layers_of(bare(network).model)) for network in networks]
    deter = recurrent_states.detach().flatten(0, 1)
    stoch = posteriors.detach().reshape(-1, *model.latent[:2])
    noise = deter.new_empty(len(deter), horizon, model.latent.stoch).uniform_()
    ops = table_of(deter.device)
    states, actions = [], []
    for time in range(horizon + 1):
        states.append(torch.cat([stoch.flatten(1), deter], -1))
        actions.append(torch.cat(actor(states[-1].detach()[None], clip=False)[0], -1))
        if time < horizon:
            led = train.clip_actions(actions[-1], action_clip).squeeze(0)
            step = ops.imagine_step(model, deter, stoch, led, noise[:, time])
            deter, stoch = step.deter, step.stoch
    latents = torch.stack(states)
    rewards, going, values = ops.mlps(latents, nets)
    rewards, values = (train.TwoHotEncodingDistribution(x, dims=1).mean for x in (rewards, values))
    going = torch.cat([(1 - terminated).reshape(1, -1, 1), (going[1:] > 0).to(going.dtype)])
    returns = train.compute_lambda_values(rewards[1:], values[1:], going[1:] * gamma, lmbda=lmbda)
    discount = (torch.cumprod(going * gamma, 0) / gamma).detach()
    return latents, torch.cat(actions), values, returns, discount


def _lambda_values(
    old: Function, rewards: Tensor, values: Tensor, continues: Tensor, lmbda: float = 0.95
) -> Tensor:
    if torch.compiler.is_compiling():
        return old(rewards, values, continues, lmbda)
    reward, value, live = (x.movedim(0, -1) for x in (rewards, values, continues))
    mix = torch.full_like(live, lmbda)
    return table_of(rewards.device).lambda_return(reward, live, mix, value).movedim(-1, 0)


def _twohot(old: Any) -> Any:
    class TwoHotEncodingDistribution(old):
        """Theirs, of one op each where it is one row of bins in symlog space."""

        def _plain(self) -> bool:
            maps = self.transfwd.__name__, self.transbwd.__name__
            return (
                maps == ("symlog", "symexp")
                and self.dims == (-1,)
                and self.logits.dtype == self.bins.dtype
                and self.logits.dtype in (torch.float32, torch.float64)
                and not torch.compiler.is_compiling()
            )

        @property
        def mean(self) -> Tensor:
            if not self._plain():
                return super().mean
            return table_of(self.logits.device).twohot_mean(self.logits, self.bins, "symlog").unsqueeze(-1)

        @property
        def mode(self) -> Tensor:
            return self.mean

        def log_prob(self, x: Tensor) -> Tensor:
            if x.requires_grad or not self._plain():
                return super().log_prob(x)
            return -table_of(x.device).twohot_loss(self.logits, x.squeeze(-1), self.bins, "symlog")

    return TwoHotEncodingDistribution
