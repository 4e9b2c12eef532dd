"""The official RSSM: observe, one bare step and open-loop imagination, with the samples it drew, and gradients."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdream.agents.dreamer_v3_config import RSSMConfig
from fastdream.cores import BlockGRU
from fastdream.latents import Categorical
from fastdream.nets import flatten_inputs
from fastdream.official import from_official, name_map
from fastdream.rssm import RSSM

from .golden_tools import BACKENDS, EACH_BACKEND, Golden, assert_close, files, parse_options, parse_spaces

FILES = files("rssm*.npz")


class Case:
    """One file: the model with the official parameters, and inputs that collect gradients."""

    def __init__(self, path: Path, backend: str) -> None:
        self.golden = golden = Golden(path)
        options = golden.config["rssm"]
        cfg = self.cfg = replace(parse_options(RSSMConfig, options), free_nats=options["free_nats"])
        self.act_space = parse_spaces(golden.config["act_space"])
        self.ops = ops = BACKENDS[backend]
        self.latent = Categorical(ops, cfg.stoch, cfg.classes, cfg.unimix)
        style = dict(norm=cfg.norm, act=cfg.act)
        width = sum(space.width for space in self.act_space.values())
        sizes = dict(hidden=cfg.hidden, blocks=cfg.blocks, layers=cfg.dynlayers)
        core = BlockGRU(ops, cfg.deter, self.latent.width, width, **sizes, **style)
        layers = dict(prior_layers=cfg.imglayers, post_layers=cfg.obslayers, absolute=cfg.absolute)
        embed = golden["in/tokens"].shape[-1]
        self.rssm = RSSM(ops, core, self.latent, embed, hidden=cfg.hidden, **layers, **style)
        from_official(golden.under("param"), {"dyn": self.rssm})

    def action(self, prefix: str) -> Tensor:
        return flatten_inputs(self.act_space, self.golden.tensors(prefix))

    def grads(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gradients by the official names, zero where none arrived."""
        entries = name_map({"dyn": self.rssm})
        grads = {f"input/{k}": x.grad for k, x in inputs.items()}
        for name, entry in entries.items():
            grad = torch.zeros_like(entry.tensor) if entry.tensor.grad is None else entry.tensor.grad
            grads[f"param/{name}"] = entry.to_official(grad)
        return grads


def leaf(x: Tensor) -> Tensor:
    return x.requires_grad_(True)


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_rssm_observe(path: Path, backend: str) -> None:
    case = Case(path, backend)
    golden, latent, cfg = case.golden, case.latent, case.cfg
    tokens, deter, stoch = (leaf(golden.tensor(f"in/{k}")) for k in ("tokens", "carry/deter", "carry/stoch"))
    index = golden.tensor("out/feat/stoch").argmax(-1)
    state = deter, stoch, case.action("in/action"), tokens, golden.tensor("in/reset")
    post = case.ops.observe(case.rssm.params, *state, None, index)
    feat = {"deter": post.deter, "stoch": post.stoch, "logit": post.logit}
    assert_close(feat, golden.under("out/feat"))
    assert_close({"deter": post.deter[:, -1], "stoch": post.stoch[:, -1]}, golden.under("out/carry"))

    prior = case.ops.prior(case.rssm.params, post.deter)
    raw, _ = latent.kl(post.logit, prior, free=0.0, clamp="none")
    dyn, rep = latent.kl(post.logit, prior, free=cfg.free_nats)
    entropy = {"prior_ent": latent.entropy(prior), "post_ent": latent.entropy(post.logit)}
    outs = {"prior_logit": prior, "kl_raw": raw, "loss/dyn": dyn, "loss/rep": rep, **entropy}
    outs |= {"metrics/dyn_ent": entropy["prior_ent"].mean(), "metrics/rep_ent": entropy["post_ent"].mean()}
    theirs = golden.under("out")
    assert_close(outs, {k: v for k, v in theirs.items() if k.split("/")[0] not in ("feat", "carry")})

    cot = sum((golden.tensor(f"cot/observe/{k}") * v).sum() for k, v in feat.items())
    objective = dyn.mean() + 0.1 * rep.mean() + cot
    objective.backward()
    ours = case.grads({"tokens": tokens, "carry/deter": deter, "carry/stoch": stoch})
    assert_close(ours | {"objective": objective}, golden.under("grad/observe"))


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_rssm_core(path: Path, backend: str) -> None:
    case = Case(path, backend)
    golden, action = case.golden, case.action("core/in/action")
    assert_close({"action_flat": action}, {"action_flat": golden["core/out/action_flat"]})
    stoch = golden.tensor("core/in/stoch").flatten(-2)
    deter = case.ops.block_gru(case.rssm.core.params, golden.tensor("core/in/deter"), stoch, action)
    assert_close({"deter": deter}, {"deter": golden["core/out/deter"]})


@EACH_BACKEND
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_rssm_imagine(path: Path, backend: str) -> None:
    case = Case(path, backend)
    golden = case.golden
    deter, stoch = (leaf(golden.tensor(f"imagine/in/carry/{k}")) for k in ("deter", "stoch"))
    index = golden.tensor("imagine/out/feat/stoch").argmax(-1)
    # Only the reference differentiates dreams.
    with torch.set_grad_enabled(backend == "reference"):
        state = deter, stoch, case.action("imagine/in/action")
        dream = case.ops.rollout(case.rssm.params, *state, None, index)
    feat = {"deter": dream.deter, "stoch": dream.stoch, "logit": dream.logit}
    assert_close(feat, golden.under("imagine/out/feat"))
    assert_close({k: v[:, -1] for k, v in feat.items()}, golden.under("imagine/out/carry"))
    if backend == "reference":
        objective = sum((golden.tensor(f"cot/imagine/{k}") * v).sum() for k, v in feat.items())
        objective.backward()
        ours = case.grads({"carry/deter": deter, "carry/stoch": stoch})
        assert_close(ours | {"objective": objective}, golden.under("grad/imagine"))
