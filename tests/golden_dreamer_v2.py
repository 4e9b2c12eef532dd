"""Our DreamerV2 with the sizes, options, parameters and draws of one file of golden/dreamer_v2."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdream.adam import AdamConfig
from fastdream.agents.dreamer_v2 import Config, Draws, DreamerV2
from fastdream.agents.dreamer_v2_config import ExploreConfig, KLConfig, LossScales, NetConfig, RSSMConfig
from fastdream.normalize import SlowConfig
from fastdream.ops import Ops
from fastdream.spaces import Space, Spaces
from fastdream.strided import StridedDecoderConfig, StridedEncoderConfig

from .golden_keras import as_ours, categorical_noise, load, moved, renamed
from .golden_tools import BACKENDS, Golden

FILES = sorted((Path(__file__).parent / "golden" / "dreamer_v2").glob("*.npz"))
RULES = [
    (r"/norm/(gamma|beta)", r"/\1"),
    (r"/dense_(\w+)/out/", r".vec.\1."),
    (r"/(?:dense|densenorm|norm)(\d)/", r".mlp.\1."),
    (r"/conv(?:norm)?(\d)/", r".convs.\1."),
    ("/convin/", ".space."),
    ("/img_in(_norm)?/", ".core.inputs."),
    ("/cell(norm)?/", ".core.gates."),
    ("/img_out(_norm)?_0/", ".prior.0."),
    ("/img_dist_0/", ".priorlogit."),
    (r"rssm/img_out(?:_norm)?_(\d)/", lambda match: f"model.priors.others.{int(match[1]) - 1}.0."),
    (r"rssm/img_dist_(\d)/", lambda match: f"model.priors.others.{int(match[1]) - 1}.1."),
    ("/obs_out(_norm)?/", ".obs.0."),
    ("/obs_dist/", ".obslogit."),
    ("/out/std/", ".head.action.stddev."),
    ("^encoder", "model.enc"),
    ("^rssm", "model.dyn"),
    ("^decoder", "model.dec"),
    ("^reward", "model.rew"),
    ("^discount", "model.dis"),
    ("^(actor|critic|target)", r"task.\1"),
    ("^expl_", "explore."),
    (r"^ensemble(\d)", r"ensemble.heads.\1"),
    ("actor", "pol"),
    ("critic", "val"),
    ("target", "slowval"),
    (r"(dis)/out/out/", r"\1.head.logit."),
    (r"(?<!pol)/out/out/", ".head.pred."),
]


def net(config: Mapping[str, Any], name: str) -> NetConfig:
    return NetConfig(*(config[f"{name}.{key}"] for key in ("layers", "units", "norm", "act")))


def adam(config: Mapping[str, Any], name: str) -> AdamConfig:
    return AdamConfig(**{key: config[f"{name}_opt.{key}"] for key in ("lr", "clip", "eps", "wd")})


def strided(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    widths, act = config[f"{name}.mlp_layers"], config[f"{name}.act"]
    sizes = {"depth": config[f"{name}.cnn_depth"], "kernels": tuple(config[f"{name}.cnn_kernels"])}
    return sizes | {
        "layers": len(widths),
        "units": widths[0],
        "norm": config[f"{name}.norm"],
        "act": act,
        "conv_act": act,
    }


def settings(config: Mapping[str, Any]) -> Config:
    """Ours from the official ones."""
    plan = {"greedy": "greedy", "Plan2Explore": "plan2explore"}[config["expl_behavior"]]
    rssm = (config[f"rssm.{k}"] for k in ("deter", "hidden", "stoch", "discrete", "min_std", "norm", "act"))
    return Config(
        dyn=RSSMConfig(*rssm),
        enc=StridedEncoderConfig(**strided(config, "encoder")),
        dec=StridedDecoderConfig(**strided(config, "decoder")),
        rewhead=net(config, "reward_head"),
        dishead=net(config, "discount_head"),
        policy=net(config, "actor"),
        value=net(config, "critic"),
        slowvalue=SlowConfig(config["slow_target_fraction"], config["slow_target_update"]),
        kl=KLConfig(config["kl.balance"], config["kl.free"], "mean" if config["kl.free_avg"] else "step"),
        loss_scales=LossScales(
            rew=config["loss_scales.reward"],
            dis=config["loss_scales.discount"],
            kl=config["loss_scales.kl"],
        ),
        model_opt=adam(config, "model"),
        policy_opt=adam(config, "actor"),
        value_opt=adam(config, "critic"),
        explore=ExploreConfig(
            behavior=plan,
            models=config["disag_models"],
            net=net(config, "expl_head"),
            opt=adam(config, "expl"),
            intrinsic=config["expl_intr_scale"],
            extrinsic=config["expl_extr_scale"],
        ),
        grad_heads=tuple(config["grad_heads"]),
        reward=config["clip_rewards"],
        lam=config["discount_lambda"],
        imag_length=config["imag_horizon"],
        actent=config["actor_ent"],
        actor_mix=config["actor_grad_mix"],
        **{key: config[key] for key in ("discount", "pred_discount", "actor_grad")},
    )


class Official:
    """One file, its agent here with the parameters that it began with, and its values in our order and layout."""

    def __init__(self, path: Path, backend: str) -> None:
        self.golden = Golden(path)
        self.config = self.golden.config["config"]
        self.discrete = self.golden.config["actions"] == "discrete"
        shapes = {k: tuple(shape) for k, shape in self.golden.config["obs_space"].items()}
        obs_space = {k: Space("image" if len(s) == 3 else "vector", s) for k, s in shapes.items()}
        action = Space("discrete", (), 5) if self.discrete else Space("vector", (2,))
        self.agent = self.build(obs_space, {"action": action}, BACKENDS[backend])
        self.dreams = ["imag", "expl_imag"] if self.agent.explore else ["imag"]
        load(dict(self.agent.nets.named_parameters()), self.values("param0"))

    def build(self, obs_space: Spaces, act_space: Spaces, ops: Ops) -> DreamerV2:
        return DreamerV2(obs_space, act_space, settings(self.config), ops)

    def values(self, prefix: str) -> dict[str, Tensor]:
        """Parameters or their gradients, by our names."""
        named = {self.name(path): array for path, array in self.golden.under(prefix).items()}
        return {name: self.value(name, array) for name, array in named.items()}

    def name(self, path: str) -> str:
        return renamed(
            path, [*RULES, ("pol/out/out/", f"pol.head.action.{'logits' if self.discrete else 'mean'}.")]
        )

    def value(self, name: str, array: np.ndarray) -> Tensor:
        value, model = as_ours(array, name.startswith("model.dec.convs")), self.agent.model
        stoch, deter = model.latent.width, model.dyn.deter
        fed = ("model.dec.mlp.0.", "model.dec.space.", "model.rew.mlp.0.", "model.dis.mlp.0.")
        if name.endswith("weight") and (name.startswith(fed) or ".mlp.0." in name and "model" not in name):
            value = moved(value, (stoch, deter), (1, 0))
        if name == "model.dyn.obs.0.weight" and model.enc.vectors and model.enc.images:
            dense = model.enc.mlp.width
            value = moved(value, (deter, model.enc.embed_width - dense, dense), (0, 2, 1))
        return value

    def as_theirs(self, embed: Tensor) -> Tensor:
        """An embedding with that of images first."""
        enc = self.agent.model.enc
        dense = enc.mlp.width if enc.vectors else 0
        return torch.cat([embed[..., dense:], embed[..., :dense]], -1)

    def batch(self) -> dict[str, Tensor]:
        data = self.golden.tensors("data")
        action = data.pop("action")
        return data | {"action/action": action.argmax(-1) if self.discrete else action}

    def draws(self, step: str, dream: str) -> Draws:
        """What draws the official samples."""
        seq, post = self.golden.under(f"{step}/{dream}"), self.golden.under(f"{step}/post")
        parts = ("logit", "mean", "std", "stoch")
        if not post:  # dreams begin at all of them
            lead = self.golden["data/reward"].shape
            post = {k: seq[k][0].reshape(*lead, *seq[k].shape[2:]) for k in parts if k in seq}
        posts = self.latent_noise(post)
        if not seq:
            return Draws(posts, posts, posts)  # nothing is dreamt
        priors = self.latent_noise({k: seq[k][1:] for k in parts if k in seq})
        actor = {k: v[:-1] for k, v in seq.items() if k.startswith("actor/")}
        drawn = self.action_noise(actor | {"action": seq["action"][1:]})
        unused = torch.full_like(drawn[:1], 0.5)  # the action at the last state leads nowhere
        return Draws(posts, priors.transpose(0, 1), torch.cat([drawn, unused]).transpose(0, 1))

    def action_noise(self, drawn: Mapping[str, np.ndarray]) -> Tensor:
        if self.discrete:
            return categorical_noise(drawn["actor/logits"], drawn["action"])[..., None]
        return trunc_noise(drawn["actor/mean"], drawn["actor/std"], drawn["action"])

    def latent_noise(self, state: Mapping[str, np.ndarray]) -> Tensor:
        if "logit" in state:
            return categorical_noise(state["logit"], state["stoch"])
        mean, std, stoch = (state[k].astype(np.float64) for k in ("mean", "std", "stoch"))
        return torch.from_numpy(((stoch - mean) / std).astype(np.float32))


def trunc_noise(mean: np.ndarray, std: np.ndarray, event: np.ndarray) -> Tensor:
    """The uniform numbers that draw these events from normals cut off outside [-1, 1]."""
    mean, std, event = (torch.from_numpy(x.astype(np.float64)) for x in (mean, std, event))
    low, high, here = (torch.special.ndtr((x - mean) / std) for x in (-1.0, 1.0, event))
    return ((here - low) / (high - low)).float()
