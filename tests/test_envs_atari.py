"""Atari's games: the official settings, whole episodes, and the same states again."""

import numpy as np
import pytest

from fastdream.envs import make
from fastdream.envs.base import EnvError
from fastdream.envs.images import resize

from .test_envs_suites import alike, comes_back, roll


class Spy:
    """The emulator, with what it was told, and other answers where some are given."""

    def __init__(self, ale, **answers):
        self.ale, self.told, self.answers = ale, [], answers

    def __getattr__(self, name):
        def call(*args):
            self.told.append((name, *args))
            given = getattr(self.ale, name)(*args)
            return self.answers[name]() if name in self.answers else given

        return call

    def count(self, name):
        return sum(call[0] == name for call in self.told)


def spied(task, answers=None, **options):
    """An environment and its emulator, which answers as asked."""
    env = make(task, **options)
    env.env._ale = spy = Spy(env.env._ale, **answers or {})
    return env, spy


class TestAtari:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("ale_py", reason="the suite's package")

    def test_settings_are_the_official_ones(self):
        full, small = make("atari_pong"), make("atari100k_pong")
        assert full.obs_space["image"].shape == (96, 96, 1) and full.act_space["action"].classes == 18
        assert small.obs_space["image"].shape == (64, 64, 3) and small.act_space["action"].classes == 6
        options = full.env._options, small.env._options
        assert [o.sticky for o in options] == [0.25, 0.0]
        assert {(o.noops, o.repeat, o.pooling, o.length, o.clip_reward) for o in options} == {
            (30, 4, 2, 108_000, False)
        }

    def test_every_episode_has_all_of_its_frames(self):
        env = make("atari100k_pong", length=10, noops=0)
        for seed in range(2):
            env.reset(seed=seed)
            assert [bool(env.step({"action": 0})["is_last"]) for _ in range(3)] == [False, False, True]

    def test_comes_back_to_the_same_states_with_sticky_actions(self):
        assert comes_back("atari_breakout", steps=40)
        assert not alike(roll(make("atari_breakout"), 40, seed=3), roll(make("atari_breakout"), 40, seed=4))

    @pytest.mark.parametrize(("game", "most"), [("beam_rider", 150), ("yars_revenge", 150), ("qbert", 900)])
    def test_comes_back_to_the_same_states_where_the_emulator_alone_does_not(self, game, most):
        env = make(f"atari100k_{game}", noops=0)
        first = roll(env, 60)
        assert roll(env, most, seed=8)[-1]["is_last"] == (game == "qbert") and alike(first, roll(env, 60))

    def test_grey_keeps_every_shade_and_weighs_colours(self):
        from fastdream.envs.atari import grey

        shades = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
        assert np.array_equal(grey(np.repeat(shades, 3, -1)), shades)
        colours = np.eye(3, dtype=np.uint8)[None] * 100
        assert grey(colours).ravel().tolist() == [29, 58, 11]

    def test_a_time_limit_is_last_but_not_terminal(self):
        *before, last = roll(make("atari100k_pong", length=10), 9)
        assert [bool(o["is_last"]) for o in before] == [False] * 3
        assert last["is_last"] and not last["is_terminal"]

    def test_no_first_picture_is_black_and_the_second_episode_begins_without_the_first_ones_frames(self):
        env = make("atari100k_pong", noops=0)
        first = roll(env, 20)
        assert first[0]["image"].max() > 0 and first[0]["is_first"]
        assert np.array_equal(env.reset(seed=3)["image"], first[0]["image"])

    def test_a_picture_is_the_brightest_of_the_last_two_frames(self):
        env = make("atari_pong", repeat=4, pooling=2, noops=0).env
        env.reset(seed=0)
        ale, brightness = env._ale, iter([200, 150, 100, 50])

        class Fading:
            """Each frame darker than the one before."""

            def __getattr__(self, name):
                return getattr(ale, name)

            def act(self, action):
                self.shown = next(brightness)
                return ale.act(action)

            def getScreenRGB(self, into):
                into[:] = self.shown

        env._ale, env._frames[:] = Fading(), 0
        picture = env.step({"action": np.int64(0)})["image"]
        assert picture.min() == picture.max() == 100

    def test_lives_end_nothing_a_state_or_the_episode(self):
        def flags(lives):
            env = make("atari100k_breakout", lives=lives, noops=0)
            obs = [env.reset(seed=0)]
            for _ in range(150):
                obs.append(env.step({"action": np.int32(1)}))
                if obs[-1]["is_last"]:
                    break
            return [(bool(o["is_terminal"]), bool(o["is_last"])) for o in obs]

        unused, discount, reset = flags("unused"), flags("discount"), flags("reset")
        lost = [t for t, (terminal, last) in enumerate(discount) if terminal and not last]
        assert lost and not unused[lost[0]][0]
        assert reset[-1] == (True, True) and len(reset) == lost[0] + 1

    def test_actions_stick_with_the_probability_that_was_asked(self):
        env, spy = spied("atari_pong", sticky=0.5, noops=0)
        env.reset(seed=0)
        for i in range(200):
            env.step({"action": np.int32(2 + i % 2)})
        held = np.array([call[1].value for call in spy.told if call[0] == "act"]).reshape(200, 4)
        changes = [np.mean(held[1:, 0] != held[:-1, 3])] + [
            np.mean(held[:, i] != held[:, i - 1]) for i in (1, 2, 3)
        ]
        # A frame changes what is held where those before it stuck: half as often as the frame before.
        assert changes == pytest.approx([1 / 2, 1 / 4, 1 / 8, 1 / 16], abs=0.11)

    def test_unknown_games_and_settings_are_refused(self):
        assert make("atari_james_bond").act_space["action"].classes > 1
        with pytest.raises(EnvError, match="unknown task 'atari100k_pogn'; did you mean 'atari100k_pong'"):
            make("atari100k_pogn")
        with pytest.raises(EnvError, match="did you mean 'atari_ms_pacman'"):
            make("atari_mspacman")
        with pytest.raises(EnvError, match="unknown task 'atari_combat'"):  # for two players
            make("atari_combat")
        with pytest.raises(EnvError, match="unknown task 'atari_zzz'; there are atari_adventure, .*zaxxon"):
            make("atari_zzz")
        with pytest.raises(EnvError, match="pooling"):
            make("atari_pong", pooling=9)
        for options in ({"sticky": 1.0}, {"sticky": -0.1}, {"noops": -1}, {"length": 0}, {"pooling": 0}):
            ((key, value),) = options.items()
            with pytest.raises(EnvError, match=f"got .*{key}={value}"):
                make("atari_pong", **options)

    def test_an_episode_begins_with_up_to_as_many_noops_as_asked(self):
        counts = []
        for seed in range(20):
            env, spy = spied("atari100k_pong", noops=2)
            env.reset(seed=seed)
            counts.append(spy.count("act"))
        assert {*counts} == {0, 1, 2}
        env, spy = spied("atari100k_pong", {"game_over": lambda: True}, noops=9)
        env.reset(seed=0)
        assert spy.count("act") > 1 and spy.count("restoreSystemState") == spy.count("act") + 1

    def test_the_first_picture_is_the_screen_after_the_noops_alone(self):
        env = make("atari100k_breakout")
        for seed in range(5):
            assert np.array_equal(env.reset(seed=seed)["image"], resize(env.render(), 64))
            for _ in range(10):
                env.step({"action": 1})

    def test_what_is_rendered_is_the_newest_frame_and_stays_as_it_is(self):
        env = make("atari100k_pong")
        env.reset(seed=0)
        shown = []
        for _ in range(3):
            shown.append((env.render(), env.env._ale.getScreenRGB()))
            env.step({"action": 2})
        assert all(np.array_equal(ours, screen) for ours, screen in shown)
        assert not np.array_equal(shown[1][0], shown[2][0])

    def test_rewards_are_those_of_all_frames_or_their_sign(self):
        for clip, sums in ((False, [12, -6, 0]), (True, [1, -1, 0])):
            rewards = iter([3] * 4 + [-3, -3, 3, -3] + [1, 0, 0, -1])
            env, _ = spied(
                "atari100k_pong", {"act": lambda rewards=rewards: next(rewards)}, clip_reward=clip, noops=0
            )
            env.reset(seed=0)
            assert [env.step({"action": 0})["reward"] for _ in sums] == sums

    def test_what_ends_within_a_step_ends_it(self):
        over = iter([False, True])
        env, spy = spied("atari100k_pong", {"game_over": lambda: next(over)}, noops=0)
        env.reset(seed=0)
        obs = env.step({"action": 0})
        assert obs["is_last"] and obs["is_terminal"] and spy.count("act") == 2

    def test_a_life_is_lost_where_another_is_left_and_none_by_a_new_game(self):
        lives = iter([5, 5, 4, 4, 5, 4, 0, 0])
        env, spy = spied(
            "atari100k_pong", {"lives": lambda: next(lives)}, lives="discount", noops=0, repeat=1, pooling=1
        )
        env.reset(seed=0)
        ends = [bool(env.step({"action": 0})["is_terminal"]) for _ in range(7)]
        assert ends == [False, True, False, False, True, False, False]
        spy.answers["lives"] = lambda: 3
        env.env._lives = 9  # as of a game that gave lives away
        env.reset(seed=0)
        assert not env.step({"action": 0})["is_terminal"]

    def test_the_screen_of_the_last_game_is_gone(self):
        env = make("atari100k_pong", noops=0)
        fresh = env.reset(seed=0)["image"]
        env.env._frames[:] = 255
        assert np.array_equal(env.reset(seed=0)["image"], fresh)
