"""Whole updates of the official DreamerV2 with what they drew and computed: one .npz for each of VARIANTS.

    git clone https://github.com/danijar/dreamerv2 CLONE
    pip install tensorflow-cpu==2.15.1 tensorflow-probability==0.23.0 'numpy<2' ruamel.yaml
    python make.py --source CLONE

README.md says what the arrays are. Nothing of the official code is changed, but that it runs eagerly and in float32,
that TensorFlow no longer has two names that it uses, and, where actors learn by both gradients, what README.md says.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from record_agent import Variant, build, record, settings

VARIANTS = {
    "atari": Variant(["atari"], {}, {"image": (64, 64, 1)}, "discrete"),
    "proprio": Variant(["dmc_proprio"], {}, {"position": (3,), "velocity": (4,)}, "continuous"),
    "crafter": Variant(
        ["crafter"],
        {
            r"(encoder|decoder)\.cnn_depth": 3,
            "encoder.mlp_keys": ".*",
            "decoder.mlp_keys": ".*",
            "expl_behavior": "Plan2Explore",
            "expl_extr_scale": 0.5,
        },
        {"image": (64, 64, 1), "vector": (3,)},
        "discrete",
    ),
    "gaussian": Variant(
        [],
        {
            "rssm.discrete": 0,
            "actor_grad": "both",
            "actor_grad_mix": "linear(0.8,0.2,4)",
            "actor_ent": "exp(2e-1,1e-2,2)",
            "kl.free": 0.6,
            "kl.free_avg": False,
            "model_opt.clip": 1.0,
            r".*\.wd": 1e-2,
        },
        {"vector": (6,)},
        "continuous",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="clone of danijar/dreamerv2")
    folder = parser.parse_args().source / "dreamerv2"
    sys.path[:0] = [str(folder), str(folder / "common")]
    for index, name in enumerate(VARIANTS):
        variant = VARIANTS[name]
        config = settings("common", folder, variant)
        arrays = record(build("agent", config, variant), config, variant, seed=30 + index)
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
