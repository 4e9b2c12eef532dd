"""The two worlds of World Models: they step, keep to what the paper sees, and come back to the same states."""

import numpy as np
import pytest

from fastdream import train
from fastdream.agents import load
from fastdream.envs import make
from fastdream.envs.base import EnvError
from fastdream.envs.images import resize

from .test_envs_suites import alike, comes_back, roll


class TestTakeCover:
    @pytest.fixture(autouse=True)
    def _package(self, tmp_path, monkeypatch):
        pytest.importorskip("vizdoom", reason="the suite's package")
        pytest.importorskip("PIL", reason="what resizes")
        monkeypatch.chdir(tmp_path)  # the game makes a folder where it runs

    def test_comes_back_to_the_same_states(self):
        assert comes_back("vizdoom_take_cover", steps=40, repeat=2)
        assert not alike(
            roll(make("vizdoom_take_cover"), 40, seed=3), roll(make("vizdoom_take_cover"), 40, seed=4)
        )

    def test_the_view_is_whole_and_the_bar_below_it_is_cut_off(self):
        env = make("vizdoom_take_cover", size=100)
        picture = env.reset(seed=0)["image"].astype(int)
        # The far wall is in the middle, and there is no light figure of the bar.
        brown = (picture[:, 0, 0] - picture[:, 0, 2] > 10).nonzero()[0]
        assert abs(brown.mean() - 50) < 5 and picture[80:].max() < 120 < env.render()[100:].max()

    def test_episodes_begin_at_the_14th_tic(self):
        env = make("vizdoom_take_cover")
        env.reset(seed=0)
        assert env.env._game.get_episode_time() == 14

    def test_every_tic_survived_is_worth_one(self):
        obs = roll(make("vizdoom_take_cover", repeat=4), 600)
        assert obs[0]["image"].shape == (64, 64, 3) and obs[0]["image"].max() > 50
        assert {o["reward"] for o in obs[1:-1]} == {4.0} and obs[-1]["reward"] <= 4
        assert obs[-1]["is_terminal"] and obs[-1]["is_last"]

    def test_a_time_limit_is_last_but_not_terminal(self):
        *before, last = roll(make("vizdoom_take_cover", length=12, repeat=4), 9)
        assert len(before) == 3 and sum(o["reward"] for o in [*before, last]) == 12
        assert last["is_last"] and not last["is_terminal"]

    def test_every_episode_has_all_of_its_tics(self):
        env = make("vizdoom_take_cover", length=5, repeat=2)
        for _ in range(2):
            obs = roll(env, 9)
            assert [o["reward"] for o in obs] == [0, 2, 2, 1] and [bool(o["is_last"]) for o in obs][2:] == [
                False,
                True,
            ]

    def test_the_first_episode_is_that_of_the_environments_seed(self):
        def stand(seed):
            env = make("vizdoom_take_cover", seed=seed)
            return [env.reset(), *(env.step({"action": 1}) for _ in range(60))]

        assert alike(stand(1), stand(1)) and not alike(stand(1), stand(2))
        assert make("vizdoom_take_cover").deterministic

    @pytest.mark.parametrize("option", ["size", "repeat", "length"])
    def test_numbers_that_are_too_small_are_named(self, option):
        for task in ("vizdoom_take_cover", "car_racing"):
            with pytest.raises(EnvError, match=f"need size, repeat and length >= 1, got .*{option}=0"):
                make(task, **{option: 0})

    def test_left_and_right_are_opposite_directions(self):
        vizdoom = pytest.importorskip("vizdoom", reason="the suite's package")

        def place(action):
            env = make("vizdoom_take_cover")
            env.reset(seed=0)
            for _ in range(15):
                env.step({"action": np.int32(action)})
            return env.env._game.get_game_variable(vizdoom.GameVariable.POSITION_Y)

        left, stay, right = (place(action) for action in range(3))
        assert abs((left + right) / 2 - stay) < 1 and left - right > 20

    def test_games_that_start_at_once_find_the_folder_that_each_would_make(self, tmp_path, monkeypatch):
        vizdoom = pytest.importorskip("vizdoom", reason="the suite's package")
        init, found = vizdoom.DoomGame.init, []

        def begin(game):
            found.append((tmp_path / "_vizdoom").is_dir())
            return init(game)

        monkeypatch.setattr(vizdoom.DoomGame, "init", begin)
        for _ in range(2):
            make("vizdoom_take_cover").close()
        assert found == [True, True] and [path.name for path in tmp_path.iterdir()] == ["_vizdoom"]

    def test_unknown_scenarios_are_named(self):
        with pytest.raises(
            EnvError, match="unknown task 'vizdoom_take_cove'; did you mean 'vizdoom_take_cover'"
        ):
            make("vizdoom_take_cove")


class TestCarRacing:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("Box2D", reason="the suite's physics")
        pytest.importorskip("pygame", reason="what draws the suite")
        pytest.importorskip("PIL", reason="what resizes")

    def test_comes_back_to_the_same_states(self):
        assert comes_back("car_racing", steps=4)

    def test_actions_are_steering_gas_and_brake(self, monkeypatch):
        env = make("car_racing")
        assert env.deterministic and env.reset(seed=0)
        taken, step = [], env.env._env.step
        monkeypatch.setattr(
            env.env._env, "step", lambda action: taken.append(action.tolist()) or step(action)
        )
        for action in ([-1, -1, -1], [1, 1, 1], [0.5, 0, 0.5], [-3, 3, -3]):
            env.step({"action": np.array(action)})
        assert taken == [[-1, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5], [-1, 1, 0]]

    def test_frames_that_nobody_looks_at_are_not_drawn_and_the_others_are_the_same(self):
        gymnasium, drawn = pytest.importorskip("gymnasium"), []
        env, plain = make("car_racing", repeat=3), gymnasium.make("CarRacing-v3", render_mode="rgb_array")
        draw = env.env._draw
        env.env._draw = lambda mode: drawn.append(mode) or draw(mode)
        obs, (frame, _) = env.reset(seed=5), plain.reset(seed=5)
        for step in range(12):
            assert np.array_equal(obs["image"], resize(frame[:84], 64)) and len(drawn) == step + 1
            steering = np.sin(step)
            obs, rewards = env.step({"action": np.array([steering, 1, -1])}), []
            for _ in range(3):
                frame, reward, *_ = plain.step(np.array([steering, 1, 0]))
                rewards.append(reward)
            assert obs["reward"] == pytest.approx(sum(rewards))
        plain.close()

    def test_the_dashboard_is_cut_off_and_gas_moves_the_car(self):
        env = make("car_racing")

        def drive(gas):
            env.reset(seed=0)
            obs = [env.step({"action": np.array([0, gas, -1], np.float32)}) for _ in range(40)]
            return obs[-1]["image"], sum(o["reward"] for o in obs)

        image, far = drive(1)
        assert image.shape == (64, 64, 3) and env.render().shape == (96, 96, 3)
        dashboard = env.render()[-8:].mean()
        assert image[-4:].mean() > 60 > dashboard  # grass and road end the picture, not the black dashboard
        assert far > drive(-1)[1]

    def test_a_time_limit_is_last_but_not_terminal_and_repeats_add_up(self):
        env = make("car_racing", length=7, repeat=3)
        for _ in range(2):
            *before, last = roll(env, 9)
            assert len(before) == 3 and last["is_last"] and not last["is_terminal"]

    def test_leaving_the_field_is_terminal_and_finishing_the_lap_is_not(self):
        env = make("car_racing", repeat=8)
        straight = {
            "action": np.array([0, 0, -1], np.float32)
        }  # with half of the gas: all of it spins the car
        env.reset(seed=0)
        obs = [env.step(straight) for _ in range(3)]
        while not obs[-1]["is_last"]:
            obs.append(env.step(straight))
        assert len(obs) < 60 and obs[-1]["is_terminal"] and -110 < obs[-1]["reward"] < -99
        assert not any(o["is_terminal"] or o["is_last"] for o in obs[:-1])
        env.reset(seed=0)
        race = env.env._env.unwrapped
        race.tile_visited_count = len(race.track)
        obs = [env.step(straight)]
        assert obs[-1]["is_last"] and not obs[-1]["is_terminal"]


TINY = "--preset debug --env.parallel no --dreamer.collect.shortest 5 --eval.final-episodes 1"
TINY += " --log.outputs jsonl"
TINY += " --dreamer.control.generations 1 --dreamer.control.rollouts 1 --dreamer.control.test-rollouts 2"
REAL = (
    " --dreamer.memory.no-ends --dreamer.control.no-cell --dreamer.control.bias --dreamer.control.where real"
)


@pytest.mark.parametrize(
    ("package", "args"),
    [
        ("vizdoom", "--task vizdoom_take_cover --steps 900"),
        ("Box2D", "--task car_racing --steps 40 --suite.length 25 --dreamer.collect.actions networks" + REAL),
    ],
)
def test_world_models_goes_through_all_stages_in_it(package, args, tmp_path, monkeypatch, capsys):
    for needed in (package, "PIL", "cma"):
        pytest.importorskip(needed, reason="what the run is made with")
    monkeypatch.chdir(tmp_path)
    train.main(["--agent", "world_models", "--logdir", str(tmp_path / "run"), *args.split(), *TINY.split()])
    text = capsys.readouterr().out
    assert (
        "evaluation: " in text and ("in the environment after 1" if "racing" in args else "in dreams") in text
    )
    assert load(tmp_path / "run").controls.any()
