"""Heads, distributions and the functions under them against the official ones."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdream import distributions as dist
from fastdream import ops as fd
from fastdream.heads import BinaryHead, HeadConfig, TwoHotConfig, TwoHotHead
from fastdream.nets import ActionDecoder, flatten_inputs
from fastdream.official import from_official, name_map
from fastdream.ops import Ops
from fastdream.policy import ActorHeads, PolicyConfig

from .golden_tools import (
    BACKENDS,
    LOOSE,
    STRICT,
    WIDE,
    Golden,
    assert_close,
    files,
    parse_options,
    parse_spaces,
)


@pytest.fixture(params=BACKENDS)
def head_ops(request: pytest.FixtureRequest) -> Ops:
    return BACKENDS[request.param]


@pytest.fixture(params=files("heads*.npz"), ids=lambda path: path.stem)
def heads(request: pytest.FixtureRequest) -> Golden:
    return Golden(Path(request.param))


def load(gold: Golden, name: str, head: nn.Module) -> None:
    """Give the head its official parameters."""
    params = {f"{name}/{key}": value for key, value in gold.under(f"param/{name}").items()}
    from_official(params, {name: head})


def assert_gradients(gold: Golden, name: str, head: nn.Module, x: Tensor) -> None:
    entries = name_map({name: head})
    grads = {key: entry.to_official(entry.tensor.grad) for key, entry in entries.items()}
    assert_close(grads, gold.under(f"{name}/grad/param"))
    assert_close({"input": x.grad}, {"input": gold[f"{name}/grad/input"]})


def test_symlog_and_symexp(heads: Golden, head_ops: Ops) -> None:
    ours = {"symlog": head_ops.symlog(heads.tensor("fn/x")), "symexp": head_ops.symexp(heads.tensor("fn/y"))}
    assert_close(ours, {key: heads[f"fn/{key}"] for key in ours})
    for key, value in ours.items():
        torch.testing.assert_close(value, heads.tensor(f"fn/{key}"), rtol=1e-5, atol=1e-7)


def test_two_hot_heads(heads: Golden, head_ops: Ops) -> None:
    names = [key.split("/")[0] for key in heads.arrays if key.endswith("/out/bins")]
    assert names
    for name in names:
        x, target = heads.tensor(f"{name}/in/x").requires_grad_(), heads.tensor(f"{name}/in/target")
        bins = len(heads[f"{name}/out/bins"])
        config = parse_options(TwoHotConfig, {**heads.config["kw"], "bins": bins, "outscale": 1.0})
        head = TwoHotHead(head_ops, x.shape[-1], config, tuple(target.shape[1:]))
        load(heads, name, head)
        out = head(x)
        loss = head.loss(out, target)
        loss.mean().backward()
        ours = {"logits": out, "probs": out.softmax(-1), "bins": head.bins, "loss": loss}
        assert_close(ours, {key: heads[f"{name}/out/{key}"] for key in ours})
        assert_close({name: head.pred(out)}, {name: heads[f"{name}/out/pred"]}, LOOSE)
        assert_gradients(heads, name, head, x)


def test_two_hot_of_given_logits(heads: Golden, head_ops: Ops) -> None:
    logits, target = (
        heads.tensor("twohot_raw/in/logits").requires_grad_(),
        heads.tensor("twohot_raw/in/target"),
    )
    bins = fd.twohot_bins(logits.shape[-1])
    loss = head_ops.twohot_loss(logits, target, bins)
    loss.sum().backward()
    pred = head_ops.twohot_mean(logits, bins)
    assert_close(
        {"loss": loss, "grad": logits.grad}, {k: heads[f"twohot_raw/out/{k}"] for k in ("loss", "grad")}
    )
    assert_close({"pred": pred}, {"pred": heads["twohot_raw/out/pred"]}, WIDE)


def test_uniform_logits_mean_exactly_zero(heads: Golden, head_ops: Ops) -> None:
    for bins in {len(v) for k, v in heads.arrays.items() if k.endswith("/out/bins")}:
        pred = head_ops.twohot_mean(torch.full((3, bins), 0.7), fd.twohot_bins(bins))
        assert (pred == 0).all(), f"{bins} bins: {pred}"
    assert (heads["twohot_zero/pred"] == 0).all()


def test_binary_head(heads: Golden, head_ops: Ops) -> None:
    x, target = heads.tensor("cont/in/x").requires_grad_(), heads.tensor("cont/in/target")
    config = parse_options(HeadConfig, {**heads.config["kw"], "outscale": 1.0})
    head = BinaryHead(head_ops, x.shape[-1], config)
    load(heads, "cont", head)
    out = head(x)
    ours = {"logit": out, "prob": head.pred(out), "loss": head.loss(out, target)}
    assert_close(ours, {key: heads[f"cont/out/{key}"] for key in ours})
    assert ((head.pred(out) > 0.5).numpy() == heads["cont/out/pred"]).all()


def test_policy(heads: Golden, head_ops: Ops) -> None:
    spaces = parse_spaces(heads.config["act_space"])
    stds = re.search(r"minstd ([\d.]+) maxstd ([\d.]+)", heads.config["pol"])
    assert stds, heads.config["pol"]
    options = {**heads.config["kw"], "min_std": float(stds[1]), "max_std": float(stds[2])}
    x = heads.tensor("pol/in/x").requires_grad_()
    head = ActorHeads(head_ops, x.shape[-1], spaces, parse_options(PolicyConfig, options))
    load(heads, "pol", head)
    outs = head(x)
    names = [
        ("logits",) if space.kind == "discrete" else ("mean", "stddev") for space in head.spaces.values()
    ]
    for key, parts, values in zip(head.spaces, names, outs, strict=True):
        theirs = {name: heads[f"pol/out/{key}/{name}"] for name in parts}
        assert_close({n: v.reshape(theirs[n].shape) for n, v in zip(parts, values, strict=True)}, theirs)
    log_prob = head.log_prob(outs, flatten_inputs(spaces, heads.tensors("pol/in/act")))
    entropy = head.entropy(outs)
    assert_close({"logp": log_prob}, {"logp": sum(heads[f"pol/out/{key}/logp"] for key in spaces)})
    assert_close(entropy, {key: heads[f"pol/out/{key}/entropy"] for key in spaces})
    modes = ActionDecoder(spaces)(fd.actor_mode(outs).detach().numpy())
    preds = {key: heads[f"pol/out/{key}/pred"] for key in spaces}
    assert_close({key: torch.from_numpy(mode) for key, mode in modes.items()}, preds)
    (log_prob.mean() + 0.3 * sum(e.mean() for e in entropy.values())).backward()
    assert_gradients(heads, "pol", head, x)


def test_entropy_range_of_the_policy(heads: Golden, head_ops: Ops) -> None:
    spaces = parse_spaces(heads.config["act_space"])
    head = ActorHeads(head_ops, 3, spaces, PolicyConfig(units=4))
    for key, (low, high) in head.entropy_range().items():
        # The official bounds are those of one element.
        theirs = heads[f"pol/out/{key}/minent"].max(), heads[f"pol/out/{key}/maxent"].max()
        assert (low / spaces[key].size, high / spaces[key].size) == pytest.approx(theirs, rel=STRICT), key


def test_categorical(heads: Golden, head_ops: Ops) -> None:
    variants = {key.split("/")[2] for key in heads.arrays if key.startswith("cat/out/")}
    assert variants
    for variant in variants:
        unimix = float(variant.removeprefix("unimix"))
        logit, other = heads.tensor("cat/in/logits").requires_grad_(), heads.tensor("cat/in/logits2")
        event, theirs = heads.tensor("cat/in/event").long(), heads.under(f"cat/out/{variant}")
        _, kl = head_ops.categorical_kl(logit[:, None], other[:, None], unimix, clamp="none")
        onehot, _ = head_ops.categorical_sample(logit, None, unimix, event)
        log_prob = fd.categorical_log_prob(logit, event, unimix)
        ours = {
            "logits": fd.unimix_log_probs(logit, unimix),
            "entropy": fd.categorical_entropy(logit, unimix),
            "logp": log_prob,
            "onehot_logp": log_prob,
            "onehot_pred": F.one_hot(logit.argmax(-1), logit.shape[-1]),
            "kl": kl,
            "kl_grad": torch.autograd.grad(kl.sum(), logit)[0],
            # The official file weighs the straight-through sample with the second logits.
            "st_grad": torch.autograd.grad((onehot * other).sum(), logit)[0],
        }
        theirs["logits"] = torch.from_numpy(theirs["logits"]).log_softmax(-1).numpy()
        assert_close(ours, theirs)


def test_normals(heads: Golden, head_ops: Ops) -> None:
    at = heads.tensors("normal/in")
    post, prior = (
        (at[mean][..., None], at[std][..., None]) for mean, std in (("mean", "std"), ("mean2", "std2"))
    )
    _, kl = head_ops.gaussian_kl(post, prior, clamp="none")
    log_prob, entropy = (
        dist.normal_log_prob(at["event"], at["mean"], at["std"]),
        dist.normal_entropy(at["std"]),
    )
    ours = {
        "logp": log_prob,
        "agg_logp": dist.sum_event(log_prob, 1),
        "entropy": entropy,
        "agg_entropy": dist.sum_event(entropy, 1),
        "kl": kl,
    }
    theirs = heads.under("normal/out")
    unused = {"huber", "mse", "symlog_mse"}  # losses of no agent here
    assert_close(ours, {key: value for key, value in theirs.items() if key not in unused})
