"""Published scores: the table gives the aggregates that were published with it."""

import subprocess
import sys

import numpy as np
import pytest

from fastdream import published


@pytest.mark.parametrize(
    ("suite", "system", "mean", "median"),
    [
        ("atari", "dreamer_v2", 11.25, 2.15),
        ("atari", "rainbow", 9.03, 1.47),
        ("atari", "iqn", 8.76, 1.29),
        ("atari100k", "dreamer_v3", 1.247, 0.494),
        ("atari100k", "simple", 0.332, 0.134),
        ("atari100k", "iris", 1.046, 0.289),
        ("atari100k", "storm", 1.222, 0.425),
        ("atari100k", "diamond", 1.459, 0.373),
        ("atari100k", "efficientzero", 1.943, 1.090),
    ],
)
def test_normalised_scores_have_the_published_aggregates(suite, system, mean, median):
    values = list(published.normalised(suite, system).values())
    assert len(values) == {"atari": 55, "atari100k": 26}[suite]
    assert np.mean(values) == pytest.approx(mean, abs=0.006)
    assert np.median(values) == pytest.approx(median, abs=0.006)


def test_share_of_the_record():
    values = np.array(list(published.normalised("atari", "dreamer_v2", human="record").values()))
    assert values.mean() == pytest.approx(0.44, abs=0.005)
    assert values.clip(0, 1).mean() == pytest.approx(0.28, abs=0.005)


@pytest.mark.parametrize(
    ("suite", "system", "frames", "mean", "median"),
    [
        ("dmc_proprio", "dreamer_v3", 500_000, 757.8, 868.5),
        ("dmc_proprio", "dmpo", 500_000, 705.0, 802.8),
        ("dmc_vision", "dreamer_v3", 1_000_000, 784.9, 860.0),
        ("dmc_vision", "dreamer_v3", 500_000, 666, 683),
        ("dmc_vision", "dreamer_v2", 1_000_000, 742, 801),
        ("dmc_vision", "dreamer_v1", 500_000, 472, 399),
        ("dmc_vision", "dreamer_v1", 5_000_000, 807, 866),
    ],
)
def test_scores_have_the_published_aggregates(suite, system, frames, mean, median):
    found = [row for row in published.summary(suite) if row[:2] == (system, frames)]
    assert len(found) == 1
    assert found[0][3:] == (pytest.approx(mean, abs=0.6), pytest.approx(median, abs=0.6))


def test_a_line_of_the_table():
    score = published.find("world_models", "world_models_tau_1.15")["TakeCover"]
    assert score[4:] == (1092, 556, None, "wm_paper") and score.frames is None
    walk = published.find("dmc_vision", "dreamer_v1")["walker_walk"]
    assert walk.frames == 5_000_000 and (walk.score, walk.std, walk.runs) == (957, 26, 5)
    assert published.find("dmc_vision", "dreamer_v1", 500_000)["walker_walk"].score == 732


def test_every_score_says_where_it_is_from_and_stands_once():
    rows = published.scores()
    assert {row.source for row in rows} == set(published.SOURCES)
    assert len({row[:4] for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("atarii", "dqn"), "no published score has benchmark atarii; there are atari100k, dmc_proprio"),
        (("atari", "agent57"), "no published score has system agent57; there are .*rainbow"),
        (("dmc_vision", "dreamer_v1", 7), "has frames 7; there are 500000, 1000000"),
    ],
)
def test_what_there_is_not(words, message):
    with pytest.raises(ValueError, match=message):
        published.find(*words)


def test_only_games_are_normalised():
    with pytest.raises(ValueError, match="only those of atari, atari100k"):
        published.normalised("dmc_vision", "dreamer_v3")


@pytest.mark.parametrize("suite", [[], ["world_models"]])
def test_command(suite):
    command = [sys.executable, "-m", "fastdream.published", *suite]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ("1092 ± 556  (wm_paper)" if suite else "dreamer_v2") in done.stdout
    assert "wm_paper: World Models (Ha & Schmidhuber 2018)" in done.stdout
