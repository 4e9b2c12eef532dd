"""sheeprl's `dreamer_v3_5`, the DreamerV3 of 2024: block GRU, RMSNorm, states that start from zeros."""

from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastdream.integrations.modules import layers_of
from fastdream.integrations.patching import Function, Place, instead, table_of
from fastdream.integrations.sheeprl.deferred import Inputs, Output, follow
from fastdream.integrations.sheeprl.fabric import ENTERS, as_it_is, bare, ours, ours_of
from fastdream.ops import RSSM, ActionHead, Actor, BlockGRU, Categorical, Layer, Layers, unimix_log_probs


def places() -> list[Place]:
    """What is replaced."""
    agent, train, optim = (
        import_module(f"sheeprl.algos.dreamer_v3_5.{name}") for name in ("agent", "dreamer_v3_5", "optim")
    )
    rssm, net = agent.RSSM, partial(layers_of, norms=(agent.RMSNorm,))
    step = "self", "posterior", "recurrent_state", "action_embedding", "observation_projection", "is_first"
    prior = "self", "prior", "recurrent_state", "actions"
    dream = "world_model", "actor", "critic", "target_critic", "posteriors", "recurrent_states"
    settings = "horizon", "discount", "lmbda"
    returns = "last", "terminal", "rewards", "bootstrap", "discount", "lmbda"
    imagine = instead(partial(_imagine, agent=agent, train=train, net=net))
    return [
        Place(rssm, "embed_actions", ("self", "actions"), (), instead(as_it_is), ENTERS),
        Place(rssm, "project_observations", ("self", "embedded_obs"), (), instead(as_it_is), ENTERS),
        Place(rssm, "dynamic", step, ("observe",), instead(partial(_dynamic, net=net))),
        Place(rssm, "imagination", prior, ("imagine_step",), instead(partial(_imagination, net=net))),
        Place(train, "imagine", (*dream, *settings), ("imagine", "mlps"), imagine),
        Place(train, "lambda_return", returns, ("lambda_return",), instead(_lambda_return)),
        Place(train, "TwoHot", ("logits", "bins"), ("twohot_loss", "twohot_mean"), _twohot),
        Place(optim.LaProp, "step", ("self", "closure"), ("laprop_",), instead(_laprop)),
    ]


def _model(rssm: Any, net: Any) -> RSSM:
    """Parameters of all their networks of states, which have our order of inputs and gates."""
    core = bare(rssm.recurrent_model)
    post = bare(rssm.representation_model)
    parts = core.recurrent_projection, core.stochastic_projection, core.action_projection
    deter, stoch, action = (net(part)[0] for part in parts)
    block = BlockGRU(deter, stoch, action, net(core.hidden), Layer(core.gates.weight, core.gates.bias))
    prior = net(bare(rssm.transition_model))
    latent = Categorical(len(prior[-1].weight) // rssm.discrete, rssm.discrete, rssm.unimix)
    return RSSM(block, latent, prior, net([post.input_layer, *post.model]))


def _dynamic(
    old: Function,
    self: Any,
    posterior: Any,
    recurrent_state: Any,
    action_embedding: Tensor,
    observation_projection: Tensor,
    is_first: Tensor | None = None,
    *,
    net: Any,
) -> Any:
    given = posterior, recurrent_state, action_embedding, observation_projection, is_first
    if not ours_of(self):
        return old(self, *given)
    state, inputs = (recurrent_state, posterior), given[2:]
    if is_first is not None and torch.is_grad_enabled():
        return follow(self, state, inputs, partial(_observe, self, net), 3)
    if is_first is None:
        is_first = torch.zeros_like(action_embedding[..., :1])
    return _observe(self, net, state, [(*inputs[:2], is_first)])


def _observe(rssm: Any, net: Any, state: tuple[Tensor, ...], steps: list[Inputs]) -> tuple[Output, ...]:
    """Recurrent states [T, B, D], posteriors [T, B, S*C] and their log probabilities [T, B, S, C]."""
    model, deter, stoch = _model(rssm, net), *(x.squeeze(0) for x in state)
    action, embed, first = (torch.cat(x).transpose(0, 1) for x in zip(*steps, strict=True))
    noise = deter.new_empty(*action.shape[:2], model.latent.stoch).uniform_()
    stoch = stoch.unflatten(-1, model.latent[:2])
    out = table_of(deter.device).observe(model, deter, stoch, action, embed, first.squeeze(-1) > 0, noise)
    log_probs = unimix_log_probs(out.logit, rssm.unimix)
    return tuple(x.transpose(0, 1) for x in (out.deter, out.stoch.flatten(-2), log_probs))


def _imagination(
    old: Function, self: Any, prior: Tensor, recurrent_state: Tensor, actions: Tensor, *, net: Any
) -> Any:
    if not ours_of(self):
        return old(self, prior, recurrent_state, actions)
    model, lead = _model(self, net), prior.shape[:-1]
    stoch, deter, action = (x.flatten(0, -2) for x in (prior, recurrent_state, actions))
    noise = deter.new_empty(len(deter), model.latent.stoch).uniform_()
    stoch = stoch.unflatten(-1, model.latent[:2])
    step = table_of(deter.device).imagine_step(model, deter, stoch, action, noise)
    return step.stoch.flatten(-2).unflatten(0, lead), step.deter.unflatten(0, lead)


def _imagine(
    old: Function,
    world_model: Any,
    actor: Any,
    critic: Any,
    target_critic: Any,
    posteriors: Tensor,
    recurrent_states: Tensor,
    *,
    horizon: int,
    discount: float,
    lmbda: float,
    agent: ModuleType,
    train: ModuleType,
    net: Any,
) -> Any:
    networks = world_model.reward_model, world_model.continue_model, critic, target_critic
    known = type(bare(actor)) is agent.Actor and len(bare(actor).model) > 0
    if torch.is_grad_enabled() or not (known and ours_of(world_model.rssm) and ours(actor, *networks)):
        settings = {"horizon": horizon, "discount": discount, "lmbda": lmbda}
        return old(world_model, actor, critic, target_critic, posteriors, recurrent_states, **settings)
    model, deter = _model(world_model.rssm, net), recurrent_states.flatten(0, -2)
    stoch = posteriors.flatten(0, -2).unflatten(-1, model.latent[:2])
    policy = _actor(bare(actor), net, deter.shape[-1])
    noise = deter.new_empty(len(deter), horizon, model.latent.stoch).uniform_()
    action_noise = deter.new_empty(len(deter), horizon + 1, sum(head.elements for head in policy.heads))
    action_noise = action_noise.normal_() if bare(actor).is_continuous else action_noise.uniform_()
    ops = table_of(deter.device)
    dream = ops.imagine(model, policy, deter, stoch, horizon, noise, action_noise)
    states, actions = torch.cat([dream.stoch.flatten(-2), dream.deter], -1), dream.action
    states, actions = states.transpose(0, 1).contiguous(), actions.transpose(0, 1).contiguous()
    rewards, going, values, slow = ops.mlps(states, [net(bare(network)) for network in networks])
    rewards, values, slow = (train.TwoHot(x).mean for x in (rewards, values, slow))
    going = torch.sigmoid(going.squeeze(-1))
    returns = train.lambda_return(torch.zeros_like(going), 1 - going, rewards, values, discount, lmbda)
    weights = torch.cumprod(discount * going, 0) / discount
    return states, actions, values, slow, returns, weights


def _actor(net: Any, layers: Any, deter: int) -> Actor:
    """Their actor on [stoch, deter] as an op's on [deter, stoch]."""
    first, *others = layers(net.model)
    outs: list[Any] = list(net.mlp_heads)
    if net.is_continuous:
        (out,) = outs
        halves: Layers = tuple(map(Layer, out.weight.chunk(2), out.bias.chunk(2)))
        kind = {"min_std": net.min_std, "max_std": net.max_std}
        heads = [ActionHead("bounded_normal", len(halves[0].weight), 0, halves, **kind)]
    else:
        layer = (Layer(out.weight, out.bias) for out in outs)
        heads = [ActionHead("categorical", 1, len(x.weight), (x,), net.unimix) for x in layer]
    return Actor((first._replace(weight=first.weight.roll(deter, 1)), *others), tuple(heads))


def _lambda_return(
    old: Function,
    last: Tensor,
    terminal: Tensor,
    rewards: Tensor,
    bootstrap: Tensor,
    discount: float,
    lmbda: float,
) -> Tensor:
    if torch.compiler.is_compiling():
        return old(last, terminal, rewards, bootstrap, discount, lmbda)
    live, mix = (1 - terminal.to(rewards.dtype)) * discount, (1 - last.to(rewards.dtype)) * lmbda
    parts = (x[1:].movedim(0, -1) for x in (rewards, live, mix, bootstrap))
    return table_of(rewards.device).lambda_return(*parts).movedim(-1, 0)


def _twohot(old: Any) -> Any:
    class TwoHot(old):
        """Theirs, of one op each where logits and bins are alike."""

        def _theirs(self) -> bool:
            return torch.compiler.is_compiling() or self.logits.dtype != self.bins.dtype

        @property
        def mean(self) -> Tensor:
            if self._theirs():
                return super().mean
            return table_of(self.logits.device).twohot_mean(self.logits, self.bins)

        def loss(self, target: Tensor) -> Tensor:
            if self._theirs():
                return super().loss(target)
            return table_of(self.logits.device).twohot_loss(self.logits, target, self.bins)

    return TwoHot


@torch.no_grad()
def _laprop(old: Function, self: Any, closure: Any = None) -> Any:
    groups = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
    kinds = {(p.dtype, p.grad.dtype, p.device) for params in groups for p in params}
    if closure is not None or len(kinds) != 1 or kinds.pop()[:2] != (torch.float32, torch.float32):
        return old(self, closure)
    for group, params in zip(self.param_groups, groups, strict=True):
        if params:
            _update(group, params, [self.state[p] for p in params])


def _update(group: dict[str, Any], params: list[Tensor], states: list[dict[str, Tensor]]) -> None:
    """One group's LaProp, which is ours: the counter is of the group, and 0 where the learning rate begins to rise."""
    for p, state in zip(params, states, strict=True):
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
    rising = min(1.0, group["step"] / group["warmup"]) if group["warmup"] else 1.0
    group["step"] += 1
    beta1, beta2 = group["betas"]
    means = [[state[name] for state in states] for name in ("exp_avg_sq", "exp_avg")]
    table_of(params[0].device).laprop_(
        params,
        [p.grad for p in params],
        *means,
        torch.tensor(group["step"]),
        group["lr"] * rising,
        group["agc"],
        group["agc_pmin"],
        beta1,
        beta2,
        group["eps"],
        group["weight_decay"],
    )
