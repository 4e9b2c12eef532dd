"""r2dreamer (github.com/NM512/r2dreamer): DreamerV3 with `model.rep_loss=dreamer`.

    git clone https://github.com/NM512/r2dreamer DIR
    pip install torch tensordict hydra-core tensorboard

The networks are fastdream's `current` variant, with as many parameters. The update differs where the peer's code does:
imagination takes horizon + 1 steps, the last of which is not used, without a gradient; the latents are sampled by
Gumbel-softmax; the KL has no unimix. On a GPU it runs as its authors run it, compiled with `reduce-overhead` and in
float16; on a CPU eagerly and in float32.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from protocol import Job, Peer, revision, serve, set_up_torch, waited

REMEDY = (
    "git clone https://github.com/NM512/r2dreamer DIR && pip install torch tensordict hydra-core tensorboard"
)


def build(path: Path, job: Job, threads: int, device: str) -> Peer:
    """The agent as the peer's train.py makes it, with a batch instead of a replay."""
    sys.path.insert(0, str(path))
    import dreamer
    import hydra

    set_up_torch(threads, device)
    if device == "cpu":
        dreamer.autocast = lambda **_: nullcontext()
    overrides = {
        "env": "dmc_vision" if job.pixels else "dmc_proprio",
        "model": "size12M",
        "device": device,
        "model.compile": device == "cuda",
        "model.rep_loss": "dreamer",
        "model.imag_horizon": job.horizon,
        "model.deter": job.deter,
        "model.hidden": job.hidden,
        "model.discrete": job.classes,
        "model.depth": job.depth,
        "model.units": job.units,
    }
    with hydra.initialize_config_dir(str(path / "configs"), version_base=None):
        config = hydra.compose("configs", [f"{key}={value}" for key, value in overrides.items()])
    name = "image" if job.pixels else "sensors"
    obs_space = SimpleNamespace(spaces={name: SimpleNamespace(shape=job.observation)})
    discrete = SimpleNamespace(n=job.action, discrete=True)
    act_space = discrete if job.pixels else SimpleNamespace(shape=(job.action,))
    agent = dreamer.Dreamer(config.model, obs_space, act_space)
    replay = Replay(job, name, device)
    return Peer(
        update=waited(lambda: agent.update(replay), device),
        parameters=sum(p.numel() for p in agent._named_params.values()),
        version=revision(path),
    )


class Replay:
    """One batch, as the peer's buffer gives it; what is written back is dropped."""

    def __init__(self, job: Job, name: str, device: str) -> None:
        import torch
        from tensordict import TensorDict

        lead = (job.batch, job.length)
        if job.pixels:
            obs = torch.randint(256, (*lead, *job.observation), dtype=torch.uint8)
            action = torch.nn.functional.one_hot(torch.randint(job.action, lead), job.action).float()
        else:
            obs, action = torch.randn(*lead, *job.observation), torch.randn(*lead, job.action)
        data = {name: obs, "action": action, "reward": torch.randn(*lead, 1)}
        for key in ("is_first", "is_last", "is_terminal"):
            data[key] = torch.rand(*lead, 1) < 0.02
        self.data = TensorDict(data, batch_size=lead).to(device)
        classes = torch.randint(job.classes, (job.batch, job.stoch))
        stoch = torch.nn.functional.one_hot(classes, job.classes).float()
        self.initial = stoch.to(device), (torch.rand(job.batch, job.deter) * 2 - 1).to(device)

    def sample(self) -> tuple[Any, None, tuple[Any, Any]]:
        """Data, where it stood, and the latents before it; the update puts floats in the place of the images."""
        return self.data.clone(recurse=False), None, self.initial

    def update(self, index: None, stoch: Any, deter: Any) -> None:
        """Latents would go back to where the data stood."""


if __name__ == "__main__":
    serve("r2dreamer", "rssm.py", REMEDY, build)
