"""Recurrent cores: the deterministic path of a world model, deter' = core(deter, stoch, action).

A core owns its parameters, hands them to the ops as `params`, and knows nothing of latents, agents or losses.
"""

import math

import torch
from torch import nn

from fastdream import ops as fd
from fastdream.nets import Dense, layers_of
from fastdream.ops import Ops


class BlockGRU(nn.Module):
    """DreamerV3's block GRU (Hafner et al. 2025, appendix on the sequence model).

    deter [B, D] is split into `blocks` blocks; each sees its own part and the projections (width H = hidden) of
    the whole deter, of stoch and of the action; one RMSNorm over all of D is what couples the blocks.
    """

    def __init__(
        self,
        ops: Ops,
        deter: int,
        stoch_width: int,
        action_width: int,
        *,
        hidden: int,
        blocks: int = 8,
        layers: int = 1,
        norm: fd.Norm = "rms",
        act: fd.Act = "silu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if blocks < 1 or deter % blocks:
            raise ValueError(f"deter={deter} is not divisible by blocks={blocks}; choose a multiple")
        if layers < 1:
            raise ValueError(f"the block GRU needs at least one hidden layer, got dynlayers={layers}")
        self.deter = deter

        def dense(inp: int, out: int, blocks: int = 0) -> Dense:
            return Dense(ops, inp, out, norm=norm, act=act, blocks=blocks, generator=generator)

        self.dynin0 = dense(deter, hidden)
        self.dynin1 = dense(stoch_width, hidden)
        self.dynin2 = dense(action_width, hidden)
        width = deter + 3 * hidden * blocks
        self.dynhid = nn.ModuleList(
            dense(width if i == 0 else deter, deter, blocks=blocks) for i in range(layers)
        )
        self.dyngru = Dense(ops, deter, 3 * deter, blocks=blocks, generator=generator)

    @property
    def params(self) -> fd.BlockGRU:
        hidden = layers_of(self.dynhid)
        return fd.BlockGRU(self.dynin0.layer, self.dynin1.layer, self.dynin2.layer, hidden, self.dyngru.layer)


class LayerNormGRU(nn.Module):
    """DreamerV2's GRU: one product for all gates, LayerNorm over them, update bias -1 (Hafner et al. 2021)."""

    def __init__(
        self,
        ops: Ops,
        deter: int,
        stoch_width: int,
        action_width: int,
        *,
        hidden: int,
        norm: fd.Norm = "none",
        act: fd.Act = "elu",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.deter = deter
        self.inputs = Dense(ops, stoch_width + action_width, hidden, norm=norm, act=act, generator=generator)
        self.gates = Dense(ops, hidden + deter, 3 * deter, norm="layer", eps=1e-3, generator=generator)

    @property
    def params(self) -> fd.LayerNormGRU:
        return fd.LayerNormGRU(self.inputs.layer, self.gates.layer)


class GRU(nn.Module):
    """DreamerV1's plain GRU (Hafner et al. 2020), in both published forms: see `ops.params.GRU.reset_after`."""

    def __init__(
        self,
        ops: Ops,
        deter: int,
        stoch_width: int,
        action_width: int,
        *,
        hidden: int,
        act: fd.Act = "elu",
        reset_after: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.deter, self.reset_after = deter, reset_after
        self.inputs = Dense(ops, stoch_width + action_width, hidden, act=act, generator=generator)
        self.weight_ih = nn.Parameter(torch.empty(3 * deter, hidden))
        self.weight_hh = nn.Parameter(torch.empty(3 * deter, deter))
        self.bias_ih = nn.Parameter(torch.zeros(3 * deter))
        self.bias_hh = nn.Parameter(torch.zeros(3 * deter))
        with torch.no_grad():
            (self._as_keras if reset_after else self._as_block_cell)(generator)

    def _as_keras(self, generator: torch.Generator | None) -> None:
        limit = math.sqrt(6 / sum(self.weight_ih.shape))
        self.weight_ih.uniform_(-limit, limit, generator=generator)
        nn.init.orthogonal_(self.weight_hh, generator=generator)

    def _as_block_cell(self, generator: torch.Generator | None) -> None:
        """One matrix of input and state for both gates, whose biases are 1, and another for candidates."""
        gates, inputs = 2 * self.deter, self.weight_ih.shape[1] + self.deter
        for weight in (self.weight_ih, self.weight_hh):
            for rows in weight.split([gates, self.deter]):
                limit = math.sqrt(6 / (inputs + len(rows)))
                rows.uniform_(-limit, limit, generator=generator)
        self.bias_ih[:gates] = 1

    @property
    def params(self) -> fd.GRU:
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        return fd.GRU(self.inputs.layer, *weights, reset_after=self.reset_after)
