"""TorchRL's DreamerV3 (github.com/pytorch/rl, torchrl 0.14.1) on fastdream's ops.

    pip install torchrl==0.14.1
    python -m fastdream.integrations torchrl train.py                  a script of yours that makes their classes

Replaced: the block GRU, the rollout of the posterior over all time steps as one op, the networks made of DreamerV3MLP,
the draw of categorical states, KL, two-hot loss and mean, lambda-returns, and DreamerV3Optimizer. Draws come of the
same uniform numbers and are the same, with the same straight-through gradient; all else is equal up to rounding.
Where the actor learns by REINFORCE, whose loss takes imagined states without their gradient, no graph is kept of them.

Under autocast and where they compile (on a GPU that is what their stepper does), their functions remain, but for the
optimizer: the precision of every product is torch's there, and their compiled scan was not tried with our ops. The core
that is torch.nn.GRUCell, modules of lazy layers, and a rollout that was compiled or is wired by other keys are theirs.

Nothing was measured on a GPU yet.
"""

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastdream.integrations.modules import layers_of
from fastdream.integrations.patching import (
    Function,
    Patch,
    Place,
    halved,
    instead,
    outside_autocast,
    table_of,
)
from fastdream.ops import RSSM, BlockGRU, Categorical, Layers

RELEASE = "torchrl 0.14.1; pip install torchrl==0.14.1 brings it"
MODULES = "modules.models.model_based", "objectives.dreamer_v3", "trainers.algorithms.dreamer_v3"


def install() -> Patch:
    """Replace functions of torchrl, before or after modules were made.

    Raises ImportError where torchrl is not installed, ValueError if it is another release or is replaced already.
    """
    try:
        models, losses, training = (import_module(f"torchrl.{name}") for name in MODULES)
    except ModuleNotFoundError as error:
        raise ImportError(f"torchrl is not found ({error}); pip install torchrl==0.14.1") from error
    gru, prior, post = models._DreamerV3BlockGRU, models.RSSMPriorV3, models.RSSMPosteriorV3
    rollout = "self", "state", "belief", "action", "embedding", "reset"
    returns = "self", "reward", "value", "continuation"
    kl = "posterior_logits", "prior_logits", "free_nats", "unimix"
    twohot, draw = ("logits", "target", "bins"), ("logits", "unimix", "uniform")
    places = [
        Place(gru, "forward", ("self", "state", "belief", "action"), ("block_gru",), _eager(_gru)),
        Place(prior, "_belief_and_logits", ("self", "state", "belief", "action"), ("mlp",), instead(_prior)),
        Place(post, "_logits", ("self", "belief", "obs_embedding"), ("mlp",), instead(_logits)),
        Place(models.RSSMRolloutV3, "_loop", rollout, ("observe", "prior"), instead(_loop)),
        Place(models.DreamerV3MLP, "forward", ("self", "inputs"), ("mlp",), _eager(_mlp)),
        Place(models, "_straight_through_categorical", draw, ("categorical_sample",), _eager(_draw)),
        Place(losses, "categorical_kl_terms", kl, ("categorical_kl",), _eager(_kl)),
        *(
            Place(m, "two_hot_decode", ("logits", "bins"), ("twohot_mean",), _eager(_mean))
            for m in (models, losses)
        ),
        *(
            Place(m, "two_hot_cross_entropy", twohot, ("twohot_loss",), instead(_loss))
            for m in (models, losses)
        ),
        Place(
            losses.DreamerV3ActorLoss,
            "forward",
            ("self", "tensordict"),
            (),
            instead(_actor),
            "no unread graph",
        ),
        Place(losses.DreamerV3ActorLoss, "lambda_target", returns, ("lambda_return",), instead(_returns)),
        Place(training.DreamerV3Optimizer, "step", ("self", "closure"), ("laprop_",), instead(_step)),
    ]
    return Patch("torchrl", RELEASE, places)


def _eager(new: Function) -> Function:
    return outside_autocast(new, compiled=False)


def _theirs(x: Tensor) -> bool:
    """Whether torch compiles, or x is not in full precision."""
    return torch.compiler.is_compiling() or halved(x)


@cache
def _norm() -> type:
    norm: type = import_module(f"torchrl.{MODULES[0]}")._DreamerV3RMSNorm
    return norm


def _net(net: Any) -> Layers:
    return layers_of(net, norms=(_norm(),))


def _lazy(net: nn.Module) -> bool:
    return any(is_lazy(p) for p in net.parameters())


def _core(net: Any) -> BlockGRU:
    projections = net.belief_projection, net.state_projection, net.action_projection
    deter, stoch, action = (_net(part)[0] for part in projections)
    return BlockGRU(deter, stoch, action, _net(net.hidden_layers), *_net([net.gates]))


def _gru(self: Any, state: Tensor, belief: Tensor, action: Tensor) -> Tensor:
    rows = (x.reshape(-1, x.shape[-1]) for x in (belief, state, action))
    return table_of(belief.device).block_gru(_core(self), *rows).view(belief.shape)


def _prior(old: Function, self: Any, state: Tensor, belief: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    if self.recurrent_model != "block_gru" or _theirs(belief):
        return old(self, state, belief, action)
    belief = self._update_belief(state, belief, action)
    return _prior_logits(self, belief), belief


def _prior_logits(prior: Any, belief: Tensor) -> Tensor:
    logit = table_of(belief.device).mlp(belief, _net(prior.rnn_to_prior_projector))
    return logit.unflatten(-1, (prior.num_categoricals, prior.num_classes))


def _logits(old: Function, self: Any, belief: Tensor, obs_embedding: Tensor) -> Tensor:
    if _theirs(belief) or _lazy(self):
        return old(self, belief, obs_embedding)
    x = torch.cat([belief, obs_embedding], -1)
    logit = table_of(x.device).mlp(x, _net(self.obs_rnn_to_post_projector))
    return logit.unflatten(-1, (self.num_categoricals, self.num_classes))


def _loop(
    old: Function, self: Any, state: Tensor, belief: Tensor, action: Tensor, embedding: Tensor, reset: Tensor
) -> Any:
    """All steps at once, with the uniform numbers that their loop draws."""
    prior, post = self.rssm_prior.module, self.rssm_posterior.module
    whole = prior.recurrent_model == "block_gru" and prior.unimix == post.unimix and reset.shape[-1] == 1
    if not whole or self._step_fn or belief.dim() != 2 or _theirs(belief) or _lazy(post):
        return old(self, state, belief, action, embedding, reset)
    ops, (batch, length) = table_of(belief.device), action.shape[:2]
    action = action.to(belief.dtype)
    latent = Categorical(post.num_categoricals, post.num_classes, post.unimix)
    nets = _net(prior.rnn_to_prior_projector), _net(post.obs_rnn_to_post_projector)
    model = RSSM(_core(prior.rnn), latent, *nets)
    noise = torch.rand(length, 2, batch, latent.stoch, device=belief.device)[:, 1].transpose(0, 1)
    start = state.unflatten(-1, (latent.stoch, latent.classes))
    step = ops.observe(model, belief, start, action, embedding, reset.squeeze(-1), noise)
    states = step.stoch.flatten(-2)
    before = (torch.cat([x.unsqueeze(1), y[:, :-1]], 1) for x, y in ((state, states), (belief, step.deter)))
    inputs = [torch.where(reset, 0, x) for x in (*before, action)]
    return *inputs, ops.prior(model, step.deter), step.logit, states, step.deter


def _mlp(self: Any, *inputs: Tensor) -> Tensor:
    x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, -1)
    return table_of(x.device).mlp(x, _net(self.model))


def _draw(logits: Tensor, unimix: float = 0.0, uniform: Tensor | None = None) -> Tensor:
    noise = torch.rand(logits.shape[:-1], device=logits.device) if uniform is None else uniform
    return table_of(logits.device).categorical_sample(logits, noise, unimix)[0]


def _kl(
    posterior_logits: Tensor, prior_logits: Tensor, free_nats: float = 1.0, unimix: float = 0.01
) -> tuple[Tensor, Tensor]:
    clamp = "step" if free_nats else "none"
    ops = table_of(posterior_logits.device)
    dyn, rep = ops.categorical_kl(posterior_logits, prior_logits, unimix, free_nats, clamp)
    return dyn.mean(), rep.mean()


def _mean(logits: Tensor, bins: Tensor) -> Tensor:
    return table_of(logits.device).twohot_mean(logits, bins.to(logits))


def _loss(old: Function, logits: Tensor, target: Tensor, bins: Tensor) -> Tensor:
    known = target.shape in ((*logits.shape[:-1], 1), logits.shape[:-1])
    if _theirs(logits) or target.requires_grad or not known:
        return old(logits, target, bins)
    return table_of(logits.device).twohot_loss(logits, target.reshape(logits.shape[:-1]), bins.to(logits))


def _returns(
    old: Function, self: Any, reward: Tensor, value: Tensor, continuation: Tensor | None = None
) -> Tensor:
    if continuation is None or reward.shape[-1] != 1 or _theirs(reward):
        return old(self, reward, value, continuation)
    estimator = self.value_estimator
    live, mix = estimator.gamma.to(reward) * continuation, estimator.lmbda.to(reward).expand(reward.shape)
    parts = (x.squeeze(-1) for x in (reward, live, mix, value))
    return table_of(reward.device).lambda_return(*parts).unsqueeze(-1)


def _actor(old: Function, self: Any, tensordict: Any) -> Any:
    """Their loss, around an imagination without gradient where none is read."""
    env = self.model_based_env
    if not self.use_reinforce or torch.compiler.is_compiling():
        return old(self, tensordict)
    object.__setattr__(env, "rollout", torch.no_grad()(env.rollout))
    try:
        return old(self, tensordict)
    finally:
        object.__delattr__(env, "rollout")


@torch.no_grad()
def _step(old: Function, self: Any, closure: Function | None = None) -> Any:
    grouped = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
    every = [p for params in grouped for p in params]
    if not every or closure is not None or any(p.dtype != torch.float32 for p in every):
        return old(self, closure)
    for group, params in zip(self.param_groups, grouped, strict=True):
        group["step"] += 1
        warmup = min(1.0, (group["step"] - 1) / group["warmup_steps"]) if group["warmup_steps"] else 1.0
        for device in {p.device for p in params}:
            _update(self, group, [p for p in params if p.device == device], group["lr"] * warmup)
    return None


def _update(optimizer: Any, group: dict[str, Any], params: list[Any], rate: float) -> None:
    for p in params:
        if not (state := optimizer.state[p]):
            state.update(rms=torch.zeros_like(p), momentum=torch.zeros_like(p))
    square, mean = ([optimizer.state[p][name] for p in params] for name in ("rms", "momentum"))
    table_of(params[0].device).laprop_(
        [p.detach() for p in params],
        [p.grad for p in params],
        square,
        mean,
        torch.tensor(group["step"], device=params[0].device),
        rate,
        agc=group["agc"],
        pmin=group["parameter_norm_min"],
        beta1=group["beta1"],
        beta2=group["beta2"],
        eps=group["eps"],
    )
