"""What the official TensorFlow DreamerV1 computed, recomputed here: golden/dreamer_v1/README.md says how it was made.

Where ours departs on purpose, and what is done about it here:
- The official noise of Gaussian latents has no batch axis: all sequences, and all dreams, get the same numbers at a
  step. Ours draws for each of them. Noise is an argument, so that the official one is repeated over the batch.
- The official agent makes an update when it is built. Its traces are taken away before anything is written down.
- The official most likely action of a batch is, for all of it, the draw that is the most likely of the first
  environment, and epsilon-greedy exploration compares a row of chances to a column. Both are right for one
  environment, as which they are compared.
- Dreams that begin where an episode ended do not count in ours. Official sequences end there, and with a learned
  end no dream begins at their last step, so that there are none.
- TensorFlow's tanh is 1 from 7.9 on, PyTorch's from 9.0 on. Of draws that far out, which of them is the most likely
  is a matter of this rounding: densities and the choice are then compared at the official draws.
- The official encoder sees images alone, so that nothing here has vectors.
- The official weight decay computes what it does not assign. It is off in both.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdream.agents.dreamer_v1 import DreamerV1

from .golden_dreamer_v1 import FILES, batch, build, computed, draws, entries, load, official
from .golden_tools import EACH_BACKEND, LOOSE, STRICT, Golden, assert_close, error
from .watched import Calls, watch_ops

EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
GROUPS = {"model": "model", "actor": "policy", "value": "value"}  # of optimisers, by their official names
LOSSES = {
    "reward": "rew",
    "kl": "kl",
    "image": "image",
    "model": "model",
    "value": "value",
    "actor": "policy",
}


def of_group(name: str, group: str) -> bool:
    """Whether the official parameter is one that this optimiser trains."""
    part = name.split("/")[0]
    return part == group or group == "model" and part not in GROUPS


@EACH_BACKEND
@EACH_FILE
def test_updates(path: Path, backend: str) -> None:
    """Whole updates, one after the other: states, dreams, losses, gradients, and what becomes of the parameters."""
    golden = Golden(path)
    agent = build(golden, backend)
    params, data = entries(agent), batch(golden, agent)
    for number in range(golden.config["updates"]):
        theirs = golden.under(f"u{number}")
        calls = watch_ops(agent, "observe", "prior", "imagine", "lambda_return")
        loss, metrics = agent.loss(agent.init_train(len(data["reward"])), data, draws(golden, agent, number))
        check_forward(agent, calls, metrics, theirs)
        loss.backward()
        check_gradients(official(params, lambda p: p.grad), golden.under(f"u{number}/grad"))
        norms = {name: agent.opts[ours].step()["grad_norm"] for name, ours in GROUPS.items()}
        assert_close(norms, golden.under(f"u{number}/norm"), LOOSE)
        check_parameters(golden, official(params, lambda p: p), number, 0.02)


def check_forward(
    agent: DreamerV1, calls: Calls, metrics: dict[str, Tensor], theirs: dict[str, np.ndarray]
) -> None:
    """Everything between the batch and the gradients."""
    ours = dict(computed(agent, calls))
    # Weights are of no op; their mean is a metric.
    ours["imag/weight"] = metrics["weight"]
    theirs = theirs | {"imag/weight": theirs["imag/weight"].mean()}
    ours |= {f"loss/{name}": metrics[f"loss/{mine}"] for name, mine in LOSSES.items()}
    if agent.model.pcont is not None:
        ours["loss/pcont"] = agent.config.pcont_scale * metrics["loss/pcont"]
    rest = ("draw/", "grad/", "norm/", "param/")
    assert_close(ours, {k: v for k, v in theirs.items() if not k.startswith(rest)}, STRICT)
    assert agent.model.pcont is None or "loss/pcont" in theirs


def check_gradients(ours: dict[str, Tensor], theirs: dict[str, np.ndarray]) -> None:
    """Every one against its own largest entry; none is near zero, where there is one."""
    assert ours.keys() == theirs.keys()
    idle = [name for name, value in theirs.items() if not np.abs(value).max() > 1e-4]
    # Only the KL reaches the prior, and only from above its free nats.
    assert all(re.match("dynamics/img[23]/", name) and not theirs[name].any() for name in idle), idle
    # TensorFlow adds up the errors of all pixels in float32 for this one, and is off by 3e-5 of the sum.
    pixels = "decode/h5/bias"
    assert_close(ours, {pixels: theirs[pixels]}, LOOSE)
    assert_close(ours, {k: v for k, v in theirs.items() if k != pixels}, STRICT)


def check_parameters(golden: Golden, ours: dict[str, Tensor], number: int, limit: float) -> None:
    """After an update: the largest distance, as a share of the learning rate, which is about the length of a step."""
    theirs = golden.under(f"u{number}/param")
    assert ours.keys() == theirs.keys()
    far = {}
    for name, value in theirs.items():
        group = next(group for group in GROUPS if of_group(name, group))
        far[name] = float(np.abs(ours[name].numpy() - value).max()) / golden.config[f"{group}_lr"]
    worst = sorted(far.items(), key=lambda item: -item[1])[:5]
    assert worst[0][1] <= limit, worst


@EACH_FILE
def test_optimisers(path: Path) -> None:
    """The parameters after each update from the official gradients: clipping and Adam, and no rounding but theirs."""
    golden = Golden(path)
    agent = build(golden, "reference")
    params = entries(agent)
    for number in range(golden.config["updates"]):
        for p in agent.nets.parameters():
            p.grad = torch.empty_like(p)
        load(golden.under(f"u{number}/grad"), params, lambda p: p.grad)
        for name, mine in GROUPS.items():
            norm = agent.opts[mine].step()["grad_norm"]
            assert error(norm, golden[f"u{number}/norm/{name}"]) < STRICT
        check_parameters(golden, official(params, lambda p: p), number, 0.002)


class Replayed:
    """Stands where torch draws: gives recorded numbers, one tensor a call, in the order and shape asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: list[tuple[str, np.ndarray]] = []
        for kind in ("randn", "rand", "randint"):
            monkeypatch.setattr(torch, kind, self._drawing(kind))

    def _drawing(self, kind: str) -> Any:
        def draw(*args: Any, generator: torch.Generator, device: torch.device) -> Tensor:
            wanted, value = self.queue.pop(0)
            assert wanted == kind
            shape = args[1] if kind == "randint" else args[0] if isinstance(args[0], tuple) else args
            tensor = torch.from_numpy(value.astype(np.int64 if kind == "randint" else np.float32))
            return tensor.reshape(shape)

        return draw


def drawn(given: dict[str, np.ndarray], agent: DreamerV1, greedy: bool) -> list[tuple[str, np.ndarray]]:
    """The official numbers of one step of acting in the order in which ours draws."""
    latent = [("randn", given["latent"])]
    if agent.act_space["action"].kind == "discrete":
        # Of the most likely of draws nothing depends on them where there are classes.
        action = np.zeros(agent.config.mode_draws) if greedy else given["uniform0"]
        other = given["index0" if greedy else "index1"]
        return [*latent, ("rand", action), ("randint", other), ("rand", given["chance0"])]
    unused = np.zeros(agent.act_space["action"].shape)  # without exploration the official code draws nothing
    return [*latent, ("randn", given["normal0"]), ("randn", given.get("normal1", unused))]


@pytest.mark.parametrize("mode", ["sample", "mode"])
@EACH_BACKEND
@EACH_FILE
def test_acting(path: Path, backend: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of two episodes, exploration included: states, and the actions that are taken."""
    golden, greedy = Golden(path), mode == "mode"
    agent = build(golden, backend)
    last = golden.config["updates"] - 1
    load(golden.under(f"u{last}/param"), entries(agent), lambda p: p)
    replayed, carry = Replayed(monkeypatch), agent.init_policy(1)
    acts = golden.under("act/eval" if greedy else "act/train")
    steps = sorted({int(key.split("/")[0]) for key in acts})
    assert len(steps) == 4
    for step in steps:
        given = {k.split("/")[1]: v for k, v in acts.items() if k.startswith(f"{step}/")}
        replayed.queue = drawn(given, agent, greedy)
        obs = {"image": golden["data/image"][0, step][None], "is_first": np.array([step in (0, 2)])}
        carry, action, _ = agent.policy(carry, obs, mode)
        assert not replayed.queue
        assert_close(carry, {key: given[key] for key in ("deter", "stoch")}, STRICT)
        if "sample" in given:
            check_likeliest(agent, carry, given)
            if np.abs(given["sample"]).max() == 1:
                carry["action"] = torch.from_numpy(given["action"])
                continue
        chosen = action["action"]
        if agent.act_space["action"].kind == "discrete":
            chosen = np.eye(golden.config["action_width"])[chosen]
        assert_close(
            {"carry": carry["action"], "chosen": chosen}, {k: given["action"] for k in ("carry", "chosen")}
        )


def check_likeliest(agent: DreamerV1, carry: dict[str, Tensor], given: dict[str, np.ndarray]) -> None:
    """The density of every official draw at these states, and that the most likely one of ours is the official one."""
    ((mean, std),) = agent.nets.pol(agent.model.dyn.feat(carry["deter"], carry["stoch"]))
    sample = torch.from_numpy(given["sample"])
    log_prob = agent.nets.pol.continuous.log_prob(sample, mean, std).sum(-1)
    assert_close({"log_prob": log_prob}, {"log_prob": given["log_prob"]}, STRICT)
    noise = given["normal1"][0, 0] if "normal1" in given else 0.0
    likeliest = given["sample"][int(log_prob.argmax())]
    explored = np.clip(likeliest + agent.config.expl_eval * noise, -1, 1)
    assert error(explored, given["action"][0]) < STRICT
