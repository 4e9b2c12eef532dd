"""dreamerv3-torch (github.com/NM512/dreamerv3-torch): the DreamerV3 of 2023, as its `dmc_proprio` sets it up.

    git clone https://github.com/NM512/dreamerv3-torch DIR
    pip install torch tensorboard ruamel.yaml

The core is a LayerNorm GRU, whose product of all units with all units is dense: it has so many units (DETER) that there
are as many parameters as in fastdream's `current` variant, whose core has blocks. The other widths are those of the
job. The actor learns through the dynamics. Nothing is compiled: the peer's `compile` wraps `forward`, which its updates
do not call. Matrix products are in float32 on a CPU and, by the peer's own `precision`, in float16 on a GPU.

There are no jobs with images: its convolutions have strides, fastdream's have none.
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from protocol import Job, Peer, revision, serve, set_up_torch, waited

REMEDY = "git clone https://github.com/NM512/dreamerv3-torch DIR && pip install torch tensorboard ruamel.yaml"
DETER = {512: 312, 2048: 1248}  # units of the core, for those of the job


def build(path: Path, job: Job, threads: int, device: str) -> Peer:
    """The world model and the behavior that the peer's agent trains one after the other, with one batch."""
    sys.path.insert(0, str(path))
    set_up_torch(threads, device)
    import models
    import networks

    init = networks.MLP.__init__  # its decoder of sensors names no device, and gets this default
    init.__defaults__ = tuple(device if value == "cuda" else value for value in init.__defaults__ or ())
    config = settings(path, job, device)
    space = SimpleNamespace(spaces={"sensors": SimpleNamespace(shape=job.observation)})
    world = models.WorldModel(space, None, 0, config).to(device)
    behavior = models.ImagBehavior(config, world).to(device)
    world.requires_grad_(False)
    behavior.requires_grad_(False)  # the peer's update asks for gradients where it wants them
    data = batch(job)

    def update() -> None:
        post, _, _ = world._train(data)
        behavior._train(post, lambda feat, state, action: world.heads["reward"](feat).mode())

    learned = world, behavior.actor, behavior.value
    parameters = sum(p.numel() for net in learned for p in net.parameters())
    return Peer(waited(update, device), parameters, revision(path))


def settings(path: Path, job: Job, device: str) -> Any:
    """The peer's `dmc_proprio` with the widths and depths of the job."""
    from ruamel.yaml import YAML

    choices = YAML(typ="safe").load(path / "configs.yaml")
    config: dict[str, Any] = choices["defaults"]
    net = {"units": job.units, "act": "SiLU", "norm": True}
    changes = {
        **{part: choices["dmc_proprio"][part] for part in ("encoder", "decoder")},
        "actor": {"layers": 3},
        "critic": {"layers": 3},
        "reward_head": {"layers": 1},
        "cont_head": {"layers": 1},
    }
    for part, change in changes.items():
        config[part] |= change
    for part in ("encoder", "decoder"):
        config[part] |= {"mlp_layers": 3, "mlp_units": job.units}
    sizes = {"dyn_hidden": job.hidden, "dyn_deter": DETER[job.deter], "dyn_stoch": job.stoch}
    sizes |= {"dyn_discrete": job.classes, "imag_horizon": job.horizon, "num_actions": job.action}
    precision = {"device": device, "precision": 32 if device == "cpu" else 16}
    return SimpleNamespace(**config | net | sizes | precision)


def batch(job: Job) -> dict[str, Any]:
    """What the peer's replay would give, in NumPy. Its preprocessing asks for an image, which is one pixel here."""
    import numpy as np

    rng, lead = np.random.default_rng(0), (job.batch, job.length)
    data: dict[str, Any] = {
        "sensors": rng.standard_normal((*lead, *job.observation), np.float32),
        "image": np.zeros((*lead, 1, 1, 3), np.uint8),
        "action": rng.standard_normal((*lead, job.action), np.float32),
        "reward": rng.standard_normal(lead, np.float32),
    }
    data |= {key: rng.random(lead) < 0.02 for key in ("is_first", "is_terminal")}
    data["is_first"][:, 0] = True  # as its replay does
    return data


if __name__ == "__main__":
    serve("dreamerv3_torch", "exploration.py", REMEDY, build, kinds=("proprio",))
