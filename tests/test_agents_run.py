"""Every agent through the same command: presets, flags, runs that end, stop, go on and are loaded again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastdream import agents, cli, config, presets, train
from fastdream.agents import load
from fastdream.config import Config, flatten
from fastdream.run import Training
from fastdream.schedule import Stop

from .run_tools import CountingAgent, parts_of, tiny
from .run_tools import train as trained
from .test_resume import Losses, equal

EARLIER = ["dreamer_v1", "dreamer_v2"]

# agent, preset -> task, steps, ratio, windows, prefill, pretrain, evaluation, deter, learning rates, entropy weight.
OFFICIAL: dict[tuple[str, str], tuple[Any, ...]] = {
    ("dreamer_v2", "atari"): (
        "atari_pong",
        5e7,
        50,
        "ends",
        50_000,
        1,
        2.5e5,
        600,
        (2e-4, 4e-5, 1e-4),
        "1e-3",
    ),
    ("dreamer_v2", "crafter"): (
        "crafter_reward",
        1e8,
        160,
        "ends",
        10_000,
        1,
        1e5,
        1024,
        (1e-4,) * 3,
        "3e-3",
    ),
    ("dreamer_v2", "dmc_vision"): (
        ("dmc_walker_walk", 1e8, 160, "episode", 1000, 100, 1e4, 200, (3e-4, 8e-5, 8e-5), "1e-4")
    ),
    ("dreamer_v1", "dmc_vision"): (
        ("dmc_walker_walk", 2.5e6, 500, "not_last", 2500, 100, 5000, 200, (6e-4, 8e-5, 8e-5), None)
    ),
}
OFFICIAL["dreamer_v2", "dmc_proprio"] = OFFICIAL["dreamer_v2", "dmc_vision"]
OFFICIAL["dreamer_v1", "dmc_proprio"] = OFFICIAL["dreamer_v1", "dmc_vision"]


def parse(*args: str) -> Config:
    return cli.parse(args).config


@pytest.mark.parametrize(("agent", "preset"), OFFICIAL)
def test_official_presets(agent: str, preset: str):
    task, steps, ratio, windows, prefill, pretrain, every, deter, rates, entropy = OFFICIAL[agent, preset]
    config = presets.resolve(task, preset, agent=agent)
    assert (config.steps, config.env.count, config.agent, config.preset) == (steps, 1, agent, preset)
    train, dreamer = config.train, config.dreamer
    assert (train.ratio, train.prefill, train.pretrain) == (ratio, prefill, pretrain)
    assert (train.batch_size, train.batch_length) == ((16, 50) if agent == "dreamer_v2" else (50, 50))
    assert (config.replay.windows, config.replay.online) == (windows, False)
    assert (config.eval.every, config.eval.mode) == (every, "mode")
    assert dreamer.dyn.deter == dreamer.dyn.hidden == deter and dreamer.imag_length == 15
    opts = dreamer.model_opt, dreamer.policy_opt, dreamer.value_opt
    assert tuple(opt.lr for opt in opts) == rates
    assert entropy is None or dreamer.actent == entropy


def test_what_differs_between_the_tasks_of_dreamer_v2():
    def dreamer(preset: str) -> Any:
        return presets.resolve(OFFICIAL["dreamer_v2", preset][0], preset, agent="dreamer_v2").dreamer

    atari, crafter, control = dreamer("atari"), dreamer("crafter"), dreamer("dmc_vision")
    assert [d.discount for d in (atari, crafter, control)] == [0.999, 0.999, 0.99]
    assert [d.loss_scales.kl for d in (atari, crafter, control)] == [0.1, 1.0, 1.0]
    assert [d.loss_scales.dis for d in (atari, crafter)] == [5.0, 1.0]
    assert [d.kl.free for d in (atari, crafter, control)] == [0, 0, 1.0]
    assert [d.reward for d in (atari, crafter, control)] == ["tanh", "tanh", "identity"]
    assert [d.pred_discount for d in (atari, crafter, control)] == [True, True, False]
    # The official file sets every setting that is called norm, the ensemble's too.
    for d, norm in ((atari, "none"), (crafter, "layer"), (control, "none")):
        norms = {k: v for k, v in flatten(dataclasses.asdict(d)).items() if k.endswith("norm")}
        assert set(norms.values()) == {norm} and len(norms) == 8, norms
    assert control.grad_heads == ("decoder", "reward")
    assert (atari.dyn.stoch, atari.dyn.classes, atari.enc.depth, atari.policy.layers) == (32, 32, 48, 4)


def test_discrete_actions_of_dreamer_v1():
    dreamer = presets.resolve("atari_pong", agent="dreamer_v1").dreamer
    assert (dreamer.imag_length, dreamer.kl_scale, dreamer.pcont_scale) == (10, 0.1, 1.0)
    assert (dreamer.pcont, dreamer.reward) == (True, "tanh")
    assert (dreamer.expl, dreamer.expl_eval) == ("linear(0.4,0.25,75000)", 0.001)
    assert (dreamer.discrete, agents.settings("dreamer_v1").Config().discrete) == ("score", "categorical")
    control = presets.resolve("dmc_walker_walk", agent="dreamer_v1").dreamer
    assert (control.expl, control.free_nats, control.pcont, control.discount) == ("0.3", 3.0, False, 0.99)
    assert (control.rewhead.layers, control.value.layers, control.policy.layers) == (2, 3, 4)


def test_what_dreamer_v1_balances_a_cartpole_with():
    config = parse("--agent", "dreamer_v1", "--task", "dmc_cartpole_balance")
    dreamer, pendulum = config.dreamer, parse("--agent", "dreamer_v1").dreamer
    assert (config.preset, config.size, config.steps, config.suite.repeat) == ("balance", "tiny", 10_000, 2)
    assert (dreamer.kl_scale, dreamer.discount, dreamer.pcont) == (0.001, 0.98, False)
    assert (pendulum.kl_scale, pendulum.discount) == (0.01, 0.97)
    assert dataclasses.replace(dreamer, kl_scale=0.01, discount=0.97) == pendulum


def test_suite_options():
    def suite(agent: str, task: str, preset: str = "") -> Any:
        return presets.resolve(task, preset, agent=agent).suite

    for agent in EARLIER:
        assert suite(agent, "dmc_walker_walk").repeat == 2
        vision = suite(agent, "dmc_walker_walk", "dmc_vision")
        assert (vision.obs, vision.size, vision.repeat) == ("vision", 64, 2)
    grey = suite("dreamer_v2", "atari_pong")
    assert (grey.size, grey.gray, grey.sticky, grey.noops, grey.actions, grey.repeat) == (
        64, True, 0.25, 30, "needed", 4,
    )  # fmt: skip
    hundred = suite("dreamer_v2", "atari100k_pong")
    assert (hundred.size, hundred.gray, hundred.sticky, hundred.actions) == (64, False, 0.0, "needed")
    colour = suite("dreamer_v1", "atari_pong")
    assert (colour.size, colour.gray, colour.lives) == (64, False, "reset")


@pytest.mark.parametrize("agent", EARLIER)
def test_what_a_task_starts_from(agent: str):
    for task, preset in {
        "dmc_cup_catch": "dmc_proprio",
        "atari_pong": "atari",
        "gym_Acrobot-v1": "gym",
    }.items():
        assert presets.preset_of(task, agent) == preset
    assert parse().agent == "dreamer_v3"


@pytest.mark.parametrize(
    ("agent", "task"), [("dreamer_v1", "gym_Pendulum-v1"), ("dreamer_v2", "gym_CartPole-v1")]
)
def test_without_a_task_an_agent_learns_what_it_does_in_minutes(agent: str, task: str):
    config = parse("--agent", agent)
    assert (config.agent, config.task, config.size) == (agent, task, "tiny") and config.steps <= 30_000
    assert config.preset == presets.preset_of(task, agent) != "gym"


def test_flags_are_those_of_the_agent(capsys: pytest.CaptureFixture[str]):
    config = parse(
        "--agent=dreamer_v2", "--dreamer.kl.balance", "0.7", "--dreamer.actent", "linear(1e-2,1e-3,1e5)"
    )
    assert config.dreamer.kl.balance == 0.7 and config.dreamer.actent == "linear(1e-2,1e-3,1e5)"
    assert parse("--agent", "dreamer_v2", "--dreamer.grad-heads", "reward").dreamer.grad_heads == ("reward",)
    assert parse("--agent", "dreamer_v1", "--dreamer.pcont").dreamer.pcont
    for args in (["--agent", "dreamer_v1", "--dreamer.kl.balance", "1"], ["--dreamer.pcont"]):
        with pytest.raises(SystemExit):
            parse(*args)
    said = capsys.readouterr().err
    assert "kl.balance" in said and "fastdream.train --agent dreamer_v1 --help" in said
    with pytest.raises(SystemExit):
        parse("--agent", "dreamer_v2", "--help")
    assert "--dreamer.explore.models" in capsys.readouterr().out.replace("_", "-")
    with pytest.raises(SystemExit):
        parse("--agent", "dreamer_v1", "--preset", "list")
    listed = capsys.readouterr().out
    assert listed.startswith("pendulum ") and "  10,000 updates  from a dataset  " in listed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--agent", "dreamer_v2", "--size", "12m"], "unknown size '12m'"),
        (["--agent", "dreamer_v1", "--preset", "crafter"], "unknown preset 'crafter'"),
        (["--agent", "dreamer_v2", "--variant", "nature2024"], "is one of dreamer_v3; dreamer_v2 has none"),
        (["--agent", "dreamer"], "unknown agent 'dreamer': did you mean 'dreamer_v"),
    ],
)
def test_what_an_agent_does_not_have_is_refused(args: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        parse(*args)


def test_settings_of_another_agent_are_refused():
    with pytest.raises(
        ValueError, match="dreamer_v2 takes settings of .*dreamer_v2_config, got .*dreamer_v3_config"
    ):
        dataclasses.replace(parse(), agent="dreamer_v2")


@pytest.mark.parametrize("agent", EARLIER)
def test_settings_survive_json(agent: str, tmp_path: Path):
    asked = parse("--agent", agent, "--task", "atari_pong", "--train.prefill", "7")
    config.save(asked, tmp_path)
    assert config.load(tmp_path) == asked
    assert f"agent: {agent} -> dreamer_v3" in config.differences(asked, parse("--task", "atari_pong"))


@pytest.mark.parametrize("agent", EARLIER)
@pytest.mark.parametrize("task", ["dummy_vector", "dummy_mixed"])
def test_a_run_ends_goes_on_and_can_be_loaded(
    agent: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    args = ["--agent", agent, "--task", task, "--logdir", str(tmp_path), "--train.prefill", "30"]
    args += ["--train.batch-size", "2", "--train.batch-length", "4", "--log.report-every", "60"]
    train.main([*args, "--steps", "80"])
    text = capsys.readouterr().out
    assert f"agent     {agent}, preset debug, size debug" in text and "evaluation: " in text
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss/policy" in entry for entry in metrics)
    assert all(np.isfinite(v) for e in metrics for k, v in e.items() if "loss" in k)
    assert len(list((tmp_path / "media").glob("openloop_*"))) >= 1
    train.main(["--logdir", str(tmp_path), "--steps", "120"])
    assert "resumed at step 80" in capsys.readouterr().out
    one = load(tmp_path)
    assert type(one) is agents.find(agent)
    _, action, _ = one.policy(one.init_policy(1), {**blank(one), "is_first": np.ones(1, bool)})
    assert action.keys() == one.act_space.keys()


def blank(agent: Any) -> dict[str, np.ndarray]:
    return {k: np.zeros((1, *space.shape), space.dtype) for k, space in agent.obs_space.items()}


@pytest.mark.parametrize("agent", EARLIER)
def test_a_dry_run_waits_neither_for_a_prefill_nor_for_an_episode(
    agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    flags = ["--train.prefill", "100000", "--replay.windows", "ends", "--train.batch-length", "15"]
    train.main(["--agent", agent, "--task", "dummy_vector", *flags, "--dry-run"])
    assert "one update: loss" in capsys.readouterr().out and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("agent", EARLIER)
def test_a_stopped_run_computes_the_same_losses(agent: str, tmp_path: Path):
    base = presets.resolve("dummy_mixed", "debug", agent=agent)
    replace = dataclasses.replace
    config = replace(
        base,
        steps=150,
        env=replace(base.env, count=2, parallel="no"),
        train=replace(base.train, batch_size=2, batch_length=4, ratio=3.0, prefill=70, pretrain=3),
        replay=replace(base.replay, capacity=120, windows="ends"),
        log=replace(base.log, outputs=(), every=0.0, save_every=0.0),
    )
    whole, parts = Losses(tmp_path / "whole"), Losses(tmp_path / "parts")
    end = whole.run(config)
    # While actions are random, in the environments' last random episodes, at the end.
    for steps in (45, 81, 150):
        resumed = parts.run(replace(config, steps=steps))
    assert len(whole.losses) == end.loop.learner.updates > 20
    assert parts.losses == whole.losses
    assert equal(resumed.loop.agent.state_dict(), end.loop.agent.state_dict())


def test_actions_are_random_until_an_episode_ends_after_the_prefill(tmp_path: Path):
    # Episodes of dummy tasks have 21 steps; two environments, so that the 41st step is the first of the 21st pair.
    settings = tiny(steps=120, train=dict(prefill=30, pretrain=5, ratio=2.0))
    parts = parts_of(settings, tmp_path)
    sent: list[Any] = []
    send = parts.driver.send
    parts.driver.send = lambda action: (sent.append(action), send(action))[1]  # type: ignore[method-assign]
    training = Training(settings, parts)
    training.run(Stop())
    training.close()
    parts.driver.close()
    agent = training.loop.agent
    assert isinstance(agent, CountingAgent)
    assert agent.policies == 60 - 21  # the pairs 0 to 20 acted at random
    assert agent.events[:5] == ["update"] * 5 and "policy" in agent.events
    # Learning begins with the 30th step, 5 updates at once, then every 4 steps one.
    assert agent.updates == 5 + (120 - 32) * 2 // 8
    first = np.concatenate([np.ravel(value) for action in sent[:21] for value in action.values()])
    assert len(np.unique(first)) > 1


def test_a_prefill_is_the_same_every_time_and_another_with_another_seed(tmp_path: Path):
    seen = []
    for i, seed in enumerate((0, 0, 1)):
        settings = tiny(steps=40, seed=seed, train=dict(prefill=1000))
        loop = trained(settings, tmp_path / str(i)).loop
        seen.append(loop.replay._store.arrays["action/action"].copy())
        assert loop.learner.updates == 0 and loop.filling.all()
    assert np.array_equal(seen[0], seen[1]) and not np.array_equal(seen[0], seen[2])


def test_negative_prefill_is_refused():
    with pytest.raises(SystemExit):
        parse("--train.prefill", "-1")
    with pytest.raises(ValueError, match="--train.pretrain 0: it must be a number of at least 1"):
        config.TrainConfig(pretrain=0)
