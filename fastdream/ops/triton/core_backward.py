"""A core's part of the backward scan: from the gradient of a step's new deter to those of what the step reads."""

from typing import Protocol

from torch import Tensor

from fastdream.ops.params import GRU, BlockGRU, Layer, LayerNormGRU
from fastdream.ops.triton.block_product import Tiles, piece, product_tiles, split_warps
from fastdream.ops.triton.dense_gates_gradient import dense_gates_gradient
from fastdream.ops.triton.gates_gradient import block_gates_gradient
from fastdream.ops.triton.gru_gradient import gru_gradient
from fastdream.ops.triton.layer_gradient import layer_gradient
from fastdream.ops.triton.reset_gradient import reset_gradient
from fastdream.ops.triton.rowwise_gradient import Later, empty_dots
from fastdream.ops.triton.scan_model import Model, Sizes, Weights
from fastdream.ops.triton.scan_saved import Grads, Saved, at, hidden_tile
from fastdream.ops.triton.state_gradient import state_gradient


class CoreBackward(Protocol):
    """A core with its weights and the memory of its gradients bound."""

    stoch: Later | None  # the layer of the step after that reads stoch, None at the last step

    def step(self, t: int, deter: Tensor, given: Tensor | None, post: Later) -> None:
        """Back through step t, whose old deter this is; post: the posterior's first layer."""
        ...


def core_backward(
    model: Model, sizes: Sizes, weights: Weights, reset: Tensor, saved: Saved, grads: Grads
) -> CoreBackward:
    dense = PlainBackward if isinstance(model.core, GRU) else DenseBackward
    return (BlockBackward if isinstance(model.core, BlockGRU) else dense)(
        model, sizes, weights, reset, saved, grads
    )


def gradient_tiles(rows: int, width: int, segment: int, itemsize: int) -> Tiles:
    """Tiles of products whose first operand is made of two tensors while it is loaded."""
    tiles = product_tiles(min(rows, 16), width, segment, itemsize)
    tiles = tiles._replace(
        n=min(tiles.n, 128 // itemsize)
    )  # of float32 a program's registers hold half as much
    # Of many columns pieces are half as long: with more, DreamerV2's core at 400m ran out of registers.
    most, warps = (256 if tiles.n * itemsize >= 128 else 512) // itemsize, split_warps(segment)
    k = piece(most, most, tiles.n, itemsize, warps)
    return tiles._replace(k=k, warps=warps, split=warps, stages=3)


class BlockBackward:
    """DreamerV3's."""

    def __init__(
        self, model: Model, sizes: Sizes, weights: Weights, reset: Tensor, saved: Saved, grads: Grads
    ) -> None:
        assert isinstance(model.core, BlockGRU) and weights.gates is not None
        self.model, self.core, self.sizes, self.weights = model, model.core, sizes, weights
        self.reset, self.saved, self.grads = reset, saved, grads
        rows, itemsize = len(reset), weights.stacked.itemsize
        self.tile = hidden_tile(sizes, sizes.deter, rows, itemsize)
        self.cut = gradient_tiles(rows, sizes.deter, sizes.block, itemsize)
        self.state_cut = gradient_tiles(rows, sizes.deter + 2 * sizes.units, sizes.block, itemsize)
        self.of_gates = weights.gates.transpose(1, 2)
        like, tiles = weights.stacked, sizes.blocks * -(-sizes.block // self.cut.n)
        self.dots = [empty_dots(like, rows, tiles, layer.norm) for layer in self.core.hidden]
        x_tiles = -(-sizes.units // self.state_cut.n)
        self.x_dots = [empty_dots(like, rows, x_tiles, self.core.stoch.norm) for _ in range(2)]
        self.own: Later | None = None
        self.stoch: Later | None = None

    def step(self, t: int, deter: Tensor, given: Tensor | None, post: Later) -> None:
        saved, grads, reset, units = self.saved, self.grads, self.reset[:, t], self.sizes.units
        block_gates_gradient(
            given,
            grads.deter,
            self.weights.stacked,
            (self.model.post[0], self.core.deter),
            post,
            self.own,
            self.sizes.own,
            saved.gates[:, t],
            deter,
            grads.gates[:, t],
            self.sizes.blocks,
            self.sizes.tile,
            self.cut,
        )
        hidden = self._hidden(t)
        b_x = grads.x[:, t]
        own = saved.stacked[:, t, self.sizes.own :]
        self.own = Later(b_x[:, :units], own, at(saved.own_sums, t), self.x_dots[0], reset)
        self.stoch = Later(b_x[:, units:], saved.stoch[:, t], at(saved.stoch_sums, t), self.x_dots[1], reset)
        block = self.sizes.block
        state_gradient(
            self.weights.hidden[0][:, :block],
            self.weights.hidden[0][:, block:],
            self.core.hidden[0],
            hidden,
            grads.deter,
            self.own,
            self.core.deter,
            self.stoch,
            self.core.stoch,
            b_x,
            self.sizes.blocks,
            self.tile,
            self.state_cut,
        )

    def _hidden(self, t: int) -> Later:
        """Back through the gates' product and all hidden layers but the first, which is returned."""
        later, gradient, weight = None, self.grads.gates[:, t], self.of_gates
        for i in reversed(range(len(self.core.hidden))):
            layer, b_hidden = self.core.hidden[i], self.grads.hidden[i][:, t]
            pre, sums = self.saved.hidden[i][:, t], at(self.saved.hidden_sums[i], t)
            up = self.core.hidden[i + 1] if later else None
            layer_gradient(
                gradient,
                weight,
                pre,
                sums,
                layer,
                b_hidden,
                self.dots[i],
                self.tile,
                self.cut,
                later,
                up,
                self.tile,
            )
            later = Later(b_hidden, pre, sums, self.dots[i], self.reset[:, t])
            gradient, weight = b_hidden, self.weights.hidden[i].transpose(1, 2)
        assert later is not None
        return later


class DenseBackward:
    """DreamerV2's."""

    def __init__(
        self, model: Model, sizes: Sizes, weights: Weights, reset: Tensor, saved: Saved, grads: Grads
    ) -> None:
        assert isinstance(model.core, LayerNormGRU)
        self.model, self.core, self.sizes, self.weights = model, model.core, sizes, weights
        self.reset, self.saved, self.grads = reset, saved, grads
        rows, itemsize = len(reset), weights.stacked.itemsize
        self.tile = hidden_tile(sizes, 3 * sizes.deter, rows, itemsize)
        self.cut = gradient_tiles(rows, sizes.deter, sizes.deter, itemsize)
        self.state_cut = gradient_tiles(rows, sizes.deter + sizes.units, sizes.deter, itemsize)
        like = weights.stacked
        self.dots = empty_dots(like, rows, 3 * -(-sizes.deter // self.cut.n), self.core.gates.norm)
        self.x_dots = empty_dots(like, rows, -(-sizes.units // self.state_cut.n), self.core.inputs.norm)
        self.stoch: Later | None = None

    def step(self, t: int, deter: Tensor, given: Tensor | None, post: Later) -> None:
        saved, grads, reset, gates = self.saved, self.grads, self.reset[:, t], self.core.gates
        pre, sums, b_gates, b_x = (
            saved.hidden[0][:, t],
            at(saved.hidden_sums[0], t),
            grads.hidden[0][:, t],
            grads.x[:, t],
        )
        dense_gates_gradient(
            given,
            grads.deter,
            self.weights.stacked,
            self.model.post[0],
            post,
            self.sizes.tile,
            gates,
            pre,
            sums,
            self.tile,
            deter,
            b_gates,
            self.dots,
            self.cut,
        )
        self.stoch = Later(b_x, saved.stoch[:, t], at(saved.stoch_sums, t), self.x_dots, reset)
        weight = self.weights.hidden[0].t()[None]
        state_gradient(
            weight[:, self.sizes.units :],
            weight[:, : self.sizes.units],
            gates,
            Later(b_gates, pre, sums, self.dots, reset),
            grads.deter,
            None,
            None,
            self.stoch,
            self.core.inputs,
            b_x,
            1,
            self.tile,
            self.state_cut,
        )


class PlainBackward:
    """DreamerV1's and PlaNet's, whose gradient of deter comes by the reset and update gates and, after or before the
    reset gate, by the candidate's product.
    """

    def __init__(
        self, model: Model, sizes: Sizes, weights: Weights, reset: Tensor, saved: Saved, grads: Grads
    ) -> None:
        assert isinstance(model.core, GRU)
        self.model, self.core, self.sizes, self.weights = model, model.core, sizes, weights
        self.reset, self.saved, self.grads = reset, saved, grads
        rows, itemsize = len(reset), weights.stacked.itemsize
        of_x, of_deter = weights.hidden
        self.of_cand, after = of_deter[2 * sizes.deter :], self.core.reset_after
        self.of_x, self.of_deter = of_x.t()[None], of_deter[: (3 if after else 2) * sizes.deter].t()[None]
        self.cut = gradient_tiles(rows, sizes.deter, sizes.deter, itemsize)
        self.state_cut = gradient_tiles(rows, sizes.deter + sizes.units, sizes.deter, itemsize)
        x_tiles = -(-sizes.units // self.state_cut.n)
        self.x_dots = empty_dots(weights.stacked, rows, x_tiles, self.core.inputs.norm)
        self.stoch: Later | None = None

    def step(self, t: int, deter: Tensor, given: Tensor | None, post: Later) -> None:
        saved, grads, reset = self.saved, self.grads, self.reset[:, t]
        gates, b_gates, b_x = saved.gates[:, t], grads.gates[:, t], grads.x[:, t]
        first, tile = self.model.post[0], self.sizes.tile
        carried = given, grads.deter, self.weights.stacked, first, post, tile
        gru_gradient(*carried, gates, deter, b_gates, self.cut, self.core.reset_after)
        if not self.core.reset_after:
            reset_gradient(grads.deter, self.of_cand, reset, gates, deter, b_gates, self.cut)
        self.stoch = Later(b_x, saved.stoch[:, t], at(saved.stoch_sums, t), self.x_dots, reset)
        state_gradient(
            self.of_deter,
            self.of_x,
            Layer(self.of_deter),
            Later(b_gates, gates, None, None, reset),
            grads.deter,
            None,
            None,
            self.stoch,
            self.core.inputs,
            b_x,
            1,
            1,
            self.state_cut,
            skipped=self.sizes.deter,
        )
