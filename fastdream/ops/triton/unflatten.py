"""Parameters out of the flat lists that `fastdream.ops.native.params` makes: an op of torch.library takes no others."""

from collections.abc import Iterator

from torch import Tensor

from fastdream.ops.native.actor import HEADS
from fastdream.ops.native.params import ACTS, CORES, NORMS, STD_FORMS, Flat, latent_shape, with_gaps
from fastdream.ops.params import (
    GRU,
    ActionHead,
    Actor,
    BlockGRU,
    Categorical,
    Core,
    Gaussian,
    Latent,
    Layer,
    LayerNormGRU,
    Layers,
)


def add_latent(flat: Flat, op: str, latent: Latent) -> None:
    """Append a latent."""
    shape = latent_shape(op, latent)
    flat.sizes.extend(shape[:3])
    flat.scalars.extend(shape[3:])


def latent_of(stoch: int, classes: int, form: int, unimix: float, min_std: float) -> Latent:
    """That of which `latent_shape` made these."""
    if classes:
        return Categorical(stoch, classes, unimix)
    return Gaussian(stoch, min_std, STD_FORMS[form])  # type: ignore[arg-type]


class Reader:
    """Reads what was appended, in the same order."""

    def __init__(
        self, tensors: list[Tensor], filled: list[int], sizes: list[int], scalars: list[float]
    ) -> None:
        self._tensors: Iterator[Tensor | None] = iter(with_gaps(tensors, filled))
        self._sizes, self._scalars = iter(sizes), iter(scalars)

    def scalar(self) -> float:
        return next(self._scalars)

    def latent(self) -> Latent:
        """Of `add_latent`."""
        stoch, classes, form = (next(self._sizes) for _ in range(3))
        return latent_of(stoch, classes, form, self.scalar(), self.scalar())

    def layer(self) -> Layer:
        """Of `add_layer`."""
        weight, bias, scale, shift = (next(self._tensors) for _ in range(4))
        _, _, _, norm, act = (next(self._sizes) for _ in range(5))
        assert weight is not None
        return Layer(weight, bias, scale, shift, NORMS[norm], ACTS[act], self.scalar())  # type: ignore[arg-type]

    def layers(self) -> Layers:
        """Of `add_layers`."""
        return tuple(self.layer() for _ in range(next(self._sizes)))

    def core(self) -> Core:
        """Of `add_core`."""
        name = CORES[next(self._sizes)]
        if name == "layernorm_gru":
            return LayerNormGRU(self.layer(), self.layer())
        if name != "block_gru":
            of_deter, inputs, of_input = (self.layer() for _ in range(3))
            assert of_input.bias is not None and of_deter.bias is not None
            maps, biases = (of_input.weight, of_deter.weight), (of_input.bias, of_deter.bias)
            return GRU(inputs, *maps, *biases, name == "gru")
        deter, stoch, action, gates = (self.layer() for _ in range(4))
        return BlockGRU(deter, stoch, action, self.layers(), gates)

    def actor(self) -> Actor:
        """Of `add_actor`."""
        layers = self.layers()
        return Actor(layers, tuple(self._head() for _ in range(next(self._sizes))))

    def _head(self) -> ActionHead:
        kind, elements, classes, outs = (next(self._sizes) for _ in range(4))
        numbers = [self.scalar() for _ in range(4)]
        out = tuple(self.layer() for _ in range(outs))
        return ActionHead(HEADS[kind], elements, classes, out, *numbers)  # type: ignore[arg-type]
