"""Settings that nothing would read are refused before any work, and what a run was begun with stays as it was."""

import re
from pathlib import Path

import pytest

from fastdream import cli, config, presets, train
from fastdream import eval as evaluation
from fastdream.build import make_agent
from fastdream.restore import suited
from fastdream.spaces import Space
from fastdream.unread import OFF, Off, unread

from .dataset_tools import episode, save_npz
from .run_tools import CPU, tiny
from .test_badinput import refused

EVOLVED = ["--agent", "world_models", "--task", "dummy_image", "--env.parallel", "no"]
OFFLINE = ["--agent", "offline_dv2", "--dataset", "somewhere", "--preset", "debug"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--env.count", "3"),
        ("--train.ratio", "5"),
        ("--train.prefill", "10"),
        ("--train.pretrain", "2"),
        ("--replay.capacity", "500"),
        ("--replay.online", None),
    ],
)
@pytest.mark.parametrize("agent", ["dreamer_v3", "offline_dv2"])
def test_how_to_collect_means_nothing_with_a_dataset(agent: str, flag: str, value: str | None):
    args = ["--agent", agent, "--dataset", "somewhere", "--task", "dummy_vector", "--preset", "offline"]
    message = (
        f"nothing would read this:\n  {flag}: nothing is collected where a dataset is learned from\nLeave"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        cli.parse([*args, flag, *([] if value is None else [value])])


def test_without_a_task_nothing_is_evaluated():
    args = ["--dataset", "somewhere", "--preset", "offline"]
    with pytest.raises(ValueError) as error:
        cli.parse([*args, "--eval.every", "7", "--eval.mode", "mode", "--env.parallel", "yes"])
    for flag in ("--eval.every", "--eval.mode", "--env.parallel"):
        assert f"{flag}: there is nothing to evaluate in without --task" in str(error.value)
    asked = cli.parse([*args, "--task", "dummy_vector", "--eval.every", "7", "--eval.mode", "mode"]).config
    assert (asked.eval.every, asked.eval.mode) == (7, "mode")


@pytest.mark.parametrize(
    "flag", ["--train.batch-size", "--eval.every", "--eval.episodes", "--log.report-every"]
)
def test_stages_have_settings_of_their_own(flag: str):
    with pytest.raises(ValueError, match=f"{flag}: world_models learns in stages"):
        cli.parse([*EVOLVED, flag, "3"])


def test_episodes_of_evaluations_that_are_not_made():
    """What the last one has is another flag, which whoever asked for them may have meant."""
    args = ["--task", "dummy_vector", "--preset", "gym", "--eval.episodes", "100"]
    with pytest.raises(ValueError, match="--eval.episodes: --eval.every is 0.*--eval.final-episodes"):
        cli.parse([*args, "--eval.every", "0"])
    assert cli.parse([*args, "--eval.every", "500"]).config.eval.episodes == 100


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*OFFLINE, "--dreamer.explore.models", "3"], "--dreamer.explore.models: nothing is explored"),
        (["--log.wandb-project", "mine"], "--log.wandb-project: --log.outputs has no wandb"),
        (
            [*EVOLVED[:2], "--dataset", "somewhere", "--env.count", "3"],
            "--env.count: nothing is collected where",
        ),
    ],
)
def test_what_another_setting_rules_out(args: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        cli.parse(args)


# A value of each of the settings that turns nothing off.
OTHERS = {
    "retnorm.impl": "perc",
    "valnorm.impl": "perc",
    "advnorm.impl": "perc",
    "opt.schedule": "linear",
    "opt.momentum": True,
    "loss_scales.repval": 0.3,
    "dyn.classes": 0,
    "kl.free": 1.0,
    "pcont": True,
    "pred_discount": True,
    "actor_grad": "both",
    "explore.behavior": "plan2explore",
    "offline.penalty": "mixture",
    "offline.tune": 0.5,
    "memory.ends": True,
    "collect.actions": "held",
}


def test_all_settings_that_turn_others_off_are_known():
    assert {off.setting for off in OFF} == OTHERS.keys()


@pytest.mark.parametrize("off", OFF, ids=lambda off: off.setting)
def test_what_is_off_is_not_asked_for(off: Off):
    for agent in off.agents:
        task = "car_racing" if agent == "world_models" else "gym_CartPole-v1"
        dataset, preset = ("somewhere", "debug") if agent == "offline_dv2" else ("", "")
        tree = config.to_dict(presets.resolve(task, preset, agent=agent, dataset=dataset))
        known = config.flatten(tree)
        for name in (off.setting, *off.unread):
            assert any(f"{key}.".startswith(f"dreamer.{name}.") for key in known), name
        *groups, last = off.setting.split(".")
        place = tree["dreamer"]
        for group in groups:
            place = place[group]
        for value in (*off.values, OTHERS[off.setting]):
            place[last] = value
            found = unread(config.from_dict(config.Config, tree))
            wanted = {f"dreamer.{name}" for name in off.unread} if value in off.values else set()
            assert wanted == {f"dreamer.{name}" for name in off.unread} & found.keys(), (agent, value)


def test_a_setting_that_is_off_is_named_with_what_turned_it_off():
    message = "--dreamer.actor-mix: --dreamer.actor-grad is auto"
    with pytest.raises(ValueError, match=message):
        cli.parse(["--agent", "dreamer_v2", "--dreamer.actor-mix", "0.3"])
    args = ["--agent", "dreamer_v2", "--dreamer.actor-mix", "0.3", "--dreamer.actor-grad", "both"]
    assert cli.parse(args).config.dreamer.actor_mix == "0.3"
    with pytest.raises(ValueError, match="--dreamer.offline.lam: the weight adapts, from 1 on"):
        cli.parse([*OFFLINE, "--dreamer.offline.lam", "3", "--dreamer.offline.tune", "1.5"])


def test_what_holds_without_being_asked_for_is_no_mistake():
    for args in (OFFLINE, EVOLVED, ["--dataset", "somewhere", "--preset", "dmc_proprio"]):
        assert cli.parse(args).config
    same = cli.parse([*OFFLINE, "--replay.no-online", "--train.batch-size", "3", "--env.count", "4"]).config
    assert same.train.batch_size == 3


def test_a_run_that_learned_from_a_dataset_is_resumed_with_what_it_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = save_npz(tmp_path / "set", *(episode(20, seed, width=4) for seed in range(3)))
    train.main([*OFFLINE, "--dataset", str(data), "--logdir", str(tmp_path / "run"), "--steps", "10"])
    error = refused(capsys, "--logdir", str(tmp_path / "run"), "--train.ratio", "5")
    assert "--train.ratio: nothing is collected" in error
    train.main(["--logdir", str(tmp_path / "run"), "--steps", "20"])
    assert "resumed at step 10" in capsys.readouterr().out
    for flag in ("--replay.online", "--steps"):
        with pytest.raises(SystemExit) as exit:
            evaluation.main(["--logdir", str(tmp_path / "run"), "--task", "dummy_continuous", flag, "3"])
        assert exit.value.code == 2 and flag in capsys.readouterr().err


def test_what_an_evolution_depends_on_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("cma", reason="what the last stage is done by")
    monkeypatch.setenv("HOME", str(tmp_path))
    logdir = tmp_path / "run"
    train.main([*EVOLVED, "--logdir", str(logdir), "--log.outputs", "console"])
    before = (logdir / "config.json").read_bytes()
    capsys.readouterr()
    for where in (str(logdir), "~/run"):
        for name, old, new in (("population", 4, 6), ("rollouts", 2, 3), ("sigma", 0.1, 0.2)):
            with pytest.raises(SystemExit) as exit:
                train.main(["--logdir", where, f"--dreamer.control.{name}", str(new)])
            error = capsys.readouterr().err
            assert exit.value.code == 2 and error.count("error: ") == 1, error
            assert f"dreamer.control.{name}: {old} -> {new}" in error and "choose another --logdir" in error
    # Nor by another way than the command line.
    asked = config.load(logdir)
    changed = config.from_dict(config.Config, config.to_dict(asked) | {"seed": 3})
    stages = pytest.importorskip("fastdream.stages.command", reason="nothing else")
    with pytest.raises(ValueError, match="seed: 0 -> 3"):
        stages.train(changed)
    with pytest.raises(SystemExit):
        train.main(["--logdir", str(logdir), "--steps", "200"])
    error = " ".join(capsys.readouterr().err.split())
    assert f"--steps: 100 -> 200: {logdir} has recorded its steps" in error and "--dreamer.start" in error
    assert (logdir / "config.json").read_bytes() == before


def test_triton_can_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(SystemExit):
        cli.parse(["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--ops {auto,reference,native,triton}" in text
    error = refused(
        capsys, "--task", "dummy_vector", "--ops", "triton", "--device", "cpu", "--logdir", str(tmp_path)
    )
    assert "triton cannot serve tensors on cpu" in error and "CUDA" in error
    assert list(tmp_path.iterdir()) == []


def test_what_was_trained_on_a_gpu_acts_on_a_cpu():
    asked = tiny(ops="triton", train=dict(graph="on"))
    spaces = {"vector": Space("vector", (3,))}, {"action": Space("discrete", (), 2)}
    with pytest.raises(ValueError, match="--train.graph on needs a CUDA device"):
        make_agent(asked, *spaces, CPU)
    assert make_agent(suited(asked, CPU), *spaces, CPU).param_count
    kept = tiny(ops="reference", train=dict(graph="off"))
    assert suited(kept, CPU) == kept
