"""A core's part of the gradients after a backward scan: of its layers, of the initial deter, of the actions.

Each is computed when it is asked for, and what two of them need once.
"""

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from fastdream.ops.params import GRU, BlockGRU, Layer, Layers
from fastdream.ops.triton.layer_gradients import Pieces, activated, bias_gradient, by_block, first_rows, flat


class CoreGradients(ABC):
    """What all cores have in common."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces = pieces

    @cached_property
    def stoch(self) -> Layer:
        """Of the layer that reads stoch; in the place of its weight, as of all others, of its pre-activations."""
        pieces = self.pieces
        return pieces.through_norm(
            pieces.model.stoch, flat(pieces.saved.stoch), flat(pieces.grads.x[..., -pieces.sizes.units :])
        )

    @property
    def deter(self) -> Tensor:
        """Of the initial deter, [B, D]."""
        return self.pieces.grads.deter

    @property
    def action(self) -> Tensor:
        """Of the actions as the core takes them, [B*T, A]."""
        return self.stoch.weight @ self.pieces.weights.action

    @abstractmethod
    def layers(self, before: Tensor, stoch_before: Tensor) -> Layers:
        """In the order in which `native.params` lists them. before, stoch_before [B*T, N]: what steps began with."""

    def _inputs(self, stoch_before: Tensor) -> Layer:
        """Of the layer on stoch and action side by side."""
        inputs = torch.cat([stoch_before, flat(self.pieces.saved.clipped)], -1)
        return self.stoch._replace(weight=self.stoch.weight.t() @ inputs)


class BlockGradients(CoreGradients):
    """DreamerV3's."""

    @property
    def core(self) -> BlockGRU:
        core = self.pieces.model.core
        assert isinstance(core, BlockGRU)
        return core

    @cached_property
    def own(self) -> Layer:
        """Of the layer that reads deter."""
        pieces, sizes = self.pieces, self.pieces.sizes
        pre, d_n = pieces.saved.stacked[:, :-1, sizes.own :], pieces.grads.x[..., : sizes.units]
        return pieces.through_norm(self.core.deter, flat(pre), flat(d_n))

    @cached_property
    def first(self) -> Layer:
        """Of the first hidden layer."""
        pieces = self.pieces
        return pieces.through_norm(
            self.core.hidden[0], flat(pieces.saved.hidden[0]), flat(pieces.grads.hidden[0])
        )

    @cached_property
    def of_action(self) -> Layer:
        """Of the layer that reads actions."""
        pieces, sizes, layer = self.pieces, self.pieces.sizes, self.core.action
        # The actions' dense map of all blocks as one matrix.
        shared = pieces.weights.hidden[0][:, sizes.block + 2 * sizes.units :].transpose(0, 1).flatten(1)
        return pieces.through_norm(
            layer, flat(pieces.saved.action), self.first.weight @ shared.t(), layer.act
        )

    @property
    def deter(self) -> Tensor:
        pieces = self.pieces
        through_layer = first_rows(self.own.weight, pieces.reset) @ pieces.weights.stacked[pieces.sizes.own :]
        return pieces.grads.deter + through_layer

    @property
    def action(self) -> Tensor:
        return self.of_action.weight @ self.pieces.weights.action

    def layers(self, before: Tensor, stoch_before: Tensor) -> Layers:
        pieces, sizes, blocks = self.pieces, self.pieces.sizes, self.pieces.sizes.blocks
        saved, hidden, read = pieces.saved, [], by_block(before, blocks)
        for i, layer in enumerate(self.core.hidden):
            pre = flat(saved.hidden[i])
            d_hidden = pieces.through_norm(layer, pre, flat(pieces.grads.hidden[i])) if i else self.first
            d_pre, d_weight = by_block(d_hidden.weight, blocks), torch.empty_like(pieces.weights.hidden[i])
            torch.bmm(read.mT, d_pre, out=d_weight[:, : read.shape[-1]])
            if i == 0:
                x = flat(saved.x).t().expand(blocks, -1, -1)
                torch.bmm(x, d_pre, out=d_weight[:, sizes.block :])
            hidden.append(d_hidden._replace(weight=d_weight))
            read = by_block(activated(layer, pre), blocks)
        d_gates = flat(pieces.grads.gates)
        return (
            self.own._replace(weight=self.own.weight.t() @ before),
            self.stoch._replace(weight=self.stoch.weight.t() @ stoch_before),
            self.of_action._replace(weight=self.of_action.weight.t() @ flat(saved.clipped)),
            Layer(torch.bmm(read.mT, by_block(d_gates, blocks)), bias_gradient(self.core.gates, d_gates)),
            *hidden,
        )


class DenseGradients(CoreGradients):
    """DreamerV2's."""

    def layers(self, before: Tensor, stoch_before: Tensor) -> Layers:
        pieces, saved = self.pieces, self.pieces.saved
        (layer,), inputs = pieces.model.hidden, torch.cat([flat(saved.x), before], -1)
        d_gates = pieces.through_norm(layer, flat(saved.hidden[0]), flat(pieces.grads.hidden[0]))
        return self._inputs(stoch_before), d_gates._replace(weight=d_gates.weight.t() @ inputs)


class PlainGradients(CoreGradients):
    """DreamerV1's, whose gates lie as `gru` says."""

    def layers(self, before: Tensor, stoch_before: Tensor) -> Layers:
        width, d_gates = self.pieces.sizes.deter, flat(self.pieces.grads.gates)
        of_input, of_deter = d_gates[:, : 3 * width], d_gates[:, width:]
        bias = d_gates.sum(0, dtype=torch.float32)
        return (
            Layer(of_deter.t() @ before, bias[width:]),
            self._inputs(stoch_before),
            Layer((of_input.t() @ flat(self.pieces.saved.x)).roll(-width, 0), bias[: 3 * width].roll(-width)),
        )


class PlanetGradients(CoreGradients):
    """PlaNet's, whose gates lie as `reset_gradient` says."""

    def layers(self, before: Tensor, stoch_before: Tensor) -> Layers:
        width, d_gates, saved = self.pieces.sizes.deter, flat(self.pieces.grads.gates), self.pieces.saved
        of_deter = torch.empty_like(self.pieces.weights.hidden[1])
        torch.mm(d_gates[:, width:].t(), before, out=of_deter[: 2 * width])
        torch.mm(d_gates[:, :width].t(), flat(saved.gates[..., 3 * width :]), out=of_deter[2 * width :])
        bias = d_gates.sum(0, dtype=torch.float32).roll(-width)
        return (
            Layer(of_deter, bias),
            self._inputs(stoch_before),
            Layer((d_gates.t() @ flat(saved.x)).roll(-width, 0), bias),
        )


def core_gradients(pieces: Pieces) -> CoreGradients:
    """Those of the model's core."""
    core = pieces.model.core
    if isinstance(core, GRU):
        return (PlainGradients if core.reset_after else PlanetGradients)(pieces)
    return (BlockGradients if isinstance(core, BlockGRU) else DenseGradients)(pieces)
