"""SheepRL (github.com/Eclectic-Sheep/sheeprl) 0.8.4: its `dreamer_v3_5`, the DreamerV3 of 2024, eager.

    python -m venv DIR && DIR/bin/pip install sheeprl==0.8.4

DIR is that environment. The networks and the update are fastdream's `current` variant, with as many parameters; the
peer's unimix of discrete actions is off, as there. torch.compile (`algo.compile`) is off, which is the peer's default.
Matrix products are in float32 on a CPU and in bfloat16 on a GPU.
"""

import sys
from pathlib import Path
from typing import Any

from protocol import Job, Peer, on, serve, set_up_torch, waited

SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
REMEDY = "python -m venv DIR && DIR/bin/pip install sheeprl==0.8.4"


def build(path: Path, job: Job, threads: int, device: str) -> Peer:
    """The agent as the peer's main function makes it, with one batch instead of a replay."""
    sys.path.insert(0, str(path / SITE))
    set_up_torch(threads, device)
    import hydra
    import sheeprl
    from gymnasium.spaces import Box, Dict
    from lightning.fabric import Fabric
    from sheeprl.algos.dreamer_v3_5.agent import build_agent
    from sheeprl.algos.dreamer_v3_5.dreamer_v3_5 import train, update_target_critic
    from sheeprl.algos.dreamer_v3_5.utils import Moments

    config = settings(job)
    fabric = Fabric(accelerator=device, devices=1, precision="32-true" if device == "cpu" else "bf16-mixed")
    shape = (3, 64, 64) if job.pixels else job.observation
    space = Dict({"obs": Box(0, 255, shape)})
    world, actor, critic, target, _ = build_agent(fabric, (job.action,), not job.pixels, config, space)
    params = [*world.parameters(), *actor.parameters(), *critic.parameters()]
    optimizer = hydra.utils.instantiate(config.algo.optimizer, params=params, _convert_="all")
    optimizer = fabric.setup_optimizers(optimizer)
    percentile = config.algo.actor.moments.percentile
    moments = Moments(
        config.algo.actor.moments.decay, config.algo.actor.moments.max, percentile.low, percentile.high
    ).to(device)
    data = on(batch(job, shape), device)

    def update() -> None:
        networks = world, actor, critic, target
        train(fabric, config, *networks, optimizer, moments, data, None, (job.action,))
        update_target_critic(critic, target, config.algo.critic.tau)

    return Peer(waited(update, device), sum(p.numel() for p in params), sheeprl.__version__)


def settings(job: Job) -> Any:
    """The peer's configuration with the widths of the job."""
    import hydra
    from omegaconf import OmegaConf
    from sheeprl.utils.utils import dotdict

    overrides = {
        "exp": "dreamer_v3_5",
        "env": "dummy",
        "algo.per_rank_batch_size": job.batch,
        "algo.per_rank_sequence_length": job.length,
        "algo.cnn_keys.encoder": "[obs]" if job.pixels else "[]",
        "algo.mlp_keys.encoder": "[]" if job.pixels else "[obs]",
        "algo.horizon": job.horizon,
        "algo.dense_units": job.units,
        "algo.cnn_channels_multiplier": job.depth,
        "algo.world_model.stochastic_size": job.stoch,
        "algo.world_model.discrete_size": job.classes,
        "algo.world_model.recurrent_model.recurrent_state_size": job.deter,
        "algo.world_model.recurrent_model.hidden_size": job.hidden,
        "algo.actor.unimix": 0,
    }
    with hydra.initialize_config_module("sheeprl.configs", version_base=None):
        config = hydra.compose("config", [f"{key}={value}" for key, value in overrides.items()])
    return dotdict(OmegaConf.to_container(config, resolve=True))


def batch(job: Job, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the peer's replay would give: [context + length, batch, ...], in the types that it is kept in."""
    import torch

    lead = (1 + job.length, job.batch)
    if job.pixels:
        obs = torch.randint(256, (*lead, *shape), dtype=torch.uint8)
        actions = torch.nn.functional.one_hot(torch.randint(job.action, lead), job.action).float()
    else:
        obs, actions = torch.randn(*lead, *shape), torch.randn(*lead, job.action)
    data = {"obs": obs, "actions": actions, "rewards": torch.randn(*lead, 1)}
    for key in ("is_first", "terminated", "truncated"):
        data[key] = (torch.rand(*lead, 1) < 0.02).float()
    data["deter"] = (torch.rand(*lead, job.deter) * 2 - 1).half()
    data["stoch"] = torch.randint(job.classes, (*lead, job.stoch), dtype=torch.uint8)
    return data


if __name__ == "__main__":
    serve("sheeprl", f"{SITE}/sheeprl", REMEDY, build)
