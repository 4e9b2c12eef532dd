"""Updates of V-D4RL's Offline DV2 with what they drew and computed: one .npz for each of VARIANTS.

    git clone https://github.com/conglu1997/v-d4rl CLONE
    pip install tensorflow-cpu==2.15.1 tensorflow-probability==0.23.0 'numpy<2' ruamel.yaml
    python make.py --source CLONE

The code is a copy of DreamerV2's that was changed, and is run as ../dreamer_v2 runs that: an update of the
model, and two of actor and critic.
"""

import argparse
import importlib
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "dreamer_v2"))
recording = importlib.import_module("record_agent")
for name in ("sklearn", "sklearn.model_selection"):  # imported for datasets, and not used
    sys.modules[name] = MagicMock()
UPDATES = "model_train", "agent_train", "agent_train"
SENSORS = {"position": (3,), "velocity": (4,)}
VARIANTS = {
    "meandis": {"offline_tune_lmbd": True, "offline_lmbd_cons": 0.3, "pred_discount": False},
    "log_prob_ens": {"offline_lmbd": 0.5, "pred_discount": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="clone of conglu1997/v-d4rl")
    folder = parser.parse_args().source / "offlinedv2"
    sys.path.insert(0, str(folder))
    priors = watch_priors()
    for index, (name, changes) in enumerate(VARIANTS.items()):
        changes = changes | {"offline_penalty_type": name, "rssm.ensemble": 3}
        variant = recording.Variant(["dmc_proprio"], changes, SENSORS, "continuous")
        config = recording.settings("dreamerv2.common", folder / "dreamerv2", variant)
        agent = recording.build("dreamerv2.agent", config, variant)
        priors.clear()
        arrays = recording.record(agent, config, variant, 40 + index, UPDATES)
        # Before the first recorded update there is another. Posteriors of an update of the actor draw priors too.
        steps, dreams = recording.T, recording.SMALL["imag_horizon"]
        begin = steps + dreams
        for number, update in enumerate(UPDATES):
            count = steps if update == "model_train" else steps + dreams
            used = priors[begin : begin + count]
            arrays[f"s{number}/priors"] = np.array(used if update == "model_train" else used[steps:])
            begin += count
        path = HERE / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


def watch_priors() -> list[int]:
    """A list of which prior is drawn, as they are: the one scalar integer that the code draws."""
    drawn, uniform = [], tf.random.uniform

    def watched(shape, *args):
        result = uniform(shape, *args)
        if shape == () and result.dtype == tf.int32:
            drawn.append(int(result))
        return result

    tf.random.uniform = watched
    return drawn


if __name__ == "__main__":
    main()
