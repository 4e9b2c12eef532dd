"""Small random parameters for the op tests, and what compares results with them."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdream.ops import reference as ops
from fastdream.ops.params import (
    GRU,
    RSSM,
    ActionHead,
    Actor,
    BlockGRU,
    Categorical,
    Gaussian,
    Latent,
    Layer,
    LayerNormGRU,
    Layers,
)

CoreName = Literal["block", "layernorm", "gru", "gru_block_cell"]
D, H, S, C, A, E, BLOCKS, UNITS = 8, 4, 3, 5, 3, 4, 2, 6


class Sizes(NamedTuple):
    """Widths of the small model; the width of actions is always A."""

    deter: int = D
    hidden: int = H
    stoch: int = S
    classes: int = C
    embed: int = E
    blocks: int = BLOCKS
    units: int = UNITS


SMALL = Sizes()


class Maker:
    """Draws parameters and inputs of one dtype from one seed; every tensor is a leaf with gradient."""

    def __init__(
        self,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        sizes: Sizes = SMALL,
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.sizes = dtype, sizes

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64) * scale
        return x.to(self.dtype).requires_grad_()

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float32)

    def index(self, *shape: int, high: int | None = None) -> Tensor:
        high = self.sizes.classes if high is None else high
        return torch.randint(high, shape, generator=self.generator)

    def onehot(self, *shape: int) -> Tensor:
        return torch.eye(self.sizes.classes, dtype=self.dtype)[self.index(*shape)].requires_grad_()

    def layer(self, inp: int, out: int, norm: str = "rms", act: str = "silu", blocks: int = 0) -> Layer:
        shape = (blocks, inp // blocks, out // blocks) if blocks else (out, inp)
        weight = self.normal(*shape, scale=max(1, inp / max(1, blocks)) ** -0.5)
        scale = None if norm == "none" else (1 + self.normal(out, scale=0.1)).detach().requires_grad_()
        shift = self.normal(out, scale=0.1) if norm == "layer" else None
        eps = 1e-3 if norm == "layer" else 1e-4
        return Layer(weight, self.normal(out, scale=0.1), scale, shift, norm, act, eps)

    def core(self, name: CoreName, stoch: int | None = None, later: int = 0) -> BlockGRU | LayerNormGRU | GRU:
        D, H, S, C, _, BLOCKS, _ = self.sizes
        stoch = S * C if stoch is None else stoch
        if name == "block":
            first = self.layer(D + BLOCKS * 3 * H, D, blocks=BLOCKS)
            hidden = (first, *(self.layer(D, D, blocks=BLOCKS) for _ in range(later)))
            gates = self.layer(D, 3 * D, "none", "none", BLOCKS)
            return BlockGRU(self.layer(D, H), self.layer(stoch, H), self.layer(A, H), hidden, gates)
        if name == "layernorm":
            inputs = self.layer(stoch + A, H, "layer", "elu")
            return LayerNormGRU(inputs, self.layer(H + D, 3 * D, "layer", "none"))
        maps = [self.normal(3 * D, H, scale=0.5), self.normal(3 * D, D, scale=0.4)]
        biases = [self.normal(3 * D, scale=0.1), self.normal(3 * D, scale=0.1)]
        return GRU(self.layer(stoch + A, H, "none", "elu"), *maps, *biases, name == "gru")

    def rssm(self, core: CoreName = "block", latent: Latent | None = None, absolute: bool = False) -> RSSM:
        D, H, S, C, E, _, _ = self.sizes
        latent = Categorical(S, C, 0.01) if latent is None else latent
        discrete = isinstance(latent, Categorical)
        width, out = (S * C, S * C) if discrete else (S, 2 * S)
        prior = (self.layer(D, H), self.layer(H, out, "none", "none"))
        seen = E if absolute else D + E
        post = (self.layer(seen, H), self.layer(H, H), self.layer(H, out, "none", "none"))
        return RSSM(self.core(core, width), latent, prior, post, absolute)

    def actor(self, feat: int | None = None) -> Actor:
        """A = 3: one continuous scalar, then one discrete element of two classes."""
        D, _, S, C, _, _, UNITS = self.sizes
        feat = D + S * C if feat is None else feat
        bounded = (self.layer(UNITS, 1, "none", "none"), self.layer(UNITS, 1, "none", "none"))
        logits = (self.layer(UNITS, 2, "none", "none"),)
        heads = (ActionHead("bounded_normal", 1, 0, bounded), ActionHead("categorical", 1, 2, logits, 0.01))
        return Actor((self.layer(feat, UNITS), self.layer(UNITS, UNITS)), heads)

    def state(self, batch: int, latent: Latent | None = None) -> tuple[Tensor, Tensor]:
        D, S = self.sizes.deter, self.sizes.stoch
        stoch = self.normal(batch, S) if isinstance(latent, Gaussian) else self.onehot(batch, S)
        return self.normal(batch, D, scale=0.5), stoch


def chain(make: Maker, *widths: int, norm: str = "rms", act: str = "silu", linear: bool = True) -> Layers:
    """Layers of these widths, the last one linear or like the others."""
    layers = [make.layer(a, b, norm, act) for a, b in zip(widths, widths[1:], strict=False)]
    if linear:
        layers[-1] = make.layer(widths[-2], widths[-1], "none", "none")
    return tuple(layers)


def mapped(fn: Callable[[Tensor], Any], tree: Any) -> Any:
    """The same nested tuples with fn applied to every tensor."""
    if isinstance(tree, Tensor):
        return fn(tree)
    if isinstance(tree, tuple):
        items = [mapped(fn, item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)
    return tree


def leaves(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, in order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple):
        for item in tree:
            yield from leaves(item)


def rebuilt(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """`tree` with its tensors replaced, in the order of `leaves`."""
    return mapped(lambda _: next(tensors), tree)


def arrays(tree: Any) -> Any:
    """Nested tuples of tensors as nested tuples of float64 NumPy arrays."""
    return mapped(lambda x: x.detach().to(torch.float64).numpy(), tree)


def gradcheck(fn: Callable[..., Any], *trees: Any, fast: bool = False) -> bool:
    """torch.autograd.gradcheck of fn(*trees) with respect to every float64 leaf in the nested tuples.

    fast: along random directions instead of entry by entry.
    """
    inputs = [x.detach().clone().requires_grad_() for x in leaves(trees)]
    return torch.autograd.gradcheck(lambda *flat: fn(*rebuilt(trees, iter(flat))), inputs, fast_mode=fast)


def worst(got: Any, want: Any) -> float:
    """Largest difference over all entries, relative to the largest entry."""
    got = got.detach().to(torch.float64).numpy() if isinstance(got, Tensor) else np.asarray(got)
    want = want.detach().to(torch.float64).numpy() if isinstance(want, Tensor) else np.asarray(want)
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(np.abs(got - want).max() / max(1e-6, np.abs(want).max()))


def _gated(gates: Tensor, deter: Tensor) -> Tensor:
    reset, cand, update = gates.unbind(-2)
    cand, update = torch.tanh(torch.sigmoid(reset) * cand), torch.sigmoid(update - 1)
    return update * cand + (1 - update) * deter


def plain_form(core: BlockGRU | LayerNormGRU | GRU, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """The cores as the papers draw them, in deter's dtype: inputs concatenated, and repeated for blocks."""
    if isinstance(core, BlockGRU):
        action = action / action.detach().abs().clamp_min(1)
        feats = [ops.dense(deter, core.deter), ops.dense(stoch, core.stoch), ops.dense(action, core.action)]
        shared = torch.cat(feats, -1)[:, None].expand(-1, BLOCKS, -1)
        x = torch.cat([deter.unflatten(-1, (BLOCKS, -1)), shared], -1).flatten(1)
        gates = ops.dense(ops.mlp(x, core.hidden), core.gates)
        return _gated(gates.unflatten(-1, (BLOCKS, 3, -1)), deter.unflatten(-1, (BLOCKS, -1))).flatten(1)
    x = ops.dense(torch.cat([stoch, action], -1), core.inputs)
    if isinstance(core, LayerNormGRU):
        return _gated(ops.dense(torch.cat([x, deter], -1), core.gates).unflatten(-1, (3, -1)), deter)
    return torch.gru_cell(x, deter, *(weight.to(deter.dtype) for weight in core[1:5]))


def safe_noise(logit: Tensor, unimix: float, index: Tensor) -> Tensor:
    """Uniform numbers in the middle of what draws these classes."""
    cdf = ops.unimix_log_probs(logit.detach(), unimix).exp().cumsum(-1)
    high = cdf.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    low = torch.cat([torch.zeros_like(cdf[..., :1]), cdf], -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    return ((low + high) / 2).float()
