"""The command line: every setting a flag with its default in the help, and the nearest match for a typo."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fastdream import cli, config, presets, presets_dreamer_v3, train
from fastdream.agents.dreamer_v3_config import SIZES
from fastdream.config import Config

# Spec of the official presets: preset -> task, steps, environments, ratio, size.
OFFICIAL = {
    "atari": ("atari_pong", 5.1e7, 16, 32, "200m"),
    "atari100k": ("atari100k_pong", 1.1e5, 1, 256, "200m"),
    "crafter": ("crafter_reward", 1.1e6, 1, 512, "200m"),
    "dmc_proprio": ("dmc_walker_walk", 1.1e6, 16, 1024, "1m"),
    "dmc_vision": ("dmc_walker_walk", 1.1e6, 16, 256, "200m"),
    "dmlab": ("some.module:make", 2.6e7, 16, 32, "200m"),
    "procgen": ("some.module:make", 1.1e8, 16, 64, "200m"),
    "minecraft": ("some.module:make", 1e10, 16, 32, "200m"),
    "bsuite": ("some.module:make", 1e10, 1, 1024, "200m"),
    "loconav": ("some.module:make", 1e10, 16, 256, "200m"),
}


def parse(*args: str) -> Config:
    return cli.parse(args).config


def flags(config: Config) -> list[str]:
    names = config_names(config)
    return [name for name in names if name not in ("suite",)]


def config_names(value: Any, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(value):
        nested = getattr(value, field.name)
        name = prefix + field.name
        names += config_names(nested, name + ".") if dataclasses.is_dataclass(nested) else [name]
    return names


def output_of(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, int]:
    with pytest.raises(SystemExit) as exit:
        cli.parse(args)
    captured = capsys.readouterr()
    return captured.out + captured.err, exit.value.code or 0


def test_no_arguments_train_cartpole_on_few_cores():
    config = parse()
    assert config.task == "gym_CartPole-v1" and config.preset == "cartpole" and config.size == "tiny"
    assert (config.train.batch_size, config.train.batch_length) == (16, 32)
    assert config.device == "auto" and config.env.count == 4


def test_help_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]):
    text, code = output_of(capsys, "--help", "--task", "dmc_walker_walk", "--size", "12m")
    assert code == 0
    shown = set(re.findall(r"--([\w.-]+)", text.replace("_", "-")))
    names = {name.replace("_", "-") for name in flags(parse("--task", "dmc_walker_walk", "--size", "12m"))}
    assert names <= shown, names - shown
    assert {"dreamer.dyn.deter", "dreamer.opt.lr", "suite.repeat", "train.ratio", "dry-run"} <= shown
    flat = " ".join(text.replace("│", " ").split())
    assert re.search(r"--dreamer.dyn.deter INT Width of the deterministic state. \(default: 2048\)", flat)
    assert flat.count("(default: ") >= len(names)


@pytest.mark.parametrize("flag", ["--dreamer.lam", "--dreamer.opt.lr", "--dreamer.loss-scales.rew"])
def test_what_is_no_number_is_no_setting(flag: str, capsys: pytest.CaptureFixture[str]):
    """No comparison with a bound finds it. Some releases of tyro leave the error to the command."""
    with pytest.raises(SystemExit) as exit:
        train.main([flag, "nan"])
    assert exit.value.code == 2 and f"{flag} nan: it must be a number" in capsys.readouterr().err


def test_short_help_fits_a_screen(capsys: pytest.CaptureFixture[str]):
    text, code = output_of(capsys, "-h")
    assert code == 0 and len(text.splitlines()) < 50
    for name in (
        "--task",
        "--size",
        "--preset",
        "--steps",
        "--seed",
        "--logdir",
        "--device",
        "--ops",
        "--help",
    ):
        assert name in text
    assert "What to learn" in text and "(default: gym_CartPole-v1)" in " ".join(text.split())


OFFLINE = ["--dataset", "somewhere", "--preset"]
HELP = {  # flags, what they leave out of the short help, and what stays there
    "stages": (
        ["--agent", "world_models"],
        ["--train.", "--replay.", "--holdout ", "every, episodes"],
        ["final_episodes", "--dataset ", "--steps "],
    ),
    "stages_dataset": (
        ["--agent", "world_models", *OFFLINE, "debug"],
        ["--steps ", "--eval.", "--env.count", "start, "],
        ["latents", "--resize "],
    ),
    "dataset": ([*OFFLINE, "offline"], ["--eval.", "prefill", "capacity"], ["batch_size", "--holdout"]),
    "offline": (["--agent", "offline_dv2", *OFFLINE, "debug"], ["explore"], ["imag_length"]),
}


@pytest.mark.parametrize(("args", "hidden", "shown"), HELP.values(), ids=HELP)
def test_short_help_leaves_out_what_nothing_would_read(
    args: list[str], hidden: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]
):
    text, _ = output_of(capsys, "-h", *args)
    listed = text[text.index("--task") :]
    assert [word for word in hidden if word in listed] == []
    assert [word for word in shown if word not in listed] == []


def test_short_help_shows_what_the_given_flags_would_choose(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "70")
    text, _ = output_of(capsys, "-h", "--task", "dmc_walker_walk", "--seed", "3", "--size", "12m")
    assert max(map(len, text.splitlines())) <= 70
    flat = " ".join(text.split())
    assert "(default: dmc_proprio)" in flat and "(default: 12m)" in flat and "(default: 1100000)" in flat
    assert "random. (default: 0)" in flat and "--suite.* " in flat
    # Two columns: every line is a flag or goes on where the text of the flag began.
    rows = text.split("\n\n")[2].splitlines()
    assert {len(re.match(r"  --\S+ +| +", row)[0]) for row in rows} == {len("  --dataset  ")}


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]):
    text, code = output_of(capsys, "--preset", "list")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == list(presets_dreamer_v3.PRESETS)
    assert re.search(r"^atari100k +200m +110,000 steps +1 env +ratio 256", text, re.M)


def test_an_unknown_flag_gives_the_nearest(capsys: pytest.CaptureFixture[str]):
    text, code = output_of(capsys, "--dreamer.dyn.detre", "3")
    assert code == 2 and "--dreamer.dyn.deter" in text


def test_a_wrong_value_names_the_flag(capsys: pytest.CaptureFixture[str]):
    text, code = output_of(capsys, "--train.batch-size", "many")
    assert code == 2 and "train.batch-size" in text
    text, code = output_of(capsys, "--train.batch-size", "0")
    assert code == 2 and "--train.batch-size 0: it must be a number of at least 1" in text
    text, code = output_of(capsys, "--train.ratio", "nan")
    assert code == 2 and "ratio" in text


@pytest.mark.parametrize(
    "text, number",
    [("1e6", 1_000_000), ("1.1e5", 110_000), ("2E+3", 2000), ("1e10", 10**10), ("7", 7), ("1_000", 1000)],
)
def test_whole_numbers_can_be_written_with_an_exponent(text: str, number: int):
    config = parse("--steps", text, "--replay.capacity", text, "--train.ratio", text)
    assert config.steps == config.replay.capacity == config.train.ratio == number
    assert type(config.steps) is int


@pytest.mark.parametrize("text", ["1.5", "1.55e1", "1e", "e6", "1e-2", "1.0", "inf"])
def test_other_numbers_of_steps_are_refused(text: str, capsys: pytest.CaptureFixture[str]):
    output, code = output_of(capsys, "--steps", text)
    assert code == 2 and "--steps" in output and text in output


@pytest.mark.parametrize(
    "args, message",
    [
        (["--task", "dcm_walker_walk"], "unknown task 'dcm_walker_walk'; did you mean 'dmc_walker_walk'"),
        (["--task", "CartPole-v1"], "did you mean 'gym_CartPole-v1'"),
        (["--preset", "atarii"], "unknown preset 'atarii': did you mean 'atari'"),
        (["--preset", "dmlab"], "unknown task 'dmlab_explore_goal_locations_small'"),
        (["--size", "13m"], "unknown size '13m': did you mean '1"),
        (["--size", "giant"], "there are debug, tiny, 1m, 12m"),
        (["--variant", "nature"], "unknown variant 'nature': did you mean 'nature2024'"),
    ],
)
def test_unknown_names_give_the_nearest(args: list[str], message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse(*args)


def test_flags_override_the_preset_and_nested_ones_the_size():
    config = parse(
        "--task=crafter_reward",
        "--size=12m",
        "--dreamer.dyn.deter",
        "64",
        "--train.ratio",
        "8",
        "--suite.size=96",
    )
    assert config.preset == "crafter" and config.train.ratio == 8 and config.suite.size == 96
    assert config.dreamer.dyn.deter == 64 and config.dreamer.dyn.classes == 16
    assert config == dataclasses.replace(
        presets.resolve("crafter_reward", size="12m"),
        train=config.train,
        suite=config.suite,
        dreamer=config.dreamer,
    )


@pytest.mark.parametrize("preset", OFFICIAL)
def test_official_presets(preset: str):
    task, steps, envs, ratio, size = OFFICIAL[preset]
    config = presets.resolve(task, preset)
    assert (config.steps, config.env.count, config.train.ratio, config.size) == (steps, envs, ratio, size)
    assert (config.train.batch_size, config.train.batch_length) == (16, 64)
    assert config.replay.capacity == min(5e6, steps) and config.variant == "current"
    assert (config.dreamer.dyn.deter, config.dreamer.imag_length, config.dreamer.opt.lr) == (
        SIZES[size][0],
        15,
        4e-5,
    )
    assert preset not in presets_dreamer_v3.SUITES.values() or presets.preset_of(task).startswith(preset[:3])


def test_suite_options_of_the_presets():
    def options(preset: str, kind: str = "current") -> Any:
        return presets.resolve(OFFICIAL[preset][0], preset, variant=kind).suite

    assert (options("dmc_proprio").obs, options("dmc_vision").obs) == ("proprio", "vision")
    atari, hundred = options("atari"), options("atari100k")
    assert (atari.size, atari.gray, atari.sticky, atari.actions, atari.noops) == (96, True, 0.25, "all", 30)
    assert (hundred.size, hundred.gray, hundred.sticky, hundred.actions) == (64, False, 0.0, "needed")


def test_the_published_settings_differ_where_the_paper_did():
    def published(preset: str) -> Config:
        return presets.resolve(OFFICIAL[preset][0], preset, variant="nature2024")

    hundred = published("atari100k")
    assert (hundred.train.ratio, hundred.suite.actions, hundred.suite.noops, hundred.size) == (
        128,
        "all",
        0,
        "200m",
    )
    grey = published("atari")
    assert (grey.suite.noops, grey.suite.size, grey.suite.actions, grey.suite.sticky) == (0, 96, "all", 0.25)
    for preset, steps in (("dmc_proprio", 3e5), ("dmc_vision", 6e5)):
        config = published(preset)
        assert (config.train.ratio, config.suite.repeat, config.size) == (512, 2, "12m")
        assert config.steps == config.replay.capacity == steps
    assert published("minecraft").env.count == 64
    assert published("crafter").dreamer.enc.strided and published("crafter").dreamer.policy.unimix == 0.01


@pytest.mark.parametrize("size", SIZES)
def test_sizes_set_the_widths(size: str):
    config = presets.resolve("crafter_reward", size=size)
    deter, hidden, classes, depth, units = SIZES[size]
    dreamer = config.dreamer
    assert (dreamer.dyn.deter, dreamer.dyn.hidden, dreamer.dyn.classes) == (deter, hidden, classes)
    assert (dreamer.enc.depth, dreamer.dec.depth) == (depth, depth)
    assert {dreamer.enc.units, dreamer.rewhead.units, dreamer.policy.units, dreamer.value.units} == {units}
    assert size in ("debug", "tiny") or (hidden, classes, depth, units) == (
        deter // 8,
        deter // 128,
        deter // 128,
        deter // 8,
    )


@pytest.mark.parametrize(
    "args", [[], ["--task", "dmc_walker_walk", "--variant", "nature2024"], ["--task", "dummy_image"]]
)
def test_settings_survive_json(tmp_path: Path, args: list[str]):
    asked = parse(*args)
    config.save(asked, tmp_path, command="something")
    assert config.load(tmp_path) == asked
    assert json.loads((tmp_path / "config.json").read_text())["command"] == "something"


def test_unreadable_settings_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no run"):
        config.load(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"task": "gym_CartPole-v1", "sped": 3}}')
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json .*: unknown settings in Config: sped"):
        config.load(tmp_path)
    for content in (b'{"conf', b"\xff\xfe", b"[]", b'{"config": []}'):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=f"{tmp_path}/config.json cannot be read"):
            config.load(tmp_path)
