"""Everything that the official JAX DreamerV3 computed, recomputed here.

FASTDREAM_GOLDEN=FOLDER pytest tests/test_golden.py runs the same on another set of numbers.
"""

from .golden_heads import *  # noqa: F403
from .golden_lambda import *  # noqa: F403
from .golden_nets import *  # noqa: F403
from .golden_optim import *  # noqa: F403
