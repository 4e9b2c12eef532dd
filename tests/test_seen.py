"""What an agent is shown when it acts: an observation that is not what its spaces say is refused, by name."""

from typing import Any

import numpy as np
import pytest
import torch

from fastdream import agents
from fastdream.build import make_agent
from fastdream.cli import parse
from fastdream.spaces import Space

PICTURE = {"image": Space("image", (64, 64, 3))}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"image": None}, r"no 'image', only extra, is_first$"),
    "no flag": ({"is_first": None}, r"no 'is_first', only extra, image$"),
    "no batch": (
        {"image": np.zeros((64, 64, 3), np.uint8)},
        r"\['image'\] .* \[64, 64, 3\], expected \[2, 64, 64, 3\]",
    ),
    "size": (
        {"image": np.zeros((2, 32, 64, 3), np.uint8)},
        r"\['image'\] has shape \[2, 32, 64, 3\], expected",
    ),
    "rows": (
        {"is_first": np.ones(3, bool)},
        r"\['is_first'\] has shape \[3\], expected \[2\]: 2 environments",
    ),
    "list": ({"is_first": [True, True]}, r"\['is_first'\] is a list, expected an array"),
    "tensor": ({"image": torch.zeros(2, 64, 64, 3)}, r"\['image'\] is a Tensor, expected an array"),
}


@pytest.fixture(scope="module", params=agents.AGENTS)
def agent(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


@pytest.fixture(scope="module", params=[name for name in agents.AGENTS if name != "world_models"])
def dreamer(request: pytest.FixtureRequest) -> Any:
    """One that learns from batches of replay; World Models learns from rollouts on disk."""
    return made(request.param)


def made(name: str) -> Any:
    data = ["--dataset", "none"] if name == "offline_dv2" else []  # which is not read here
    config = parse(["--agent", name, "--preset", "debug", *data]).config
    return make_agent(config, PICTURE, {"action": Space("vector", (1,), low=-1, high=1)}, torch.device("cpu"))


@pytest.mark.parametrize("case", CASES)
def test_an_observation_that_is_not_of_its_spaces_is_refused(agent: Any, case: str) -> None:
    changes, message = CASES[case]
    obs = {"image": np.zeros((2, 64, 64, 3), np.uint8), "is_first": np.ones(2, bool), "extra": np.zeros(2)}
    carry = agent.init_policy(2)
    assert agent.policy(carry, obs)[1]["action"].shape == (2, 1)
    with pytest.raises(ValueError, match=message):
        agent.policy(carry, {k: v for k, v in (obs | changes).items() if v is not None})


def test_an_observation_without_names_is_refused(agent: Any) -> None:
    for obs in (np.zeros((2, 64, 64, 3), np.uint8), ({"image": None}, {})):
        with pytest.raises(ValueError, match=rf"no 'image', only a {type(obs).__name__}$"):
            agent.policy(agent.init_policy(2), obs)


def test_a_policy_of_no_environments_is_refused(agent: Any) -> None:
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"in at least one environment, got n={n}"):
            agent.init_policy(n)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_the_flag_of_an_episode_s_beginning_may_be_a_number(agent: Any, dtype: Any) -> None:
    carry = {key: torch.ones_like(x) for key, x in agent.init_policy(2).items()}
    obs, begins = {"image": np.zeros((2, 64, 64, 3), np.uint8)}, np.array([True, False])
    results = []
    for first in (begins, begins.astype(dtype)):
        for generator in agent.generators.values():
            generator.manual_seed(0)
        results.append(agent.policy(carry, obs | {"is_first": first}, "mode"))
    assert np.array_equal(results[0][1]["action"], results[1][1]["action"])
    for key, x in results[0][0].items():
        assert torch.equal(x, results[1][0][key]), key


SENSORS = {"sensors": Space("vector", (2,)), "mode": Space("discrete", (), 3)}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"sensors": np.array([[0, 1], [2, np.nan]])}, r"\['sensors'\] contains what is no finite number"),
    "float64": ({"sensors": np.array([[0, 1e300], [2, 3]])}, r"\['sensors'\] contains what is no finite"),
    "half": ({"sensors": np.array([[0, -np.inf], [2, 3]])}, r"\['sensors'\] contains what is no finite"),
    "class": (
        {"mode": np.array([1, 3])},
        r"\['mode'\] is \[1 3\], and its classes are 0 to 2, as fastdream.envs",
    ),
    "negative": ({"mode": np.array([-2, 0])}, r"\['mode'\] is \[-2  0\], and its classes are 0 to 2"),
    "fraction": ({"mode": np.array([0.5, 0])}, r"\['mode'\] is \[0.5 0. \], and its classes are 0 to 2"),
    "flag": ({"is_first": np.array(["no", "no"])}, r"\['is_first'\] is \['no' 'no'\], and its classes are 0"),
    "complex": (
        {"sensors": np.zeros((2, 2), complex)},
        r"\['sensors'\] has the dtype complex128, expected num",
    ),
    "objects": (
        {"sensors": np.zeros((2, 2), object)},
        r"\['sensors'\] has the dtype object, expected numbers",
    ),
}


@pytest.mark.parametrize("name", ["dreamer_v1", "dreamer_v2", "dreamer_v3"])
def test_numbers_that_an_environment_may_not_show_are_refused(name: str) -> None:
    config = parse(["--agent", name, "--preset", "debug"]).config
    agent = make_agent(config, SENSORS, {"action": Space("discrete", (), 2)}, torch.device("cpu"))
    fine = {
        "sensors": np.array([[-np.inf, -np.inf], [1e30, 3]]),  # of which the first are not available
        "mode": np.array([-1, 2]),
        "is_first": np.ones(2, bool),
    }
    carry = agent.init_policy(2)
    assert agent.policy(carry, fine)[1]["action"].shape == (2,)
    for changes, message in WRONG.values():
        with pytest.raises(ValueError, match=message):
            agent.policy(carry, fine | changes)


NEEDED = ("image", "action/action", "reward", "is_first", "is_terminal")


@pytest.mark.parametrize("missing", [*NEEDED, "is_last", "deter", "stoch"])
def test_a_batch_without_an_entry_names_it(dreamer: Any, missing: str) -> None:
    if missing not in NEEDED and not dreamer.latent_spec:
        pytest.skip("only DreamerV3 reads this")
    keys = {*NEEDED, "is_last", "deter", "stoch"} - {missing}
    batch = {key: torch.zeros(2, 3) for key in keys}
    with pytest.raises(ValueError, match=f"the batch has no '{missing}', only .*: fastdream/replay.py says"):
        dreamer.update(dreamer.init_train(2), batch)


def test_a_batch_as_replay_samples_it_names_what_makes_tensors_of_it(dreamer: Any) -> None:
    batch = {key: np.zeros((2, 3), np.float32) for key in (*NEEDED, "deter", "stoch")}
    with pytest.raises(
        ValueError, match=r"batch\['image'\] is a ndarray; agent.inputs\(batch\) gives tensors"
    ):
        dreamer.update(dreamer.init_train(2), batch)
    with pytest.raises(ValueError, match=r"batch\['image'\] is a list; agent.inputs\(batch\) gives tensors"):
        dreamer.update(dreamer.init_train(2), batch | {"image": []})
    assert all(torch.is_tensor(x) for x in dreamer.inputs(batch).values())


@pytest.mark.parametrize("key", [*NEEDED, "is_last"])
def test_a_batch_of_other_shapes_or_dtypes_names_the_entry(dreamer: Any, key: str) -> None:
    """With as many sequences as steps, rewards [B, T, 1] of other codebases would be broadcast without a word, and of
    actions and sensors that are whole numbers by mistake nobody would hear.
    """
    if key == "is_last" and not dreamer.latent_spec:
        pytest.skip("only DreamerV3 reads this")
    shapes = {"image": (64, 64, 3), "action/action": (1,)} | {
        k: shape for k, (shape, _) in dreamer.latent_spec.items()
    }
    keys = (*NEEDED, "is_last", *dreamer.latent_spec)
    batch = {name: torch.zeros(9, 9, *shapes.get(name, ())) for name in keys}
    for name in ("is_first", "is_terminal", "is_last"):
        batch[name] = batch[name].bool()
    batch["image"] = batch["image"].byte()
    dreamer.update(
        dreamer.init_train(9), batch | {"stoch": batch["stoch"].byte()} if "stoch" in batch else batch
    )
    with pytest.raises(ValueError, match=rf"batch\['{key}'\] is .* \[9, 9, .*1\], expected .* \[9, 9"):
        dreamer.update(dreamer.init_train(9), batch | {key: batch[key][..., None]})
    right = str(batch[key].dtype).removeprefix("torch.")
    for dtype in {torch.float32, torch.float64, torch.uint8, torch.int32, torch.bool} - {batch[key].dtype}:
        with pytest.raises(ValueError, match=rf"batch\['{key}'\] is {dtype} .*, expected {right} \[9, 9"):
            dreamer.update(dreamer.init_train(9), batch | {key: batch[key].to(dtype)})
