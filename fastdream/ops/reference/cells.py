"""The recurrent cores: DreamerV3's block GRU, DreamerV2's LayerNorm GRU, DreamerV1's GRU.

Each is bound once before a scan: `bind(core, dtype)` casts and slices the weights, `cell.enter(action)`
computes what depends on the action alone (for all time steps at once where actions are known), and
`cell.step(deter, stoch, entered)` is what remains in the loop. Weights are split, not sliced: gradients of the parts
are then joined at once, where each slice's would be filled up with zeros and added to the others'.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.params import GRU, BlockGRU, Core, Layer, LayerNormGRU, Layers
from fastdream.ops.reference.layers import added, cast, dense, grouped_linear, linear, match, norm_act


def _gated(gates: Tensor, deter: Tensor) -> Tensor:
    """The gates that DreamerV2 and V3 share: gates [..., 3D] = reset | cand | update, deter [..., D]."""
    reset, cand, update = gates.chunk(3, -1)
    cand = torch.tanh(torch.sigmoid(reset) * cand)
    return torch.lerp(deter, cand, torch.sigmoid(update - 1))


class BlockCell(NamedTuple):
    """A bound BlockGRU. The hidden layer is one block product of deter and one dense product of the rest."""

    deter: Layer
    stoch: Layer
    action: Layer
    scale: Tensor | None  # [2, H], of the norms of deter and stoch
    shift: Tensor | None
    hidden: Layer  # the norm, activation and bias of the first hidden layer; its weight is in the next three
    of_deter: Tensor  # [g, D / g, D / g]
    of_state: Tensor  # [D, 2H], from the features of deter | stoch
    of_action: Tensor  # [D, H]
    later: Layers
    gates: Layer

    def enter(self, action: Tensor, dense: Callable[[Tensor, Layer], Tensor] = dense) -> Tensor:
        """action [..., A] -> [..., D]: clip to [-1, 1] without cutting the gradient, embed, project."""
        action = action / action.detach().abs().clamp_min(1)
        return linear(dense(action, self.action), self.of_action, self.hidden.bias)

    def step(self, deter: Tensor, stoch: Tensor, entered: Tensor) -> Tensor:
        """deter [B, D], stoch [B, S*C], entered [B, D] -> deter' [B, D]."""
        batch, width = deter.shape
        blocks = self.of_deter.shape[0]
        # Both input layers are normed and activated together, as [B, 2, H].
        state = torch.stack([linear(deter, *self.deter[:2]), linear(stoch, *self.stoch[:2])], 1)
        state = norm_act(state, self.scale, self.shift, self.deter.norm, self.deter.act, self.deter.eps)
        x = added(entered, state.flatten(1), self.of_state)
        grouped = deter.reshape(batch, blocks, width // blocks).transpose(0, 1)  # [g, B, D / g]
        own = grouped_linear(grouped, self.of_deter, None).transpose(0, 1)
        x = (x.view(batch, blocks, width // blocks) + own).reshape(batch, width)
        x = norm_act(x, *self.hidden[2:])
        for layer in self.later:
            x = dense(x, layer)
        x = x.view(batch, blocks, width // blocks).transpose(0, 1)
        x = grouped_linear(x, self.gates.weight, self.gates.bias)  # [g, B, 3D / g]
        return _gated(x, grouped).transpose(0, 1).reshape(batch, width)


def _stacked(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return None if first is None or second is None else torch.stack([first, second])


def _bind_block(core: BlockGRU, dtype: torch.dtype) -> BlockCell:
    deter, stoch, action = (cast(layer, dtype) for layer in core[:3])
    assert deter[4:] == stoch[4:], (deter[4:], stoch[4:])  # one norm, activation and eps for both
    hidden, *later = (cast(layer, dtype) for layer in core.hidden)
    blocks, _, block = hidden.weight.shape
    units = deter.weight.shape[0]
    # Below deter's own rows every block reads the same 3H features: together they are one dense map.
    of_deter, of_rest = hidden.weight.split([block, 3 * units], 1)
    shared = of_rest.transpose(1, 2).reshape(blocks * block, 3 * units)
    of_state, of_action = shared.split([2 * units, units], 1)
    return BlockCell(
        deter=deter,
        stoch=stoch,
        action=action,
        scale=_stacked(deter.scale, stoch.scale),
        shift=_stacked(deter.shift, stoch.shift),
        hidden=hidden,
        of_deter=of_deter,
        of_state=of_state,
        of_action=of_action,
        later=tuple(later),
        gates=cast(core.gates, dtype),
    )


class LayerNormCell(NamedTuple):
    """A bound LayerNormGRU."""

    inputs: Layer  # its weight is in the next two
    of_stoch: Tensor  # [H, S*C]
    of_action: Tensor  # [H, A]
    gates: Layer

    def enter(self, action: Tensor) -> Tensor:
        """action [..., A] -> [..., H]: its part of the input layer."""
        return linear(action, self.of_action, self.inputs.bias)

    def step(self, deter: Tensor, stoch: Tensor, entered: Tensor) -> Tensor:
        """deter [B, D], stoch [B, S*C], entered [B, H] -> deter' [B, D]."""
        x = norm_act(added(entered, stoch, self.of_stoch), *self.inputs[2:])
        x = dense(torch.cat([x, deter], -1), self.gates)
        return _gated(x, deter)


def _split_inputs(inputs: Layer, action_width: int) -> tuple[Tensor, Tensor]:
    """The columns of an input layer that belong to stoch and to action."""
    of_stoch, of_action = inputs.weight.split([inputs.weight.shape[1] - action_width, action_width], 1)
    return of_stoch, of_action


class GRUCell(NamedTuple):
    """A bound GRU."""

    inputs: Layer  # its weight is in the next two
    of_stoch: Tensor  # [H, S]
    of_action: Tensor  # [H, A]
    of_input: Layer  # H -> 3D
    of_deter: Layer  # D -> 3D
    reset_after: bool

    def enter(self, action: Tensor) -> Tensor:
        """action [..., A] -> [..., H]: its part of the input layer."""
        return linear(action, self.of_action, self.inputs.bias)

    def step(self, deter: Tensor, stoch: Tensor, entered: Tensor) -> Tensor:
        """deter [B, D], stoch [B, S], entered [B, H] -> deter' [B, D]."""
        x = norm_act(added(entered, stoch, self.of_stoch), *self.inputs[2:])
        width = deter.shape[-1]
        x_gates, x_cand = linear(x, *self.of_input[:2]).split([2 * width, width], -1)
        if self.reset_after:
            h_gates, h_cand = linear(deter, *self.of_deter[:2]).split([2 * width, width], -1)
            reset, update = torch.sigmoid(x_gates + h_gates).chunk(2, -1)
            cand = torch.tanh(x_cand + reset * h_cand)
        else:
            weight, bias = self.of_deter.weight, self.of_deter.bias
            assert bias is not None
            h_gates = linear(deter, weight[: 2 * width], bias[: 2 * width])
            reset, update = torch.sigmoid(x_gates + h_gates).chunk(2, -1)
            cand = torch.tanh(x_cand + linear(reset * deter, weight[2 * width :], bias[2 * width :]))
        return torch.lerp(cand, deter, update)


Cell = BlockCell | LayerNormCell | GRUCell


def bind(core: Core, dtype: torch.dtype, action_width: int) -> Cell:
    """The core's weights cast to `dtype` and sliced, once for all steps of a scan."""
    if isinstance(core, BlockGRU):
        return _bind_block(core, dtype)
    inputs = cast(core.inputs, dtype)
    split = _split_inputs(inputs, action_width)
    if isinstance(core, LayerNormGRU):
        return LayerNormCell(inputs, *split, cast(core.gates, dtype))
    of_input = cast(Layer(core.weight_ih, core.bias_ih), dtype)
    of_deter = cast(Layer(core.weight_hh, core.bias_hh), dtype)
    return GRUCell(inputs, *split, of_input, of_deter, core.reset_after)


def _single(core: Core, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    cell = bind(core, deter.dtype, action.shape[-1])
    return cell.step(deter, match(stoch, deter.dtype), cell.enter(match(action, deter.dtype)))


def block_gru(core: BlockGRU, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """One step of DreamerV3's core, deter' in deter.dtype.

    deter [B, D], stoch [B, S*C] flat, action [B, A]. With a' = action / sg(max(1, |action|)) and
    x = [dense(deter), dense(stoch), dense(a')] [B, 3H], block k sees u_k = [deter^(k), x] and
    y = hidden(u) (norm over all D), p = gates(y), p^(k) = [reset | cand | update]:
    deter' = u * tanh(sigmoid(reset) * cand) + (1 - u) * deter, u = sigmoid(update - 1).
    x is not repeated for every block: its part of the product is one dense map.
    Source: DreamerV3 `rssm._core`.
    """
    return _single(core, deter, stoch, action)


def layernorm_gru(core: LayerNormGRU, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """One step of DreamerV2's core, deter' in deter.dtype; the action is not clipped.

    deter [B, D], stoch [B, S*C] flat, action [B, A]. x = inputs([stoch, action]); [reset | cand | update] =
    gates([x, deter]) with a LayerNorm over all 3D; then as `block_gru`. Source: DreamerV2 `GRUCell`.
    """
    return _single(core, deter, stoch, action)


def gru(core: GRU, deter: Tensor, stoch: Tensor, action: Tensor) -> Tensor:
    """One step of DreamerV1's core, deter' in deter.dtype; the action is not clipped.

    deter [B, D], stoch [B, S], action [B, A]. x = inputs([stoch, action]), then the GRU in PyTorch's gate
    order reset | update | cand: deter' = update * deter + (1 - update) * tanh(.). reset_after says whether
    the reset gate multiplies the recurrent product (Keras, torch.nn.GRUCell) or the state before it
    (GRUBlockCell). Source: DreamerV1 `RSSM`, PlaNet.
    """
    return _single(core, deter, stoch, action)
