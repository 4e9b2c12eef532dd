"""DeepMind Control: sensors and pictures, the same states again, and what is said where it does not start."""

import os
import subprocess
import sys

import numpy as np
import pytest

from fastdream.envs import dmc, make
from fastdream.envs.base import EnvError
from fastdream.spaces import Space

from .test_envs_suites import comes_back, roll


class TestControl:
    @pytest.fixture(autouse=True)
    def _package(self):
        pytest.importorskip("dm_control", reason="the suite's package")

    def test_sensors_come_without_rendering(self, monkeypatch):
        env = make("dmc_cup_catch")
        monkeypatch.setattr(type(env.env), "render", lambda self: pytest.fail("rendered"))
        obs = roll(env, 5)
        assert set(env.obs_space) == {"position", "velocity"} and "image" not in obs[0]

    def test_comes_back_to_the_same_states_and_ends_by_its_time_limit(self):
        assert comes_back("dmc_walker_walk", steps=20)
        assert not make("dmc_lqr_lqr_2_1").deterministic
        last = roll(make("dmc_cartpole_swingup", repeat=250), 9)[-1]
        assert last["is_last"] and not last["is_terminal"]

    def test_pictures(self):
        env = make("dmc_walker_walk", obs="both", size=32, fast_render=True)
        obs = roll(env, 2)
        assert obs[-1]["image"].std() > 0 and obs[-1]["height"].shape == ()
        env.close()
        env = make("dmc_walker_walk")
        env.reset(seed=0)
        assert env.render().std() > 0
        env = make("dmc_walker_walk", obs="vision", size=32)
        assert set(env.obs_space) == {"image"} and env.reset(seed=0)["image"].std() > 0

    def test_unknown_tasks_and_settings_are_refused(self):
        with pytest.raises(EnvError, match="did you mean 'dmc_walker_walk'"):
            make("dmc_walker_wlak")
        with pytest.raises(EnvError, match="dmc_walker_walk: obs is 'pixels'; it must be 'proprio' or 'vis"):
            make("dmc_walker_walk", obs="pixels")
        with pytest.raises(EnvError, match="dmc_walker_walk has the cameras 0 to 1, got camera=2"):
            make("dmc_walker_walk", camera=2)
        with pytest.raises(EnvError, match=r"camera >= -1, got .*camera=-2"):
            make("dmc_walker_walk", camera=-2)

    def test_versions_that_do_not_fit_are_named(self, monkeypatch):
        def load(*args, **options):
            raise AttributeError("'MjModel' object has no attribute 'flex_vertedge'")

        make("dmc_walker_walk")
        monkeypatch.setattr(sys.modules["dm_control.suite"], "load", load)
        with pytest.raises(EnvError, match=r"flex_vertedge.*pip install dm_control==.* mujoco=="):
            make("dmc_walker_walk")

    @pytest.mark.parametrize(
        "error", [ImportError("no EGL"), RuntimeError("no EGL"), AttributeError("no EGL")]
    )
    def test_where_it_does_not_start_is_said_what_to_install(self, error, monkeypatch):
        def need(package, extra):
            raise error

        monkeypatch.setattr(dmc, "need", need)
        monkeypatch.setenv("MUJOCO_GL", "glfw")
        with pytest.raises(
            EnvError, match=r"not start with MUJOCO_GL=glfw: no EGL. Install EGL \(apt install"
        ):
            make("dmc_walker_walk")
        assert os.environ["MUJOCO_GL"] == "glfw"  # which somebody asked for
        monkeypatch.delenv("MUJOCO_GL")
        with pytest.raises(EnvError, match="MUJOCO_GL=egl" if sys.platform == "linux" else "MUJOCO_GL=None"):
            make("dmc_walker_walk")

    def test_an_end_without_a_discount_is_terminal(self, monkeypatch):
        import dm_env

        env = make("dmc_cartpole_balance")
        env.reset(seed=0)
        step = env.env._env.step
        for last, discount, terminal in ((True, 0.0, True), (True, 1.0, False), (False, 1.0, False)):
            kind = dm_env.StepType.LAST if last else dm_env.StepType.MID
            said = {"step_type": kind, "discount": discount}
            monkeypatch.setattr(env.env._env, "step", lambda action, said=said: step(action)._replace(**said))
            obs = env.step({"action": np.zeros(1, np.float32)})
            assert (obs["is_last"], obs["is_terminal"], obs["is_first"]) == (last, terminal, False)

    def test_actions_without_bounds_are_forces_as_they_are(self):
        env = make("dmc_lqr_lqr_2_1")
        assert env.act_space["action"] == Space("vector", (1,))
        env.reset(seed=0)
        assert all(-10 < env.step({"action": np.full(1, x, np.float32)})["reward"] <= 1 for x in (1, -1, 5))

    def test_the_seed_is_that_of_the_models_that_are_drawn_when_they_are_made(self):
        one, again, other = (make("dmc_lqr_lqr_6_2", seed=seed).env._env.physics for seed in (3, 3, 4))
        assert np.array_equal(one.model.jnt_stiffness, again.model.jnt_stiffness)
        assert not np.array_equal(one.model.jnt_stiffness, other.model.jnt_stiffness)

    def test_actions_beyond_the_bounds_of_the_task_are_clipped(self, monkeypatch):
        env = make("dmc_walker_walk")
        env.reset(seed=0)
        taken = []
        step = env.env._env.step
        monkeypatch.setattr(env.env._env, "step", lambda action: taken.append(action) or step(action))
        env.step({"action": np.linspace(-3, 3, 6, dtype=np.float32)})
        assert taken[0].min() == -1 and taken[0].max() == 1

    def test_the_camera_is_the_one_that_suits_the_domain_or_the_one_that_was_asked_for(self):
        plain, fast, first = (
            make("dmc_quadruped_walk", obs="vision", size=32, **options)
            for options in ({}, {"fast_render": True}, {"fast_render": True, "camera": 0})
        )
        game = plain.env._env
        game.task.random.seed(0)
        game.reset()
        official = game.physics.render(32, 32, camera_id=2)
        shaded, suited, asked = (env.reset(seed=0)["image"] for env in (plain, fast, first))
        assert np.array_equal(shaded, official)
        assert not np.array_equal(suited, asked) and not np.array_equal(suited, shaded)
        assert np.array_equal(plain.render(), shaded)  # whatever others of this process drew
        sensing = make("dmc_quadruped_walk", size=32)
        sensing.reset(seed=0)
        assert np.array_equal(sensing.render(), suited)  # drawn the fast way, as no agent sees it

    def test_the_terrain_that_is_drawn_is_that_of_the_episode(self):
        one, other, fresh = (
            make("dmc_quadruped_escape", obs="vision", size=32, fast_render=True) for _ in range(3)
        )
        one.reset(seed=1)
        other.reset(seed=3)
        assert np.array_equal(one.reset(seed=2)["image"], fresh.reset(seed=2)["image"])

    def test_a_program_that_closes_nothing_ends_in_silence(self):
        program = "env = make('dmc_cartpole_balance', obs='vision', size=16); env.reset(seed=0)"
        command = [sys.executable, "-W", "ignore", "-c", f"from fastdream.envs import make; {program}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "Error" not in done.stderr and "Traceback" not in done.stderr, done.stderr

    def test_a_seed_of_0_is_one_and_all_is_freed_in_the_end(self, monkeypatch):
        env = make("dmc_cartpole_balance", seed=5, size=16)
        first, other, again = (env.reset(seed=seed)["position"].tolist() for seed in (0, 1, 0))
        assert first == again != other
        env.render()
        freed = []
        for part in (env.env._env, env.env._renderer):
            monkeypatch.setattr(
                part, "close", lambda part=part, close=part.close: freed.append(part) or close()
            )
        env.close()
        assert len(freed) == 2
