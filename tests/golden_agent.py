"""Three whole updates of the official agent, with the samples it drew: losses, gradients, parameters, carries."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream.agents.dreamer_v3 import Config, Draws, DreamerV3
from fastdream.agents.dreamer_v3_config import LossScales, RSSMConfig
from fastdream.decoder import DecoderConfig
from fastdream.encoder import EncoderConfig
from fastdream.heads import HeadConfig, TwoHotConfig
from fastdream.nets import flatten_inputs
from fastdream.normalize import NormConfig, SlowConfig
from fastdream.official import from_official, name_map
from fastdream.optim import OptConfig
from fastdream.policy import PolicyConfig
from fastdream.spaces import RESERVED

from .agent_tools import losses
from .golden_returns import imagined
from .golden_tools import (
    BACKENDS,
    EACH_BACKEND,
    LOOSE,
    STRICT,
    WIDE,
    Golden,
    assert_close,
    files,
    parse_options,
    parse_spaces,
)
from .watched import Calls, watch, watch_ops

FILES = files("agent_step*.npz")
TRAINED = ("enc", "dyn", "dec", "rew", "con", "pol", "val")
NORMS = ("retnorm", "valnorm", "advnorm")


def options(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k.removeprefix(prefix + "."): v for k, v in flat.items() if k.startswith(prefix + ".")}


def build(golden: Golden, backend: str) -> DreamerV3:
    """Our agent with the sizes, spaces, options and parameters of the file."""
    flat = golden.config["agent"]
    assert flat["enc.typ"] == flat["dec.typ"] == "simple" and flat["dyn.typ"] == "rssm"
    policy, replayed = options(flat, "policy"), options(flat, "repl_loss")
    scales = parse_options(LossScales, options(flat, "loss_scales"))
    norms = {k: parse_options(NormConfig, {"debias": True} | options(flat, k)) for k in NORMS}
    config = Config(
        dyn=parse_options(RSSMConfig, options(flat, "dyn.rssm")),
        enc=parse_options(EncoderConfig, options(flat, "enc.simple")),
        dec=parse_options(DecoderConfig, options(flat, "dec.simple")),
        rewhead=parse_options(TwoHotConfig, options(flat, "rewhead")),
        conhead=parse_options(HeadConfig, options(flat, "conhead")),
        value=parse_options(TwoHotConfig, options(flat, "value")),
        # The official default head for discrete actions ignores policy.unimix.
        policy=replace(
            parse_options(PolicyConfig, policy),
            unimix=0.0,
            min_std=policy["minstd"],
            max_std=policy["maxstd"],
        ),
        slowvalue=parse_options(SlowConfig, options(flat, "slowvalue")),
        loss_scales=scales if flat["repval_loss"] else replace(scales, repval=0.0),
        opt=parse_options(OptConfig, options(flat, "opt")),
        **norms,
        **{k: flat[k] for k in ("horizon", "contdisc", "imag_length", "imag_last", "ac_grads")},
        **{k: flat[k] for k in ("reward_grad", "repval_grad", "replay_context")},
        **{k: flat[f"imag_loss.{k}"] for k in ("lam", "actent", "slowreg", "slowtar")},
        replay_lam=replayed["lam"],
        replay_slowreg=replayed["slowreg"],
    )
    spaces = parse_spaces(golden.config["obs_space"], golden.config.get("obs_order"))
    obs_space = {k: v for k, v in spaces.items() if k not in RESERVED}
    agent = DreamerV3(obs_space, parse_spaces(golden.config["act_space"]), config, BACKENDS[backend])
    from_official(golden.under("param0"), {k: getattr(agent.nets, k) for k in TRAINED})
    from_official(golden.under("slow0"), {"slowval": agent.nets.slowval})
    if golden.under("norm0"):
        from_official(golden.under("norm0"), {k: getattr(agent.nets, k) for k in NORMS})
    return agent


class Inputs:
    """What one official update was given, in our time convention."""

    def __init__(self, golden: Golden, agent: DreamerV3, step: str) -> None:
        context, keys = agent.replay_context, (*agent.obs_space, *RESERVED)
        self.batch = {k: golden.tensor(f"{step}/data/{k}")[:, context:] for k in keys}
        self.carry = golden.tensors(f"{step}/resolved/carry")
        self.action = flatten_inputs(agent.act_space, golden.tensors(f"{step}/resolved/prevact"))
        sample = golden.tensors(f"{step}/sample")
        acts = {k.removeprefix("imgact/"): v for k, v in sample.items() if k.startswith("imgact/")}
        self.draws = Draws(
            post_index=sample["repstoch"].argmax(-1),
            prior_index=sample["imgstoch"][:, 1:].argmax(-1),
            action_flat=flatten_inputs(agent.act_space, acts),
        )


def modules(agent: DreamerV3, names: tuple[str, ...]) -> dict[str, torch.nn.Module]:
    return {k: getattr(agent.nets, k) for k in names}


def parameters(agent: DreamerV3, names: tuple[str, ...], grad: bool = False) -> dict[str, Tensor]:
    entries = name_map(modules(agent, names))
    pick = (lambda x: x.grad) if grad else (lambda x: x.detach().clone())
    return {name: entry.to_official(pick(entry.tensor)) for name, entry in entries.items()}


def watched(agent: DreamerV3) -> Calls:
    """The calls in which `loss` computes what official files hold."""
    calls = watch_ops(agent, "observe", "prior", "imagine", "lambda_return", "critic_loss", "summarize")
    calls |= watch(agent, "world_model_loss", "behavior_loss") | watch(agent.nets.dec, "forward")
    return calls | watch_ops(agent.nets.pol, "reinforce")


def check_forward(golden: Golden, step: str, agent: DreamerV3, calls: Calls) -> None:
    """Everything between the batch and the losses."""
    nets, observed, dream = agent.nets, calls["observe"][-1], calls["imagine"][-1].result
    post = observed.result
    ours = {"tokens": observed.given[4], "prior_logit": calls["prior"][-1].result}
    ours |= {"repfeat/deter": post.deter, "repfeat/logit": post.logit, "imgfeat/deter": dream.deter}
    K = nets.starts(post.deter.shape[1])
    first = post.logit[:, -K:].flatten(0, 1)[:, None]
    ours["imgfeat/logit"] = torch.cat([first, dream.logit], 1)
    ours |= {f"recon/{k}": v for k, v in official_recon(agent, calls["forward"][-1].result).items()}
    outs = calls["world_model_loss"][-1].given[3]
    ours |= {"rep_rew_pred": nets.rew.pred(outs["rew"]), "rep_con_prob": nets.con.pred(outs["con"])}
    _, ret, shown = calls["behavior_loss"][-1].result
    ours |= {f"imag/{k}": v for k, v in imagined(nets, ret.flatten(0, 1), shown, calls).items()}
    (imag, repl), reinforced = calls["critic_loss"][-2:], calls["reinforce"][-1]
    ours |= {"imag_loss_per/policy": reinforced.result[0], "imag_loss_per/value": imag.result}
    value, _, slow, weight, *_ = repl.given
    ours |= {"repl/val": nets.val.pred(value), "repl/slowval": slow, "repl/weight": weight}
    ours |= {"repl/ret": calls["lambda_return"][-1].result}
    ours |= {f"loss_per/{k}": v for k, v in losses(agent, calls).items()}
    ours |= {f"loss/{k}": v.mean() for k, v in losses(agent, calls).items()}
    for group in ("tokens", "prior_logit", "repfeat", "imgfeat", "recon", "rep_rew_pred", "rep_con_prob"):
        compare(golden, step, group, ours)
    for group in ("imag", "imag_loss_per", "repl", "loss_per", "loss"):
        compare(golden, step, group, ours)


def official_recon(agent: DreamerV3, recon: dict[str, Tensor]) -> dict[str, Tensor]:
    """Decoder outputs as the official prediction gives them: images in 0..1, vectors before symexp, classes."""
    kinds = {k: space.kind for k, space in agent.obs_space.items()}
    pick = {"image": torch.sigmoid, "vector": lambda x: x, "discrete": lambda x: x.argmax(-1)}
    return {k: pick[kinds[k]](v) for k, v in recon.items()}


def compare(golden: Golden, step: str, group: str, ours: Mapping[str, Tensor], limit: float = LOOSE) -> None:
    theirs = golden.under(step)
    theirs = {k: v for k, v in theirs.items() if k == group or k.startswith(group + "/")}
    # The critic's last replayed state is bootstrapped from alone.
    theirs |= {k: v[:, :-1] for k, v in theirs.items() if k in ("repl/slowval", "repl/weight")}
    if theirs:
        # Means over very wide bins lose digits where huge bins cancel.
        wide = group in ("imag", "rep_rew_pred", "repl")
        assert_close(ours, theirs, WIDE if wide else limit, floor=1e-3)


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_agent_updates(path: Path, backend: str) -> None:
    golden = Golden(path)
    agent = build(golden, backend)
    lr, calls = agent.config.opt.lr, watched(agent)
    for number in range(golden.config["nsteps"]):
        step = f"s{number}"
        given = Inputs(golden, agent, step)
        loss, post, metrics = agent.loss(given.carry, given.batch, given.action, given.draws)
        loss.backward()
        check_forward(golden, step, agent, calls)
        assert_close({"loss_total": loss}, {"loss_total": golden[f"{step}/loss_total"]})
        grads = parameters(agent, TRAINED, grad=True)
        norms = {k: g.norm() for k, g in grads.items()}
        scale = max(float(v) for v in golden.under(f"{step}/grad_norm").values())
        assert_close(norms, golden.under(f"{step}/grad_norm"), LOOSE, floor=1e-4 * scale)
        if exact := golden.under(f"{step}/grad"):
            assert_close(grads, exact, LOOSE, floor=1e-4 * scale)
        metrics |= {f"opt/{k}": v for k, v in agent.opt.step().items()}
        metrics["opt/param_count"] = torch.tensor(float(agent.param_count))
        agent.slow.update()
        dotted = {k.replace("/", "."): v for k, v in metrics.items()}
        assert_close(dotted, golden.under(f"{step}/metrics"), LOOSE, floor=1e-2)
        check_after(golden, step, agent, post, lr)


def check_after(golden: Golden, step: str, agent: DreamerV3, post: Any, lr: float) -> None:
    """Parameters, slow critic, normalisers, carry and what goes back to replay, after one update."""
    carry = {"dyn/deter": post.deter[:, -1], "dyn/stoch": post.stoch[:, -1]}
    theirs = golden.under(f"{step}/carry_after")
    assert_close(carry, {k: v for k, v in theirs.items() if k.startswith("dyn/")}, LOOSE)
    if golden.under(f"{step}/replay_out"):
        replay = {"dyn/deter": post.deter, "dyn/stoch": post.stoch}
        theirs = golden.under(f"{step}/replay_out")
        assert_close(replay, {k: v for k, v in theirs.items() if k.startswith("dyn/")}, LOOSE)
    if after := golden.under(f"{step}/param_after"):
        # The first step moves every entry by about lr * sign(gradient), so a gradient that is rounding noise
        # may move an entry the other way: entries may differ by some lr, the tensors as a whole may not.
        ours = parameters(agent, TRAINED)
        for name, value in after.items():
            distance = (ours[name] - torch.from_numpy(value)).abs()
            assert distance.max() <= 4 * lr, (name, float(distance.max()))
            assert distance.mean() <= 0.02 * lr, (name, float(distance.mean()))
        assert_close(parameters(agent, ("slowval",)), golden.under(f"{step}/slow_after"), LOOSE, floor=0.1)
    if after := golden.under(f"{step}/norm_after"):
        assert_close(parameters(agent, NORMS), after, LOOSE)


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_agent_loss_reaches_parameters(path: Path, backend: str) -> None:
    """The norm of every single loss's gradient with respect to every parameter."""
    golden = Golden(path)
    agent = build(golden, backend)
    calls = watched(agent)
    given = Inputs(golden, agent, "s0")
    agent.loss(given.carry, given.batch, given.action, given.draws)
    names = [str(n) for n in golden["s0/per_loss_grad_norm/params"]]
    entries = name_map(modules(agent, TRAINED))
    tensors = [entries[n].tensor for n in names]
    rows = []
    for loss in golden["s0/per_loss_grad_norm/losses"]:
        mean = losses(agent, calls)[str(loss)].mean()
        grads = torch.autograd.grad(mean, tensors, retain_graph=True, allow_unused=True)
        rows.append(torch.stack([torch.zeros(()) if g is None else g.norm() for g in grads]))
    theirs = golden["s0/per_loss_grad_norm/matrix"]
    for ours, row, loss in zip(rows, theirs, golden["s0/per_loss_grad_norm/losses"], strict=True):
        assert np.array_equal(ours.numpy() > 1e-9, row > 1e-9), f"{loss} reaches other parameters"
        assert_close({str(loss): ours}, {str(loss): row}, LOOSE)


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_agent_replay_context(path: Path, backend: str) -> None:
    """The carry and previous actions that an update resolves from a batch in replay's layout."""
    golden = Golden(path)
    agent = build(golden, backend)
    data, context = golden.tensors("s0/data"), agent.replay_context
    batch = {k: data[k] for k in (*agent.obs_space, *RESERVED)}
    for key in agent.act_space:
        # The official stream keeps the action that follows an observation, ours the one that led to it.
        before = golden.tensor(f"carry0/prevact/{key}")[:, None]
        batch[f"action/{key}"] = torch.cat([before.to(data[key].dtype), data[key][:, :-1]], 1)
    if context:
        batch |= {"deter": data["dyn/deter"], "stoch": data["dyn/stoch"].argmax(-1)}
    carry, rest, action = agent.context(golden.tensors("carry0/dyn"), batch)
    # Official sequences may continue an earlier one (consec > 0) and then keep its carry; ours never do.
    fresh = data["consec"][:, 0].numpy() == 0 if context else slice(None)
    theirs = golden.under("s0/resolved/carry")
    assert_close({k: v[fresh] for k, v in carry.items()}, {k: v[fresh] for k, v in theirs.items()}, STRICT)
    ours = flatten_inputs(agent.act_space, golden.tensors("s0/resolved/prevact"))
    assert torch.equal(action, ours)
    assert rest["is_first"].shape == action.shape[:2]


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_agent_policy(path: Path, backend: str) -> None:
    """One step of acting with the final parameters: deter and the distributions; draws are replayed."""
    golden = Golden(path)
    agent = build(golden, backend)
    last = f"s{golden.config['nsteps'] - 1}"
    from_official(golden.under(f"{last}/param_after"), modules(agent, TRAINED))
    nets, carry = agent.nets, golden.tensors("policy/in/carry/dyn")
    obs = golden.tensors("policy/in/obs")
    action = flatten_inputs(agent.act_space, golden.tensors("policy/in/carry/prevact"))
    index = golden.tensor("policy/out/carry/dyn/stoch").argmax(-1)
    state = carry["deter"], carry["stoch"], action
    step = agent.ops.observe_step(nets.dyn.params, *state, nets.enc(obs), obs["is_first"], None, index)
    ours = {"carry/dyn/deter": step.deter, "carry/dyn/stoch": step.stoch}
    for key, out in zip(nets.pol.spaces, nets.pol(nets.dyn.feat(step.deter, step.stoch)), strict=True):
        names, space = ("logits",) if len(out) == 1 else ("mean", "stddev"), nets.pol.spaces[key]
        shape = (-1, *space.shape, *([space.classes] if len(out) == 1 else []))
        ours |= {f"dist/{key}/{name}": x.reshape(shape) for name, x in zip(names, out, strict=True)}
    theirs = {k: v for k, v in golden.under("policy/out").items() if not k.startswith("act/")}
    assert_close(ours, theirs, LOOSE)
