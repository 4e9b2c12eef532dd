"""DreamerV3's actor and critic, given what was imagined or replayed: returns, advantages, losses, metrics."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fastdream.agents.dreamer_v3_config import Config
from fastdream.agents.dreamer_v3_nets import Networks
from fastdream.behavior import discount_weight, imagined_return, replayed_return
from fastdream.ops import Kind, Ops
from fastdream.policy import Outputs

Shown = dict[str, tuple[Tensor, Kind]]  # of which tensor, and which number of it: see `ops.summarize`


def actor_critic_loss(
    ops: Ops,
    nets: Networks,
    config: Config,
    action: Tensor,
    rew: Tensor,
    cont: Tensor,
    policy: Outputs,
    value: Tensor,
    slow: Tensor,
    training: bool,
) -> tuple[dict[str, Tensor], Tensor, Shown]:
    """REINFORCE with return normalisation, and the two-hot critic: losses and returns [N, H], what a log shows.

    action [N, H+1, A] flat, rew, cont, slow (the slow critic's prediction) [N, H+1]; policy and value are raw
    outputs of their heads on the same states.
    """
    val, slowval = nets.valnorm.restored(nets.val.pred(value).detach()), nets.valnorm.restored(slow)
    target = slowval if config.slowtar else val
    disc = 1.0 if config.contdisc else 1 - 1 / config.horizon
    ret = imagined_return(ops, rew, cont, target, disc, config.lam)
    weight = discount_weight(cont, disc)

    offset, scale = nets.retnorm(ret, training)
    adv, ret_normed = (ret - target[:, :-1]) / scale, (ret - offset) / scale
    adv_normed = nets.advnorm.normalized(adv, training)
    actor, ents = nets.pol.reinforce(policy, action, adv_normed, weight[:, :-1], config.actent)

    tar = nets.valnorm.normalized(ret, training)
    critic = ops.critic_loss(value, tar, slow[:, :-1], weight[:, :-1], config.slowreg, nets.val.bins)

    stats = dict(adv=adv, rew=rew, con=cont, ret=ret_normed, val=val, tar=tar, weight=weight, slowval=slowval)
    shown: Shown = {k: (v, "mean") for k, v in stats.items()}
    shown |= {"adv_mag": (adv, "size"), "adv_std": (adv, "std")}
    shown |= {
        "ret_min": (ret_normed, "min"),
        "ret_max": (ret_normed, "max"),
        "ret_rate": (ret_normed, "large"),
    }
    shown |= {f"ent/{key}": (x, "mean") for key, x in ents.items()}
    return {"policy": actor, "value": critic}, ret, shown


@torch.no_grad()
def numbers(ops: Ops, nets: Networks, shown: Shown) -> dict[str, Tensor]:
    """What a log shows, 0-d, in one go."""
    tensors, kinds = zip(*shown.values(), strict=True)
    found = dict(zip(shown, ops.summarize(tensors, kinds), strict=True))
    for key, (low, high) in nets.pol.entropy_range().items():
        found[f"rand/{key}"] = (found[f"ent/{key}"] - low) / ((high - low) or 1.0)
    return found


def replay_critic_loss(
    ops: Ops,
    nets: Networks,
    config: Config,
    batch: Mapping[str, Tensor],
    boot: Tensor,
    value: Tensor,
    slow: Tensor,
    training: bool,
) -> Tensor:
    """Critic on replayed states: [B, K-1], zero where an episode ends.

    batch: reward, is_last, is_terminal [B, K]; boot [B, K] what to bootstrap from; value the raw output of the
    critic, slow the slow critic's prediction, both on the same states.
    Raises ValueError for one state of each sequence alone.
    """
    if boot.shape[1] < 2:
        raise ValueError(
            "the critic's loss on replayed states needs two states of a sequence to imagine from, has "
            f"{boot.shape[1]}: give longer sequences, or leave it out by loss_scales.repval=0"
        )
    last, disc = batch["is_last"], 1 - 1 / config.horizon
    ret = replayed_return(ops, batch["reward"], last, batch["is_terminal"], boot, disc, config.replay_lam)
    weight = 1 - last.float()
    tar = nets.valnorm.normalized(ret, training)
    return ops.critic_loss(value, tar, slow[:, :-1], weight[:, :-1], config.replay_slowreg, nets.val.bins)
