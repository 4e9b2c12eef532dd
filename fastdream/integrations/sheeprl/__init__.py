"""sheeprl (github.com/Eclectic-Sheep/sheeprl, 0.8.4) on fastdream's ops: its dreamer_v3_5, dreamer_v3 and dreamer_v2.

    pip install sheeprl==0.8.4
    python -m fastdream.integrations sheeprl -m sheeprl exp=dreamer_v3_5 fabric.accelerator=cpu

Replaced: the posterior's steps, which their loop asks for one by one and one scan computes when it joins them; the
prior's step and imagination; two-hot loss and mean, lambda-returns, and dreamer_v3_5's LaProp. In dreamer_v2 only the
posterior's and the prior's steps. Plan2Explore on V2 and V3 shares these. What is not theirs to the bit:

- Draws have their distributions and their straight-through gradients, but come of other random numbers: one uniform
  number for each variable, whose class the inverse CDF gives.
- The gradient of dreamer_v3's imagination reaches states and actions, and no parameters of the world model and the
  critic: their update asks for the actor's alone.
- dreamer_v2 draws of priors only if something reads the draws.
- A scan of dreamer_v3, whose states begin at a learned one, goes from one time at which an episode of the batch begins
  to the next. The flags are read on the host, once for a sequence.
- Under `fabric.precision` other than 32-true or 64-true, and under `algo.compile.enabled`, networks and steps remain
  their own code.

Nothing was measured on a GPU yet.
"""

from fastdream.integrations.patching import Patch
from fastdream.integrations.sheeprl import block, layernorm

RELEASE = "sheeprl 0.8.4; pip install sheeprl==0.8.4 brings it"


def install() -> Patch:
    """Replace functions of sheeprl, before or after an agent is made.

    Raises ImportError where it is not found, ValueError if it is another release or is replaced already.
    """
    try:
        places = [*layernorm.places(), *block.places()]
    except ModuleNotFoundError as error:
        raise ImportError(
            f"sheeprl 0.8.4 is not found ({error}); pip install sheeprl==0.8.4 brings it"
        ) from error
    return Patch("sheeprl", RELEASE, places)
