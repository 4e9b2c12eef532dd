"""Everything that the official JAX DreamerV3 computed, recomputed here.

FASTDREAM_GOLDEN=FOLDER pytest tests/test_golden.py runs the same on another set of numbers.
"""

from collections import Counter

from . import (
    golden_agent,
    golden_heads,
    golden_init,
    golden_lambda,
    golden_nets,
    golden_optim,
    golden_returns,
    golden_rssm,
)
from .golden_agent import *  # noqa: F403
from .golden_heads import *  # noqa: F403
from .golden_init import *  # noqa: F403
from .golden_lambda import *  # noqa: F403
from .golden_nets import *  # noqa: F403
from .golden_optim import *  # noqa: F403
from .golden_returns import *  # noqa: F403
from .golden_rssm import *  # noqa: F403

PARTS = (
    golden_agent,
    golden_heads,
    golden_init,
    golden_lambda,
    golden_nets,
    golden_optim,
    golden_returns,
    golden_rssm,
)


def test_no_part_hides_a_test_of_another() -> None:
    names = Counter(name for part in PARTS for name in vars(part) if name.startswith("test_"))
    assert [name for name, count in names.items() if count > 1] == []
