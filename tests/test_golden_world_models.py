"""World Models against numbers that the authors' TensorFlow code computed: see golden/world_models/README.md.

Where ours departs on purpose, and what is compared there:

- The step at which an episode ends is not followed by the next episode's first in M's loss of z, as it is in theirs:
  their loss is compared with all steps counted, and ours with the mean of their terms over the steps that it counts.
- M forgets everything where an episode begins. Theirs means to, and does in the first part of a stream and in dreams;
  but in later ones it returns to the state that the part began with, as that is fed in the place of zero.
- An end is the last step of an episode in ours, which records it; theirs records no such step, and the next episode's
  first, "restart", takes its place. An episode that was broken off has no end in ours.
- Parts of a stream overlap by the step that is only predicted, so that M's state has seen all steps before a part;
  theirs do not, and one step in 500 is neither an input nor predicted. Parts have 500 predictions, theirs 499.
- CarRacing's M reads streams as Doom's does; theirs begins each batch with whole episodes from a state of zero.
- CarRacing's M and the recordings hold actions before they become gas and brake: M sees [-1, 1] for all three. What
  the environment takes is compared, and M with the actions that theirs was given.
- z's deviation is computed in float32 from what is kept in float16; theirs in float16.
- Pictures of V's batches are drawn with replacement, not shuffled.
- Rollouts of the random policy end where their episodes do; the authors' cars drive on for 1000 frames. An action is
  held for 1 to 10 steps; theirs gives way at the next multiple of such a number, which is sooner.
- Dreams have temperature 1.15, as in the paper; the authors' repository has 1.25.
- CMA-ES is told scores alone; theirs takes 0.01 of the mean square of a controller's parameters from its cost, which
  rewards large ones.
- Noise is given; which components uniform numbers choose is the same.
"""

from typing import Any

import numpy as np
import pytest

from fastdream.agents.world_models_nets import draw
from fastdream.stages.fit import FitVision

from . import world_models_golden_tools as theirs
from .golden_tools import EACH_BACKEND, WIDE, assert_close
from .world_models_draws import keep
from .world_models_golden_tools import EACH, FILES, HELD, floats

pytestmark = HELD


@EACH
@EACH_BACKEND
def test_vision(which: str, backend: str) -> None:
    gold = FILES[f"vision_{which}"]
    agent, given = theirs.with_vision(which, gold, backend), floats(gold, "in")
    mean, logvar = agent.vision.encode(given["image"])
    z = draw(mean, logvar, given["noise"])
    assert_close({"mu": mean, "logvar": logvar, "z": z, "y": agent.vision.decode(z)}, gold.under("out"))
    loss, metrics = agent.vision.loss(given["image"], given["noise"])
    losses = {"loss": loss, "r_loss": metrics["error"], "kl_loss": loss - metrics["error"]}
    assert_close(losses, gold.under("loss"))
    loss.backward()
    assert_close(keep(theirs.write_vision(theirs.grads(agent.vision))), gold.under("grad"))


@EACH
@EACH_BACKEND
def test_vision_learns(which: str, backend: str) -> None:
    gold = FILES[f"vision_{which}"]
    agent, batch = theirs.with_vision(which, gold, backend), floats(gold, "in")
    stage: Any = FitVision(theirs.settings(which), agent, theirs.Recorded(np.zeros((1, 1, 1))))
    before = {key: x.clone() for key, x in agent.vision.state_dict().items()}
    for step in range(gold.config["updates"]):
        (metrics,) = stage.update(batch)
        assert_close(metrics, {"loss": gold[f"step{step}/loss"]})
    change = {key: x - before[key] for key, x in agent.vision.state_dict().items()}
    # Adam's first steps have the same length however small a gradient is: rounding decides the smallest.
    assert_close(keep(theirs.write_vision(change)), gold.under("change"), 5 * WIDE)


@EACH
def test_settings(which: str) -> None:
    """The presets' are those of the training scripts."""
    config, gold = theirs.settings(which).dreamer, FILES[f"memory_{which}"]
    vision, memory, script, hps = config.vision, config.memory, gold.config["vae_train"], gold.config["hps"]
    assert config.latents == script["z_size"] == hps.get("seq_width", hps.get("output_seq_width"))
    ours = vision.batch, vision.lr, vision.tolerance, vision.passes
    assert ours == tuple(script[k] for k in ("batch_size", "learning_rate", "kl_tolerance", "NUM_EPOCH"))
    names = {"units": "rnn_size", "mixtures": "num_mixture", "batch": "batch_size", "length": "max_seq_len"}
    names |= {
        "lr": "learning_rate",
        "lr_end": "min_learning_rate",
        "decay": "decay_rate",
        "clip": "grad_clip",
    }
    names |= {"end_weight": "restart_factor"} if memory.ends else {}
    assert {k: getattr(memory, k) for k in names} == {k: hps[name] for k, name in names.items()}
    assert not any(value for key, value in hps.items() if key.startswith("use_"))


@EACH
def test_initial_parameters(which: str) -> None:
    """Uniform up to the same limits, which biases of M have as well; those of V are zero."""
    agent, limits = theirs.make(which, theirs.settings(which)), FILES[f"acting_{which}"].config["initial"]
    ours = theirs.write_vision(agent.vision.state_dict()) | theirs.write_memory(agent.memory.state_dict())
    assert ours.keys() == limits.keys()
    for name, x in ours.items():
        limit = limits[name]
        assert np.abs(x).max() <= limit * (1 + 1e-6), name
        assert x.std() * 3**0.5 == pytest.approx(limit, rel=2 * x.size**-0.5), name
        assert abs(x.mean()) <= 3 * limit * x.size**-0.5, name
