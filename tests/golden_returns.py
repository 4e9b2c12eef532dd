"""The official actor and critic losses on given predictions, over several calls of the running normalisers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdream import ops as fd
from fastdream.agents.dreamer_v3_behavior import Shown, actor_critic_loss, numbers, replay_critic_loss
from fastdream.agents.dreamer_v3_config import Config, size
from fastdream.agents.dreamer_v3_nets import Networks
from fastdream.encoder import EncoderConfig
from fastdream.heads import TwoHotConfig
from fastdream.nets import flatten_inputs
from fastdream.normalize import NormConfig
from fastdream.official import from_official, to_official
from fastdream.spaces import Space

from .golden_tools import LOOSE, Golden, assert_close, files, parse_options
from .watched import Calls, watch_ops

FILES = files("returns.npz")
NORMS = ("retnorm", "valnorm", "advnorm")
CASES = [(path, name) for path in FILES for name in Golden(path).config["variants"]]


def build(golden: Golden, options: dict) -> tuple[Networks, Config]:
    """Networks of which only heads' losses and normalisers are used: their sizes come from the file."""
    policy = golden.under("default/call0/imag/in")
    cont, disc = policy["policy_mean"].shape[-1], policy["policy_logits"].shape[-1]
    act_space = {"cont": Space("vector", (cont,)), "disc": Space("discrete", (), disc)}
    norms = {k: parse_options(NormConfig, {"debias": True} | options["norms"][k]) for k in NORMS}
    imag = options["imag"]
    config = Config(
        enc=EncoderConfig(units=4),
        rewhead=TwoHotConfig(units=4),
        value=TwoHotConfig(units=4, bins=golden.config["bins"]),
        **norms,
        **{k: imag[k] for k in ("contdisc", "slowtar", "horizon", "lam", "actent", "slowreg")},
        replay_lam=imag["lam"],
        replay_slowreg=imag["slowreg"],
    )
    small = size(config, "debug")
    return Networks(
        {"x": Space("vector", (1,))}, act_space, small, fd.load("reference"), torch.float32, 0
    ), small


def statistics(nets: Networks) -> dict[str, Tensor]:
    arrays = to_official({k: getattr(nets, k) for k in NORMS})
    return {k.removesuffix("/value"): v for k, v in arrays.items()}


@pytest.mark.parametrize(("path", "variant"), CASES, ids=lambda x: x if isinstance(x, str) else x.stem)
def test_returns_variant(path: Path, variant: str) -> None:
    golden = Golden(path)
    nets, config = build(golden, golden.config["variants"][variant])
    calls = sorted({key.split("/")[0] for key in golden.under(variant) if key.startswith("call")})
    assert calls, "no calls in the file"
    for call in calls:
        part = f"{variant}/{call}"
        before = {f"{k}/value": v for k, v in golden.under(f"{part}/state_before").items()}
        from_official(before, {k: getattr(nets, k) for k in NORMS})
        check_call(golden, part, nets, config)
        assert_close(statistics(nets), golden.under(f"{part}/state_after"))


def imagined(nets: Networks, ret: Tensor, shown: Shown, calls: Calls) -> dict[str, Tensor]:
    """What actor and critic learned from, [N, H] or [N, H+1], and the statistics of returns."""
    (_, _, adv, *_), (_, log_prob, _) = calls["reinforce"][-1]
    parts = {key: tensor for key, (tensor, _) in shown.items()}
    parts |= {"ret": ret, "ret_normed": parts["ret"], "adv_normed": adv, "logpi": log_prob}
    return parts | dict(zip(("roffset", "rscale"), nets.retnorm.stats(), strict=True))


def check_call(golden: Golden, part: str, nets: Networks, config: Config) -> None:
    """imag_loss, then repl_loss, and the gradient of both."""
    given, repl = golden.tensors(f"{part}/imag/in"), golden.tensors(f"{part}/repl/in")
    leaves = {
        k: given[k].requires_grad_(True) for k in given if k.startswith("policy_") or k == "value_logits"
    }
    leaves["rep_value_logits"] = repl["value_logits"].requires_grad_(True)
    policy = (given["policy_mean"], given["policy_std"]), (given["policy_logits"][..., None, :],)
    action = flatten_inputs(
        nets.pol.spaces, {k.split("/")[1]: v for k, v in given.items() if k.startswith("act/")}
    )
    slow = nets.val.pred(given["slowvalue_logits"])
    calls = watch_ops(nets, "lambda_return", "critic_loss") | watch_ops(nets.pol, "reinforce")
    args = action, given["rew"], given["con"], policy, given["value_logits"], slow
    losses, ret, shown = actor_critic_loss(nets.ops, nets, config, *args, True)
    assert_close(losses, golden.under(f"{part}/imag/loss"), LOOSE)
    # Means of normalised numbers are 0 but for rounding, so they are compared absolutely.
    assert_close(numbers(nets.ops, nets, shown), golden.under(f"{part}/imag/metrics"), LOOSE, floor=1e-3)
    assert_close(imagined(nets, ret, shown, calls), golden.under(f"{part}/imag/out"), LOOSE)

    batch = {"reward": repl["rew"], "is_last": repl["last"], "is_terminal": repl["term"]}
    slow = nets.val.pred(repl["slowvalue_logits"])
    args = batch, repl["boot"], repl["value_logits"], slow
    repval = replay_critic_loss(nets.ops, nets, config, *args, True)
    assert_close({"repval": repval}, golden.under(f"{part}/repl/loss"), LOOSE)
    # The official code computes values there that nothing uses.
    theirs = {k: golden[f"{part}/repl/out/{k}"] for k in ("ret", "weight")}
    ours = {"ret": calls["lambda_return"][1].result, "weight": calls["critic_loss"][1].given[3]}
    assert_close(ours, theirs | {"weight": theirs["weight"][:, :-1]}, LOOSE)

    (losses["policy"].mean() + losses["value"].mean() + 0.3 * repval.mean()).backward()
    assert_close({k: x.grad for k, x in leaves.items()}, golden.under(f"{part}/grad"), LOOSE)
