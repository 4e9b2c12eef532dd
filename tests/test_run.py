"""The training loop, with an agent that only counts: how many updates, in which order, and on what."""

import os
import signal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastdream.envs.base import Wrapper
from fastdream.eval import Command
from fastdream.learner import NonFinite
from fastdream.run import Training
from fastdream.schedule import EverySteps, Ratio, Stop
from fastdream.scores import evaluate

from .run_tools import CountingAgent, parts_of, tiny, train


@given(
    rate=st.fractions(0, 3, max_denominator=2000),
    jumps=st.lists(st.integers(1, 17), min_size=1, max_size=60),
    first=st.integers(0, 1000),
    split=st.integers(0, 60),
)
def test_ratio_never_drifts_and_survives_a_restart(rate: Fraction, jumps: list[int], first: int, split: int):
    ratio, step, made = Ratio(rate), first, 0
    for i, jump in enumerate([0, *jumps]):
        if i == split:
            state, ratio = ratio.state_dict(), Ratio(rate)
            ratio.load_state_dict(state)
        step += jump
        due = ratio.due(step)
        assert due >= 0
        made += due
        assert made == (1 + int((step - first) * rate) if rate else 0)


def test_ratio_as_a_float_is_the_nearest_simple_fraction():
    ratio = Ratio(0.1)
    assert sum(ratio.due(step) for step in range(100_001)) == 1 + 10_000


def test_a_second_signal_ends_the_process_and_the_former_handlers_come_back():
    before = [signal.getsignal(number) for number in Stop.signals]
    with Stop() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop and stop.reason == "SIGTERM"
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [signal.getsignal(number) for number in Stop.signals] == before


def test_a_terminal_that_is_closed_asks_to_stop_and_never_aborts():
    inherited = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which is not so if the tests run under nohup
    try:
        with Stop() as stop:
            for _ in range(2):  # from the system, and from the shell
                os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason == "SIGHUP"
        assert signal.signal(signal.SIGHUP, signal.SIG_IGN) is signal.SIG_DFL
        with Stop() as stop:  # as under nohup
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, inherited)


def test_a_cadence_in_steps_ignores_how_often_it_is_asked():
    asked_often, asked_seldom = EverySteps(10), EverySteps(10)
    often = [step for step in range(1, 60) if asked_often(step)]
    seldom = [step for step in range(7, 60, 7) if asked_seldom(step)]
    assert often == [10, 20, 30, 40, 50]
    assert seldom == [14, 21, 35, 42, 56]
    assert not EverySteps(0)(1000)


def test_updates_follow_the_ratio_once_replay_holds_a_batch(tmp_path: Path):
    training = train(tiny(steps=200, train=dict(ratio=2.0)), tmp_path)
    agent = training.loop.agent
    assert training.loop.step == 200 and agent.policies == 100
    # 8 windows of 5 steps from two environments need 8 steps of each, so learning starts with the 18th step; an
    # update of 8 steps is due every 4 steps.
    assert agent.events.index("update") == 9
    assert agent.updates == 1 + (200 - 18) * 2 // 8 == training.loop.learner.updates


def test_several_updates_a_step(tmp_path: Path):
    agent = train(tiny(steps=40, train=dict(ratio=16.0)), tmp_path).loop.agent
    after_start = agent.events[agent.events.index("update") + 1 :]
    assert after_start[:10] == ["policy", *["update"] * 4] * 2
    assert agent.updates == 1 + (40 - 18) * 16 // 8


@pytest.mark.parametrize("pretrain", [1, 9])
def test_updates_wait_while_there_is_no_whole_episode(tmp_path: Path, pretrain: int):
    """Episodes of 21 steps, of which replay holds one and a part of the next: at times none is whole."""
    replay, learning = dict(capacity=30, online=False, windows="episode"), dict(ratio=32.0, pretrain=pretrain)
    agent = train(tiny(steps=90, train=learning, replay=replay, env=dict(count=1)), tmp_path).loop.agent
    updates = [0]  # before each step
    for event in agent.events:
        if event == "policy":
            updates.append(updates[-1])
        else:
            updates[-1] += 1
    assert updates[21:24] == [0, pretrain, pretrain + 4]
    # The tenth step after an episode takes its start; what was due until the next is whole is made then.
    assert updates[31] == updates[32] == updates[42] == pretrain + 4 * 8 + 1
    assert updates[43] == pretrain + 4 * 21 and updates[90] == pretrain + 4 * 68


def test_batches_keep_the_time_convention(tmp_path: Path):
    """The action stored with a step is the one that led to it, and none led to an episode's first."""
    agent = train(tiny(steps=300), tmp_path).loop.agent
    checked = 0
    for batch in agent.batches:
        cue, action = batch["vector"].argmax(-1).numpy(), batch["action/action"].numpy()
        first, reward = batch["is_first"].numpy(), batch["reward"].numpy()
        firsts = first[:, 1:]
        assert (action[:, 1:][firsts] == -1).all() and (reward[:, 1:][firsts] == 0).all()
        # dummy_vector rewards an action that equals the cue shown before it.
        right = action[:, 1:] == cue[:, :-1]
        assert (reward[:, 1:] == right)[~firsts].all()
        checked += (~firsts).sum()
    assert checked > 300


def test_latents_come_back_to_the_steps_that_were_trained(tmp_path: Path):
    training = train(tiny(steps=60, train=dict(ratio=1.0), replay=dict(capacity=200)), tmp_path)
    agent, replay = training.loop.agent, training.loop.replay
    training.loop.learner.write_back.flush()
    sample = replay.sample(200)
    deter = sample.data["deter"]
    updated = deter[..., 0] > 1000
    assert updated.any() and not updated.all()
    # Where no update has written, the policy's latents stand: its call number, the environment's number.
    calls, env = deter[~updated][:, 0], deter[~updated][:, 1]
    worker = sample.ids[~updated] % 2
    assert (env == worker).all() and (calls == sample.ids[~updated] // 2 + 1).all()
    # Where one has, it was the last that saw this step, and the row of its batch.
    last: dict[int, tuple[int, int]] = {}
    for number, ids in enumerate(agent.ids, start=1):
        for row in range(len(ids)):
            last |= {int(i): (1000 + number, row) for i in ids[row, 1:]}
    got = {int(i): tuple(map(int, d)) for i, d in zip(sample.ids[updated], deter[updated], strict=True)}
    assert got == {i: last[i] for i in got} and set(got) <= set(last)


def test_a_loss_that_is_not_finite_stops_at_once_and_is_never_saved(tmp_path: Path):
    config = tiny(steps=200, log=dict(save_every=1e-9))
    driver = parts_of(config, tmp_path).driver
    agent = CountingAgent(driver.obs_space, driver.act_space, bad_update=7)
    with pytest.raises(NonFinite, match="loss/rew became NaN or infinite in update 7") as caught:
        train(config, tmp_path, agent)
    assert caught.value.update == 7 and agent.updates == 7
    loaded = parts_of(config, tmp_path).checkpoint.load()
    assert loaded is not None and int(loaded.tree["learner"]["updates"]) == 5  # two a step


def test_metrics_are_means_between_two_looks(tmp_path: Path):
    training = train(tiny(steps=100), tmp_path)
    step, values = training.log.values[-1]
    updates = training.loop.learner.updates
    mean = np.mean([1 / n for n in range(1, updates + 1)])
    assert step == 100 and values["train/loss/rew"] == pytest.approx(mean, rel=1e-4)
    assert values["train/opt/loss"] == pytest.approx(2 * mean, rel=1e-4)
    assert len(training.log.scores) == 2 * (50 // 21)


@pytest.mark.parametrize("episodes, count", [(5, 2), (3, 8), (1, 1)])
def test_evaluation_plays_exactly_the_episodes_asked_for(tmp_path: Path, episodes: int, count: int):
    parts = parts_of(tiny(), tmp_path)
    state = parts.agent.generators["policy"].get_state()
    result = evaluate(parts.agent, parts.make_env, episodes, count=count, seed=3)
    assert len(result.scores) == episodes and result.lengths == [20] * episodes
    assert (parts.agent.generators["policy"].get_state() == state).all()
    assert result.frames is None


def test_a_run_is_evaluated_in_the_episodes_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    training, told = train(tiny(steps=20, eval={"mode": "mode"}), tmp_path), []
    monkeypatch.setattr("fastdream.scores.evaluate", lambda *_, seed, mode, **__: told.append((seed, mode)))
    training.evaluate(1)
    assert told == [(Command().seed, "mode")] and Command().seed != training.config.seed


def test_episodes_whose_environment_died_are_played_again(tmp_path: Path):
    parts, dies, restarts = parts_of(tiny(), tmp_path), [True], []

    class Mortal(Wrapper):
        def step(self, action: Any) -> Any:
            if dies:
                dies.clear()
                raise ConnectionError("gone")
            return super().step(action)

    def mortal(seed: int) -> Any:
        return Mortal(parts.make_env(seed))

    result = evaluate(parts.agent, mortal, 2, count=1, on_restart=restarts.append)
    assert result.lengths == [20, 20] and len(restarts) == 1


def test_an_episode_whose_environment_died_has_no_score(tmp_path: Path, recwarn: pytest.WarningsRecorder):
    """Each environment plays 20 steps, dies in the 5th of its next episode, and plays 20 more."""
    lengths: list[int] = []
    config = tiny("dummy_raise", steps=100, suite=dict(at=25))
    parts = parts_of(config, tmp_path)
    parts.logger.episode = lambda step, score, length, extras: lengths.append(length)  # type: ignore[method-assign]
    training = Training(config, parts)
    training.run(Stop())
    training.close()
    assert lengths == [20] * 4 and sum("was restarted" in str(w.message) for w in recwarn) == 2


def test_evaluation_draws_the_same_whatever_was_drawn_before(tmp_path: Path):
    parts, drawn, seen = parts_of(tiny(), tmp_path), [], []
    generator, policy = parts.agent.generators["policy"], parts.agent.policy

    def noting(carry: Any, obs: Any, mode: str) -> Any:
        assert mode == "mode"
        drawn[-1].append(torch.rand((), generator=generator).item())
        seen[-1].append(obs["vector"].tolist())
        return policy(carry, obs, mode)

    parts.agent.policy = noting
    for seed in (3, 3, 4):
        drawn.append([])
        seen.append([])
        evaluate(parts.agent, parts.make_env, 4, seed=seed, mode="mode")
        torch.rand((), generator=generator)
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2]
    assert seen[0][0] == seen[1][0] != seen[2][0]  # what the episodes begin with


@pytest.mark.parametrize(("patience", "told"), [(15, True), (25, False)])
def test_evaluation_tells_of_episodes_that_do_not_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    patience: int,
    told: bool,
):
    monkeypatch.setattr("fastdream.scores.PATIENCE", patience)
    parts = parts_of(tiny(), tmp_path)
    evaluate(parts.agent, parts.make_env, 2, count=1, task="dummy_vector")
    words = [str(w.message) for w in recwarn if "without an episode's end" in str(w.message)]
    assert bool(words) == told and all("dummy_vector has played 15 steps" in line for line in words)


def test_evaluation_takes_pictures_of_the_first_environment(tmp_path: Path):
    parts = parts_of(tiny(), tmp_path)
    frames = evaluate(parts.agent, parts.make_env, 2, count=2, video=True).frames
    assert frames is not None and frames.shape == (21, 64, 64, 3)


def test_many_updates_at_once_are_announced_the_first_time(tmp_path: Path):
    config = tiny(steps=60, train={"pretrain": 5, "prefill": 16})
    assert train(config, tmp_path).log.lines == ["learning begins, with 5 updates at once"]  # type: ignore[attr-defined]
    again = train(tiny(steps=80, train={"pretrain": 5, "prefill": 16}), tmp_path)
    assert again.log.lines == []  # type: ignore[attr-defined]
    assert train(tiny(steps=60), tmp_path / "other").log.lines == []  # type: ignore[attr-defined]
