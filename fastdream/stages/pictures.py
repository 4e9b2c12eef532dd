"""What people look at: reconstructions, dreams beside what really happened, and beside a real episode."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastdream.agents.world_models import WorldModels
from fastdream.agents.world_models_nets import draw
from fastdream.driver import Driver
from fastdream.openloop import clip
from fastdream.recording import Recording
from fastdream.replay_store import Array
from fastdream.stages.collect import recording_spec
from fastdream.stages.evolve import Dreams

COUNT = 6  # episodes side by side
STEPS = 60  # of an open-loop prediction
CONTEXT = 20  # of them, before the dream begins
GAP = 4  # pixels
LONGEST = 600  # steps of an episode or a dream


@torch.no_grad()
def reconstructions(agent: WorldModels, recording: Recording) -> Array:
    """Pictures from all over the rollouts above what V makes of them: uint8 [2 * 64 + gap, 8 * 64 + gaps, 1 or 3]."""
    rows = np.linspace(0, recording.rows - 1, 8).astype(int)
    image = torch.from_numpy(recording["image"][rows]).to(agent.device)
    seen = to_pixels(agent.vision.decode(agent.vision.encode(image)[0]))
    return visible(np.concatenate([beside(recording["image"][rows]), blank(GAP, seen), beside(seen)], 0))


@torch.no_grad()
def open_loop(agent: WorldModels, recording: Recording, seed: int) -> Array:
    """Recorded episodes, what V and M make of them, and the difference, as a clip [T, height, width, 3].

    M sees the first steps; from then on it dreams, along the actions that were taken, at temperature 1.
    """
    rng = np.random.default_rng(seed)
    lengths = recording.lengths()
    long = np.flatnonzero(lengths >= STEPS)
    if not len(long):
        long = np.flatnonzero(lengths > CONTEXT)
    if not len(long):
        raise ValueError(f"no recorded episode has more than {CONTEXT} steps to begin a dream from")
    chosen = rng.choice(long, min(COUNT, len(long)), replace=False)
    steps = int(min(STEPS, lengths[chosen].min()))
    rows = recording.starts()[chosen][:, None] + np.arange(steps)  # [B, T]
    image, action, first = (
        torch.from_numpy(recording[key][rows]).to(agent.device) for key in ("image", "action", "first")
    )
    generator = torch.Generator(agent.device).manual_seed(seed)
    mean, _ = agent.vision.encode(image.flatten(0, 1))
    seen = mean.unflatten(0, rows.shape)[:, :CONTEXT]
    context = seen[:, :-1], action[:, : CONTEXT - 1], first[:, : CONTEXT - 1]
    _, state = agent.memory.unroll(*context, agent.memory.initial(len(rows)))
    latent, latents = seen[:, -1], [*seen.unbind(1)]
    for t in range(CONTEXT - 1, steps - 1):
        noise = torch.rand(2, *latent.shape, generator=generator, device=agent.device)
        noise[1].normal_(generator=generator)
        step = agent.ops.lstm_mdn_step(
            agent.memory.params, *state, latent, action[:, t], first[:, t], noise[0], noise[1]
        )
        state, latent = (step.hidden, step.cell), step.latent
        latents.append(latent)
    pictures = agent.vision.decode(torch.stack(latents, 1).flatten(0, 1))
    return clip(image, pictures.unflatten(0, rows.shape), CONTEXT)


def of_run(logdir: Path, agent: Any, seed: int) -> dict[str, Array]:
    """`open_loop` of what a run has recorded, by observation key; ValueError if that is too little."""
    recording = Recording(logdir / "rollouts", recording_spec(agent), appends=False)
    return {agent.key: open_loop(agent, recording, seed)}


def real_and_dream(agent: WorldModels, driver: Driver, dreams: Dreams, seed: int) -> Array:
    """A real episode of the controller beside a dream of it, as a clip [T, 64, 2 * 64 + gap, 1 or 3].

    The dream of a memory that knows no end lasts as long as the episode.
    """
    real = episode(agent, driver, seed)
    config = agent.config
    length = min(LONGEST, config.control.length) if config.memory.ends else len(real)
    return visible(side_by_side(real, dream(agent, dreams, seed, length)))


def dream_alone(agent: WorldModels, dreams: Dreams, seed: int) -> Array:
    """A dream of the controller, as a clip [T, 64, 64, 1 or 3]."""
    return visible(dream(agent, dreams, seed, min(LONGEST, agent.config.control.length)))


@torch.no_grad()
def dream(agent: WorldModels, dreams: Dreams, seed: int, length: int) -> Array:
    """What the controller sees in a dream of its own, at the temperature of dreams: [at most length, 64, 64, C]."""
    generator = torch.Generator(agent.device).manual_seed(seed)
    row = np.random.default_rng(seed).choice(dreams.starts, 1)
    start = dreams.latents.at(row, agent.device)
    noise = torch.randn(start["mean"].shape, generator=generator, device=agent.device)
    trail: list[torch.Tensor] = []
    lasted = agent.dream(
        agent.controls[None],
        draw(start["mean"], start["logvar"], noise),
        torch.zeros(1, dtype=torch.long, device=agent.device),
        generator,
        agent.config.control.temperature,
        length,
        trail,
    )
    return to_pixels(agent.vision.decode(torch.cat(trail[: int(lasted[0])])))


def episode(agent: WorldModels, driver: Driver, seed: int) -> Array:
    """What the controller sees in a real episode of one environment, until it ends or dies: [T, 64, 64, C]."""
    frames: list[Array] = []
    carry, obs = agent.init_policy(1), driver.restart([seed])
    agent.generators["policy"].manual_seed(seed)
    while len(frames) < LONGEST:
        frames.append(obs[agent.key][0])
        if obs["is_last"][0]:
            break
        carry, action, _ = agent.policy(carry, obs)
        obs = driver.step(action)
    return np.stack(frames)


def side_by_side(left: Array, right: Array) -> Array:
    """Two clips [T, 64, 64, C] as one, which lasts as long as the longer one; the other stops at its last frame."""
    length = max(len(left), len(right))
    both = [x[np.minimum(np.arange(length), len(x) - 1)] for x in (left, right)]
    return np.concatenate([both[0], np.zeros_like(both[0][:, :, :GAP]), both[1]], 2)


def visible(images: Array) -> Array:
    """[..., C] -> [..., 1 or 3]: the first three channels of more, as `openloop.clip` shows them."""
    images = images[..., :3]
    return np.pad(images, [*[(0, 0)] * (images.ndim - 1), (0, images.shape[-1] == 2)])


def to_pixels(image: torch.Tensor) -> Array:
    """Values in [0, 1] -> uint8."""
    return (image * 255).round().to(torch.uint8).cpu().numpy()


def beside(images: Array) -> Array:
    """[N, 64, 64, C] -> [64, N * 64 + gaps, C]."""
    gapped = np.pad(images, [(0, 0), (0, 0), (0, GAP), (0, 0)])
    return gapped.swapaxes(0, 1).reshape(images.shape[1], -1, images.shape[3])[:, :-GAP]


def blank(height: int, images: Array) -> Array:
    """What stands between two rows of `beside`."""
    return np.zeros_like(beside(images)[:height])
