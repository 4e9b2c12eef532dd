"""The world model's steps and scans: observe (posterior), imagine and rollout (prior).

A scan is the Python loop over a step. What does not depend on the recurrent state is computed for all
time steps before the loop: casts and slices of weights, the posterior's product with the embeddings, the
core's product with known actions. Everything runs in deter.dtype: the other floats are cast to it.
"""

import torch
from torch import Tensor

from fastdream.ops.params import RSSM, Actor, Dream, Step, need_steps
from fastdream.ops.reference.actor import action_width, bind_actor
from fastdream.ops.reference.actor import actor as act
from fastdream.ops.reference.layers import match, mlp
from fastdream.ops.reference.state import Posterior, Prior, flat, shaped


def _over_time(x: Tensor | None, length: int) -> tuple[Tensor | None, ...]:
    """The time steps of [B, T, ...], or T times None. Unbind, because its gradient is a single stack."""
    return (None,) * length if x is None else x.unbind(1)


def _stacked(steps: list[Step]) -> Step:
    """Steps at T times as one Step with [B, T, ...]."""
    deter, stoch, logit, index = zip(*steps, strict=True)
    indices = None if index[0] is None else torch.stack(index, 1)
    return Step(torch.stack(deter, 1), torch.stack(stoch, 1), torch.stack(logit, 1), indices)


def prior(rssm: RSSM, deter: Tensor) -> Tensor:
    """Prior logits [..., S, C] (Gaussian: mean | raw std [..., 2S]) of deter [..., D], in deter.dtype."""
    return shaped(rssm.latent, mlp(deter, rssm.prior))


def observe_step(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None = None,
) -> Step:
    """One posterior step: state, action and embedding in, the state of this time step out.

    deter [B, D], stoch [B, S, C] (Gaussian [B, S]): the previous state. action [B, A] flat, the one that
    led here; embed [B, E]; reset [B] bool: deter, stoch and action are zeroed where True. noise [B, S]:
    uniform in [0, 1) for categorical latents, standard normal for Gaussian ones; index [B, S] int64
    replays an earlier categorical draw (noise may then be None).
    Returns Step(deter, stoch, logit, index), floats in deter.dtype; index None for Gaussian latents.
    Raises ValueError without noise or index. Source: DreamerV3 `rssm._observe`.
    """
    dtype = deter.dtype
    model = Posterior.bind(rssm, dtype, deter.shape[-1], action.shape[-1])
    action = match(action, dtype).masked_fill(reset.unsqueeze(-1), 0.0)
    entered = model.cell.enter(action), model.enter(match(embed, dtype))
    return model.step(deter, match(stoch, dtype), *entered, reset, noise, index)


def observe(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None = None,
) -> Step:
    """`observe_step` over T time steps, each from the state of the one before.

    deter [B, D], stoch [B, S, C] (Gaussian [B, S]): the state before the first step. action [B, T, A],
    embed [B, T, E], reset [B, T] bool, noise and index [B, T, S] as in `observe_step`.
    Returns Step with [B, T, ...]. Source: DreamerV3 `rssm.observe`.
    """
    dtype, length = deter.dtype, action.shape[1]
    need_steps("observe", length)
    model = Posterior.bind(rssm, dtype, deter.shape[-1], action.shape[-1])
    action = match(action, dtype).masked_fill(reset.unsqueeze(-1), 0.0)
    actions = model.cell.enter(action).unbind(1)
    embeds = model.enter(match(embed, dtype)).unbind(1)
    draws = _over_time(noise, length), _over_time(index, length)
    stoch = match(stoch, dtype)
    steps: list[Step] = []
    for inputs in zip(actions, embeds, reset.unbind(1), *draws, strict=True):
        steps.append(model.step(deter, stoch, *inputs))
        deter, stoch = steps[-1].deter, steps[-1].stoch
    return _stacked(steps)


def imagine_step(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    noise: Tensor | None,
    index: Tensor | None = None,
) -> Step:
    """One prior step: the state that `action` leads to, drawn without seeing an observation.

    deter [N, D], stoch [N, S, C] (Gaussian [N, S]), action [N, A] flat; noise and index [N, S] as in
    `observe_step`. Returns Step whose logit is the prior's. Source: DreamerV3 `rssm.imagine`.
    """
    dtype = deter.dtype
    model = Prior.bind(rssm, dtype, action.shape[-1])
    return model.step(deter, match(stoch, dtype), model.cell.enter(match(action, dtype)), noise, index)


def rollout(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    noise: Tensor | None,
    index: Tensor | None = None,
) -> Step:
    """`imagine_step` over H given actions (open loop), each from the state of the one before.

    deter [N, D], stoch [N, S, C] (Gaussian [N, S]): the start, not repeated in the result.
    action [N, H, A]; noise and index [N, H, S]. Returns Step with [N, H, ...].
    """
    dtype, length = deter.dtype, action.shape[1]
    need_steps("rollout", length)
    model = Prior.bind(rssm, dtype, action.shape[-1])
    actions = model.cell.enter(match(action, dtype)).unbind(1)
    stoch = match(stoch, dtype)
    steps: list[Step] = []
    for inputs in zip(actions, _over_time(noise, length), _over_time(index, length), strict=True):
        steps.append(model.step(deter, stoch, *inputs))
        deter, stoch = steps[-1].deter, steps[-1].stoch
    return _stacked(steps)


def imagine(
    rssm: RSSM,
    actor: Actor,
    deter: Tensor,
    stoch: Tensor,
    length: int,
    noise: Tensor | None,
    action_noise: Tensor | None,
    index: Tensor | None = None,
    action: Tensor | None = None,
) -> Dream:
    """Roll the prior for H = length steps with the actor's actions.

    deter [N, D], stoch [N, S, C] (Gaussian [N, S]): the start, state 0 of the result. noise and index
    [N, H, S] as in `observe_step`; action_noise [N, H + 1, M] and action [N, H + 1, A] as in
    `ops.actor`: action t is drawn at state t and leads to state t + 1, the last one only fills the shape.
    Returns Dream; its action is float32 at least, the rest in deter.dtype. Gradients flow through samples
    and actions; DreamerV3 calls it without gradients. Raises ValueError where noise is missing.
    Source: DreamerV1 algorithm 1, DreamerV3 `rssm.imagine`.
    """
    dtype = deter.dtype
    need_steps("imagine", length)
    model = Prior.bind(rssm, dtype, action_width(actor))
    policy = bind_actor(actor, dtype)
    action_noises, given = _over_time(action_noise, length + 1), _over_time(action, length + 1)
    draws = list(zip(_over_time(noise, length), _over_time(index, length), strict=True))
    start = stoch = match(stoch, dtype)
    deters, actions, steps = [deter], [], []
    for time in range(length + 1):
        feat = torch.cat([deter, flat(rssm.latent, stoch)], -1)
        actions.append(act(policy, feat, action_noises[time], given[time]))
        if time == length:
            break
        step = model.step(deter, stoch, model.cell.enter(match(actions[-1], dtype)), *draws[time])
        steps.append(step)
        deter, stoch = step.deter, step.stoch
    deters += [step.deter for step in steps]
    stochs = [start] + [step.stoch for step in steps]
    logits = [step.logit for step in steps]
    return Dream(*(torch.stack(x, 1) for x in (deters, stochs, logits, actions)))
