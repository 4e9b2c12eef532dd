"""M of World Models against the authors' code; what departs on purpose is told in test_golden_world_models.py."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from fastdream.agents.world_models_nets import draw
from fastdream.ops.reference import mdn_split
from fastdream.stages.fit import FitMemory

from . import world_models_golden_tools as theirs
from .golden_tools import EACH_BACKEND, Golden, assert_close
from .world_models_golden_tools import EACH, FILES, HELD, floats

pytestmark = HELD


class Memory:
    """Our M on what a file has: outputs, and losses in which all steps count."""

    def __init__(self, which: str, gold: Golden, backend: str) -> None:
        self.gold = gold
        self.agent = theirs.with_memory(which, gold, backend, small=True)
        given = floats(gold, "in")
        self.state = tuple(given[key].requires_grad_() for key in ("hidden", "cell"))
        first = given.get("restart", torch.zeros(given["z"].shape[:2])) > 0.5
        self.batch = {"mean": given["z"], "logvar": torch.full_like(given["z"], -torch.inf), "first": first}
        self.batch |= {"action": given["action"], "terminal": torch.zeros_like(first)}
        z, memory = given["z"], self.agent.memory
        hidden, self.after = memory.unroll(
            z[:, :-1], given["action"][:, :-1], first[:, :-1], (self.state[0], self.state[1])
        )
        self.out = mdn_split(memory.out(hidden), memory.latents, memory.mixtures)
        self.losses = memory.loss(hidden, z[:, 1:], first[:, 1:], torch.ones_like(first[:, 1:]))
        self.loss = torch.stack(list(self.losses.values())).sum()


@EACH
@EACH_BACKEND
def test_memory(which: str, backend: str) -> None:
    gold = FILES[f"memory_{which}"]
    ours = Memory(which, gold, backend)
    end, logit, mean, logstd = ours.out
    flat = {"logmix": torch.log_softmax(logit, -1), "mean": mean, "logstd": logstd}
    out = {key: x.flatten(0, -2) for key, x in flat.items()} | {"restart_logit": end.flatten()}
    out |= {"hidden": ours.after[0], "cell": ours.after[1]}
    losses = {"loss": ours.loss, "z_loss": ours.losses["latent"], "r_loss": ours.losses.get("end", end)}
    assert_close(out | losses, gold.under("out"))
    ours.loss.backward()
    grads: dict[str, Any] = theirs.write_memory(theirs.grads(ours.agent.memory))
    if which == "car":
        grads |= dict(zip(("hidden", "cell"), (x.grad for x in ours.state), strict=True))
    assert_close(grads, gold.under("grad"))


def test_their_restarts_return_to_what_was_fed() -> None:
    """Not to zero, where a part begins with the state that the last one left: this is how theirs departs from ours."""
    gold = FILES["memory_doom"]
    memory = theirs.with_memory("doom", gold, "reference", small=True).memory
    given, fed, never = (
        floats(gold, "in"),
        floats(gold, "fed/in"),
        torch.zeros(len(gold["in/z"]), 1, dtype=torch.bool),
    )
    first = given["restart"] > 0.5
    x = torch.cat([given["z"], given["action"], given["restart"][..., None]], -1)
    entered = F.linear(x, memory.weight_ih, memory.bias)
    hidden, cell = fed["hidden"], fed["cell"]
    for t in range(first.shape[1] - 1):
        back = first[:, t, None]
        hidden, cell = torch.where(back, fed["hidden"], hidden), torch.where(back, fed["cell"], cell)
        hidden, cell = memory.ops.lstm_scan(entered[:, t, None], memory.weight_hh, never, hidden, cell)
        hidden = hidden[:, 0]
    assert_close({"hidden": hidden, "cell": cell}, gold.under("fed/out"))


@EACH
@EACH_BACKEND
def test_memory_loss_counts_steps_that_follow(which: str, backend: str) -> None:
    """Ours, from their outputs: the mean of their terms over steps that another episode does not begin with."""
    gold = FILES[f"memory_{which}"]
    ours = Memory(which, gold, backend)
    first, z = ours.batch["first"].numpy(), gold["in/z"][:, 1:].astype(np.float64)
    logmix, mean, logstd = (
        gold[f"out/{key}"].astype(np.float64).reshape(*z.shape, -1) for key in ("logmix", "mean", "logstd")
    )
    normal = -0.5 * ((z[..., None] - mean) / np.exp(logstd)) ** 2 - logstd - 0.5 * np.log(2 * np.pi)
    each = -np.log(np.exp(logmix + normal).sum(-1)).mean(-1)
    follows = ~first[:, 1:]
    expected = {"latent": each[follows].mean()}
    last = np.roll(first, -1, 1)[:, 1:]  # steps before another episode are ends
    if which == "doom":
        assert not follows.all(), "no episode begins within"
        logit = gold["out/restart_logit"].astype(np.float64).reshape(follows.shape)
        weighted = np.where(last, 10 * np.log1p(np.exp(-logit)), np.log1p(np.exp(logit)))
        expected["end"] = weighted[follows].mean()
    ours.batch["terminal"][:, 1:] = torch.from_numpy(last)
    state = ours.state[0], ours.state[1]
    loss, after, metrics = ours.agent.memory_loss(ours.batch, torch.zeros_like(ours.batch["mean"]), state)
    assert_close(metrics, expected)
    assert_close({"loss": loss}, {"loss": np.array(sum(expected.values()))})
    assert_close({"hidden": after[0], "cell": after[1]}, {k: gold[f"out/{k}"] for k in ("hidden", "cell")})


def fit_memory(
    which: str, gold: Golden, backend: str = "reference", dtype: torch.dtype = torch.float32
) -> Any:
    """The stage on the file's stream, at a late update."""
    z, action = gold["train/in/z"], gold["train/in/action"]
    first = gold["train/in/restart"] > 0.5 if which == "doom" else np.zeros(z.shape[:2], bool)
    recorded = theirs.Recorded(z, action=action, first=first, terminal=np.zeros_like(first))
    agent = theirs.with_memory(which, gold, backend, small=True)
    agent.memory.to(dtype)
    latents: Any = theirs.Known(recorded)
    stage = FitMemory(theirs.settings(which, gold), agent, recorded, latents)  # type: ignore[arg-type]
    stage.done = gold.config["late"]
    return stage


@EACH
@EACH_BACKEND
def test_memory_learns(which: str, backend: str) -> None:
    """Schedule, clipping of each element, Adam, and the state that is carried from part to part."""
    gold = FILES[f"memory_{which}"]
    stage = fit_memory(which, gold, backend)
    for number in range(gold.config["updates"]):
        stage.advance()
        at = f"train/{number}"
        assert_close({"loss": np.array(stage.metrics()["loss/memory_loss"])}, {"loss": gold[f"{at}/loss"]})
        params = theirs.write_memory(stage.agent.memory.state_dict())
        assert_close(params, gold.under(f"{at}/param"))


@EACH
def test_clipping_and_adam_on_their_gradients(which: str) -> None:
    gold = FILES[f"memory_{which}"]
    stage = fit_memory(which, gold, dtype=torch.float64)
    memory, before = stage.agent.memory, theirs.variables(gold)
    for number in range(gold.config["updates"]):
        at = f"train/{number}"
        given = theirs.read_memory(gold.under(f"{at}/grad"))
        # The gradient of this sum is what is given.
        loss = sum((param * given[name]).sum() for name, param in memory.named_parameters())
        stage.agent.memory_loss = lambda *_, loss=loss: (loss, stage.state, {"loss": loss})
        rate = torch.tensor([float(gold[f"{at}/rate"])], dtype=torch.float64)
        zeros = {key: torch.zeros(1) for key in ("mean", "logvar", "noise")}
        stage.update(zeros | {"rate": rate}, {"hidden": zeros["mean"], "cell": zeros["mean"]})
        params, after = theirs.write_memory(memory.state_dict()), gold.under(f"{at}/param")
        assert_close(params, after, 1e-6)
        moved: dict[str, Any] = {key: x - before[key] for key, x in params.items()}
        assert_close(moved, {key: x.astype(float) - before[key] for key, x in after.items()}, 1e-2)


@EACH
def test_learning_rate(which: str) -> None:
    gold = FILES[f"memory_{which}"]
    stage, rates = fit_memory(which, gold), []
    hidden, cell = stage.state
    stage.updated = lambda batch, state: (
        rates.append(float(batch["rate"])) or {**state},
        {"loss": hidden.sum()},
    )
    for step in gold["rate/step"].tolist():
        stage.done, stage.state = step, (hidden, cell)
        stage.advance()
    np.testing.assert_allclose(rates, gold["rate/lr"], rtol=1e-12)


@EACH
def test_latents_are_drawn_anew_from_what_is_kept(which: str) -> None:
    given = floats(FILES[f"memory_{which}"], "drawn/in")
    z = draw(given["mu"], given["logvar"], given["noise"])
    # Their exponential is in float16.
    assert_close({"z": z}, FILES[f"memory_{which}"].under("drawn/out"), 2**-10)
