"""Settings of World Models: its three parts and how each is fitted.

Defaults are those of the authors' code for the Doom experiment, where V and M see the data 10 and 400 times; the paper
says once and 20 times. The temperature of dreams is the paper's best; the code has 1.25.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class VisionConfig:
    """V, the variational autoencoder of pictures."""

    depth: int = 32
    """Channels of the first convolution; each further one doubles them."""
    passes: float = 10.0
    """Times that it sees a picture, on average: they are drawn at random."""
    batch: int = 100
    """Pictures in a batch."""
    lr: float = 1e-4
    """Learning rate."""
    tolerance: float = 0.5
    """Nats per latent dimension that the KL may have for free, per picture."""

    def __post_init__(self) -> None:
        if min(self.depth, self.batch) < 1 or self.passes <= 0 or self.lr <= 0 or self.tolerance < 0:
            raise ValueError(f"need depth, batch, passes and lr above 0 and tolerance >= 0, got {self}")


@dataclass(frozen=True)
class MemoryConfig:
    """M, the LSTM with a mixture of normals for each dimension of the next latent."""

    units: int = 512
    """Width of the LSTM."""
    mixtures: int = 5
    """Normals in each mixture."""
    ends: bool = True
    """Whether it is told where episodes begin, and predicts where they end; a dream can end only then."""
    passes: float = 400.0
    """Times that it sees all sequences."""
    batch: int = 100
    """Sequences in a batch."""
    length: int = 500
    """Steps of each; its state is carried to the next batch."""
    lr: float = 1e-3
    """Learning rate at the start."""
    lr_end: float = 1e-5
    """Learning rate that it approaches."""
    decay: float = 0.99999
    """Factor of the distance between the two, per update."""
    clip: float = 1.0
    """Largest magnitude of any element of a gradient."""
    end_weight: float = 10.0
    """Weight of the ends among the steps in the loss that predicts them."""

    def __post_init__(self) -> None:
        if min(self.units, self.mixtures, self.batch) < 1 or self.length < 2 or self.passes <= 0:
            raise ValueError(f"need units, mixtures and batch >= 1, length >= 2 and passes > 0, got {self}")
        if (
            not 0 < self.lr_end <= self.lr
            or not 0 < self.decay <= 1
            or self.clip <= 0
            or self.end_weight <= 0
        ):
            raise ValueError(f"need 0 < lr_end <= lr, 0 < decay <= 1, clip and end_weight > 0, got {self}")


@dataclass(frozen=True)
class ControlConfig:
    """C, the linear controller, and how it is evolved."""

    cell: bool = True
    """Whether it sees the LSTM's cell beside its output and the latent."""
    bias: bool = False
    """Whether it has biases."""
    where: Literal["dream", "real"] = "dream"
    """Where it is evolved: in dreams alone, where every step survived is worth 1, or in the environment."""
    temperature: float = 1.15
    """Of the mixtures in dreams: above 1 a dream is less certain than the memory is."""
    length: int = 2100
    """Steps after which a dream is over, or an episode that C is evolved in is broken off."""
    generations: int = 1800
    """Of the evolution."""
    population: int = 64
    """Controllers in a generation; an even number, half of which meet the same seeds as the other half."""
    rollouts: int = 16
    """Episodes whose mean is a controller's fitness."""
    sigma: float = 0.1
    """Standard deviation of the first generation."""
    test_every: int = 25
    """Generations between tests of the distribution's mean; the best mean is what remains."""
    test_rollouts: int = 1024
    """Episodes of a test."""

    def __post_init__(self) -> None:
        counts = self.length, self.generations, self.rollouts, self.test_every, self.test_rollouts
        if min(counts) < 1 or self.sigma <= 0 or self.temperature <= 0:
            raise ValueError(
                f"need length, generations, rollouts, test_every, test_rollouts, sigma and temperature > 0, got {self}"
            )
        if self.population < 4 or self.population % 2:
            raise ValueError(f"need an even population of at least 4, got {self.population}")


@dataclass(frozen=True)
class CollectConfig:
    """The rollouts that V and M learn from."""

    actions: Literal["held", "networks"] = "held"
    """Random actions, each held for some steps; or random networks, one an episode, which see nothing but noise."""
    hold: int = 10
    """Most steps that an action is held for; drawn uniformly."""
    shortest: int = 100
    """Steps below which an episode is left out."""

    def __post_init__(self) -> None:
        if self.hold < 1 or self.shortest < 1:
            raise ValueError(f"need hold and shortest >= 1, got {self}")


@dataclass(frozen=True)
class Config:
    """World Models: see (V), remember (M), act (C)."""

    latents: int = 64
    """Dimensions of the latent vector z."""
    start: str = ""
    """Directory of a run whose rollouts, V and M this one goes on from: what is recorded and learned here comes on top
    of them, as in the paper's iterative procedure, but by the random policy again, and --steps counts theirs, too. From
    nothing if not given."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    vision: VisionConfig = field(default_factory=VisionConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    control: ControlConfig = field(default_factory=ControlConfig)

    def __post_init__(self) -> None:
        if self.latents < 1:
            raise ValueError(f"need latents >= 1, got {self.latents}")
        if self.control.where == "dream" and not self.memory.ends:
            raise ValueError(
                "a dream is worth the steps that it lasts: with control.where=dream the memory must predict the end "
                "(memory.ends), or choose control.where=real"
            )


# latents, units of the LSTM, depth of the convolutions. 5m is CarRacing's, 6m Doom's; `small` is for a CPU.
SIZES: dict[str, tuple[int, int, int]] = {
    "debug": (4, 8, 2),
    "small": (32, 256, 16),
    "5m": (32, 256, 32),
    "6m": (64, 512, 32),
}


def size(config: Config, name: str) -> Config:
    """The configuration with one of the model sizes in SIZES; nothing but widths changes."""
    if name not in SIZES:
        raise ValueError(f"unknown size {name!r}; choose from {', '.join(SIZES)}")
    latents, units, depth = SIZES[name]
    return dataclasses.replace(
        config,
        latents=latents,
        vision=dataclasses.replace(config.vision, depth=depth),
        memory=dataclasses.replace(config.memory, units=units),
    )
