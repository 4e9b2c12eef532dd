"""Our DreamerV1 with the sizes, settings, parameters, batches and random numbers of an official one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdream.adam import AdamConfig
from fastdream.agents.dreamer_v1 import Config, Draws, DreamerV1
from fastdream.agents.dreamer_v1_config import EPS, NetConfig, PolicyConfig, RSSMConfig
from fastdream.spaces import Space
from fastdream.strided import StridedDecoderConfig, StridedEncoderConfig

from .golden_tools import BACKENDS, Golden
from .watched import Calls

FILES = sorted((Path(__file__).parent / "golden" / "dreamer_v1").glob("*.npz"))

Parameters = tuple[nn.Parameter, ...]
Layout = Callable[..., Tensor]
Entries = dict[str, tuple[Parameters, Layout]]


def build(golden: Golden, backend: str) -> DreamerV1:
    """Our agent, with the parameters that the file begins with."""
    flat = golden.config
    act, units, depth = flat["dense_act"], flat["num_units"], flat["cnn_depth"]
    width, discrete = flat["action_width"], flat["action_dist"] == "onehot"
    assert flat["precision"] == 32 and flat["expl_decay"] == flat["expl_min"] == flat["weight_decay"] == 0
    opts = {k: AdamConfig(flat[f"{k}_lr"], flat["grad_clip"], EPS) for k in ("model", "actor", "value")}
    config = Config(
        dyn=RSSMConfig(flat["deter_size"], flat["deter_size"], flat["stoch_size"]),
        enc=StridedEncoderConfig(depth, conv_act=flat["cnn_act"]),
        dec=StridedDecoderConfig(depth, conv_act=flat["cnn_act"]),
        rewhead=NetConfig(2, units, act),
        pconthead=NetConfig(3, units, act),
        value=NetConfig(3, units, act),
        policy=PolicyConfig(4, units, act, flat["action_init_std"]),
        model_opt=opts["model"],
        policy_opt=opts["actor"],
        value_opt=opts["value"],
        reward={"none": "identity", "tanh": "tanh"}[flat["clip_rewards"]],
        lam=flat["disclam"],
        imag_length=flat["horizon"],
        expl=str(flat["expl_amount"]),
        expl_eval=flat["eval_noise"],
        **{k: flat[k] for k in ("kl_scale", "free_nats", "pcont", "pcont_scale", "discount")},
    )
    action = Space("discrete", (), width) if discrete else Space("vector", (width,))
    obs_space = {"image": Space("image", (64, 64, 3))}
    agent = DreamerV1(obs_space, {"action": action}, config, BACKENDS[backend])
    load(golden.under("param0"), entries(agent), lambda p: p)
    return agent


def entries(agent: DreamerV1) -> Entries:
    """Every official parameter: those of ours that it is made of, and how."""
    nets, model = agent.nets, agent.model
    dyn, core, stoch = model.dyn, model.dyn.core, agent.config.dyn.stoch
    found: Entries = {}

    def dense(name: str, layers: list[Any], features: bool = False) -> None:
        """One dense layer, which may be several of ours side by side. Official features are [stoch, deter]."""
        shift = stoch if features else 0
        weights, biases = tuple(x.weight for x in layers), tuple(x.bias for x in layers)
        found[f"{name}/kernel"] = weights, lambda *x: torch.cat(x).T.roll(shift, 0)
        found[f"{name}/bias"] = biases, lambda *x: torch.cat(x)

    def head(name: str, mlp: nn.Module, outs: list[Any]) -> None:
        for i, layer in enumerate(mlp):
            dense(f"{name}/h{i}", [layer], features=i == 0)
        dense(f"{name}/hout", outs)

    def convolution(name: str, conv: Any) -> None:
        order = (2, 3, 0, 1) if conv.transposed else (2, 3, 1, 0)
        found[f"{name}/kernel"] = (conv.weight,), lambda x: x.permute(order)
        found[f"{name}/bias"] = (conv.bias,), lambda x: x

    for i, conv in enumerate(model.enc.convs, 1):
        convolution(f"encode/h{i}", conv)
    for i, conv in enumerate(model.dec.convs, 2):
        convolution(f"decode/h{i}", conv)
    dense("decode/h1", [model.dec.space], features=True)
    cells = {"img1": core.inputs, "img2": dyn.prior[0], "img3": dyn.priorlogit}
    for name, layer in (cells | {"obs1": dyn.obs[0], "obs2": dyn.obslogit}).items():
        dense(f"dynamics/{name}", [layer])
    found["dynamics/cell/kernel"] = (core.weight_ih,), lambda x: keras_gates(x).T
    found["dynamics/cell/recurrent_kernel"] = (core.weight_hh,), lambda x: keras_gates(x).T
    biases = core.bias_ih, core.bias_hh
    found["dynamics/cell/bias"] = biases, lambda *x: torch.stack([keras_gates(b) for b in x])
    heads = {"reward": model.rew, "value": nets.val}
    for name, net in (heads | ({"pcont": model.pcont} if model.pcont else {})).items():
        head(name, net.mlp, list(net.head.children()))
    head("actor", nets.pol.mlp, list(nets.pol.head["action"].children()))
    return found


def keras_gates(x: Tensor) -> Tensor:
    """Rows reset | update | cand in the order of Keras, update | reset | cand."""
    reset, update, cand = x.chunk(3)
    return torch.cat([update, reset, cand])


def official(entries: Entries, pick: Callable[[nn.Parameter], Tensor]) -> dict[str, Tensor]:
    """What `pick` takes of our parameters (themselves, or their gradients), by official name and layout."""
    return {name: layout(*map(pick, params)).detach().clone() for name, (params, layout) in entries.items()}


@torch.no_grad()
def load(arrays: dict[str, np.ndarray], entries: Entries, pick: Callable[[nn.Parameter], Tensor]) -> None:
    """The way back, in place. Raises where names or shapes differ."""
    assert arrays.keys() == entries.keys(), arrays.keys() ^ entries.keys()
    for name, (params, layout) in entries.items():
        sizes = [p.numel() for p in params]
        numbers = torch.arange(sum(sizes)).split(sizes)
        # A layout only moves numbers about, so that it says of places where they went.
        places = layout(*(n.reshape(p.shape) for n, p in zip(numbers, params, strict=True)))
        assert tuple(places.shape) == arrays[name].shape, name
        values = torch.empty(sum(sizes))
        values[places.flatten()] = torch.from_numpy(arrays[name]).flatten()
        for param, part in zip(params, values.split(sizes), strict=True):
            pick(param).copy_(part.reshape(param.shape))


def batch(golden: Golden, agent: DreamerV1) -> dict[str, Tensor]:
    """Sequences of one episode each, as replay would give them."""
    data = golden.tensors("data")
    if agent.act_space["action"].kind == "discrete":
        data["action"] = data["action"].argmax(-1)
    ends = data["discount"] == 0
    flags = {"is_first": torch.zeros_like(ends), "is_last": ends, "is_terminal": ends}
    return {"image": data["image"], "reward": data["reward"], "action/action": data["action"]} | flags


def draws(golden: Golden, agent: DreamerV1, number: int) -> Draws:
    """What this update drew. The official code shares the noise of latents among all sequences, and all dreams."""
    drawn = golden.tensors(f"u{number}/draw")
    action = drawn["action"].reshape(*drawn["action"].shape[:2], -1).transpose(0, 1)
    filler = torch.zeros_like(action[:, :1])  # the last action leads nowhere
    B, N = len(golden["data/reward"]), len(action)
    return Draws(
        post=drawn["post"].expand(B, -1, -1),
        prior=drawn["prior"].expand(N, -1, -1),
        action=torch.cat([action, filler], 1),
    )


def computed(agent: DreamerV1, calls: Calls) -> Iterator[tuple[str, Tensor]]:
    """What the agent's loss went through, by official names and with time first in dreams."""
    model, (post, dream) = agent.model, (calls[name][-1].result for name in ("observe", "imagine"))
    for name, logit in (("post", post.logit), ("prior", calls["prior"][-1].result)):
        yield from zip((f"{name}/mean", f"{name}/std"), model.latent.stats(logit), strict=True)
    yield from (("post/stoch", post.stoch), ("post/deter", post.deter))
    feat = model.dyn.feat(post.deter, post.stoch)
    yield "embed", calls["observe"][-1].given[4]
    yield "recon", model.dec(*feat)["image"][:, :, ::7, ::7]
    yield "reward", model.rew.pred(model.rew(feat))
    if model.pcont is not None:
        yield "pcont", model.discount(feat)
    imagined = model.dyn.feat(dream.deter[:, 1:], dream.stoch[:, 1:])
    yield "imag/feat", torch.cat([imagined.stoch, imagined.deter], -1).transpose(0, 1)
    yield "imag/reward", model.rew.pred(model.rew(imagined)).T
    yield "imag/value", agent.nets.val.pred(agent.nets.val(imagined)).T
    if model.pcont is not None:
        yield "imag/pcont", model.discount(imagined).T
    yield "imag/returns", calls["lambda_return"][-1].result.T
