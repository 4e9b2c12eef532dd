"""A core's part of the forward scan: what is computed of actions before it, and the new deter of a step."""

from typing import Protocol

from torch import Tensor

from fastdream.ops.params import GRU, BlockGRU, Layer, LayerNormGRU
from fastdream.ops.triton.actions import actions
from fastdream.ops.triton.block_product import Normed, block_product, product_tiles
from fastdream.ops.triton.dense_gates import dense_gates
from fastdream.ops.triton.gates import block_gates, gates_tiles
from fastdream.ops.triton.gru_step import gru
from fastdream.ops.triton.planet_step import planet
from fastdream.ops.triton.scan_model import Model, Sizes, Weights
from fastdream.ops.triton.scan_saved import Saved, at


class CoreForward(Protocol):
    """A core with its weights and the memory of its results bound."""

    def base(self) -> Tensor:
        """What stoch's product is added to, [B, T, H]."""
        ...

    def step(self, t: int, deter: Tensor, out: Tensor) -> None:
        """The new deter [B, D] of step t from the old one, whose x is computed."""
        ...


def core_forward(
    model: Model, sizes: Sizes, weights: Weights, action: Tensor, reset: Tensor, saved: Saved
) -> CoreForward:
    """The model's core, its actions [B, T, A] computed."""
    core = model.core
    if isinstance(core, BlockGRU):
        return BlockForward(core, sizes, weights, action, reset, saved)
    clipped, pre = saved.clipped.flatten(0, 1), saved.action.flatten(0, 1)
    actions(action.flatten(0, 1), reset.flatten(), core.inputs, weights.action, clipped, pre, None)
    if isinstance(core, GRU):
        return (PlainForward if core.reset_after else PlanetForward)(core, weights, reset, saved)
    return DenseForward(core, sizes, weights, reset, saved)


class BlockForward:
    """DreamerV3's: hidden layers, then the gates."""

    def __init__(
        self, core: BlockGRU, sizes: Sizes, weights: Weights, action: Tensor, reset: Tensor, saved: Saved
    ) -> None:
        self.core, self.sizes, self.saved = core, sizes, saved
        batch, length, _ = action.shape
        self.first, *self.later = weights.hidden
        assert weights.gates is not None
        self.gates, self.reset = weights.gates, reset.unbind(1)
        self.x = saved.x[..., : 2 * sizes.units].unbind(1)
        self.cut = product_tiles(batch, sizes.deter, sizes.block, self.first.itemsize)
        self.gates_cut = gates_tiles(batch, sizes.deter, sizes.block, self.first.itemsize)

        x = saved.x.flatten(0, 1)[:, 2 * sizes.units :]
        clipped, pre = saved.clipped.flatten(0, 1), saved.action.flatten(0, 1)
        actions(action.flatten(0, 1), reset.flatten(), core.action, weights.action, clipped, pre, x)
        tiles = product_tiles(batch * length, sizes.deter, sizes.block, self.first.itemsize)
        out, of_action = saved.hidden[0].flatten(0, 1), self.first[:, sizes.block + 2 * sizes.units :]
        base = None if core.hidden[0].bias is None else core.hidden[0].bias.expand(batch * length, -1)
        block_product(x, None, self.first[:, :0], x, of_action, base, out, None, "none", tiles)

    def base(self) -> Tensor:
        bias = self.core.stoch.bias
        bias = self.saved.stoch.new_zeros(self.sizes.units) if bias is None else bias
        return bias.expand(*self.saved.stoch.shape)

    def step(self, t: int, deter: Tensor, out: Tensor) -> None:
        block, units = self.sizes.block, self.sizes.units
        own, shared = self.first[:, :block], self.first[:, block : block + 2 * units]
        pre, sums, layer = self.saved.hidden[0][:, t], at(self.saved.hidden_sums[0], t), self.core.hidden[0]
        block_product(deter, self.reset[t], own, self.x[t], shared, pre, pre, sums, layer.norm, self.cut)
        for i, weight in enumerate(self.later, 1):
            normed = Normed(layer, sums, self.cut.n)
            before, layer = pre, self.core.hidden[i]
            pre, sums = self.saved.hidden[i][:, t], at(self.saved.hidden_sums[i], t)
            base = _bias_rows(layer, before)
            block_product(before, None, weight, None, None, base, pre, sums, layer.norm, self.cut, normed)
        block_gates(
            pre,
            sums,
            layer.scale,
            layer.shift,
            self.gates,
            self.core.gates.bias,
            deter,
            self.reset[t],
            out,
            self.saved.gates[:, t],
            layer.norm,
            layer.act,
            layer.eps,
            self.cut.n,
            self.gates_cut,
        )


class DenseForward:
    """DreamerV2's: one product of input and deter for all gates, normed together."""

    def __init__(
        self, core: LayerNormGRU, sizes: Sizes, weights: Weights, reset: Tensor, saved: Saved
    ) -> None:
        self.core, self.saved, self.reset = core, saved, reset.unbind(1)
        weight = weights.hidden[0].t()[None]
        self.shared, self.own = weight[:, : sizes.units], weight[:, sizes.units :]
        self.cut = product_tiles(len(reset), 3 * sizes.deter, 3 * sizes.deter, weight.itemsize)

    def base(self) -> Tensor:
        return self.saved.action

    def step(self, t: int, deter: Tensor, out: Tensor) -> None:
        layer = self.core.gates
        pre, sums, x = self.saved.hidden[0][:, t], at(self.saved.hidden_sums[0], t), self.saved.x[:, t]
        base = _bias_rows(layer, deter)
        block_product(deter, self.reset[t], self.own, x, self.shared, base, pre, sums, layer.norm, self.cut)
        dense_gates(pre, sums, layer, deter, self.reset[t], out, self.cut.n)


class PlainForward:
    """DreamerV1's: products and gates of a step in one kernel."""

    def __init__(self, core: GRU, weights: Weights, reset: Tensor, saved: Saved) -> None:
        (of_x, of_deter), self.saved, self.reset = weights.hidden, saved, reset.unbind(1)
        self.maps = of_x, of_deter, core.bias_ih, core.bias_hh

    def base(self) -> Tensor:
        return self.saved.action

    def step(self, t: int, deter: Tensor, out: Tensor) -> None:
        x, gates = self.saved.x[:, t], self.saved.gates[:, t]
        gru(deter, self.reset[t], x, *self.maps, out, gates)


class PlanetForward(PlainForward):
    """PlaNet's: the gates, then the product that one of them comes before."""

    def step(self, t: int, deter: Tensor, out: Tensor) -> None:
        x, gates = self.saved.x[:, t], self.saved.gates[:, t]
        kept, passed = gates.chunk(2, -1)
        planet(deter, self.reset[t], x, *self.maps, passed, kept, out)


def _bias_rows(layer: Layer, like: Tensor) -> Tensor | None:
    """The bias of a layer as rows, as many as `like` has."""
    return None if layer.bias is None else layer.bias.expand(like.shape[0], -1)
