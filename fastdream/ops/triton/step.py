"""A step of the latent state as four launches: the core's two, the products of the new deter, and the tail.

DreamerV1's core is one.
"""

from typing import NamedTuple, Self

import torch
import triton
from torch import Tensor

from fastdream.ops.params import GRU, Actor, BlockGRU, Core, Latent, Layers
from fastdream.ops.triton import library
from fastdream.ops.triton.block_product import Tiles, block_product, product_tiles
from fastdream.ops.triton.config import TailCut, tail_cut
from fastdream.ops.triton.core import BlockStep, DenseStep, PlainStep, PlanetStep, Step
from fastdream.ops.triton.library import launch
from fastdream.ops.triton.packing import Packer, part
from fastdream.ops.triton.parts import in_parts
from fastdream.ops.triton.tail import tail_kernel
from fastdream.ops.triton.tail_layers import Tail, bind_tail, deter_width

ROWS = 16  # of a program of the tail: the least that tensor cores take
FUSED = 512  # widest layers of a tail that is one kernel


class Draws(NamedTuple):
    """What the tail reads and writes of time steps, [n, times, ...] without gaps."""

    noise: Tensor | None  # [n, length, S] uniform, or normal where the latent is
    given: Tensor | None  # [n, length, S], classes instead of draws
    index: Tensor  # type: ignore[assignment]  # [n, length, S], of normals [n, length, 0]
    logit: Tensor  # [n, length, S, C] or [n, length, 2S]
    stoch: Tensor  # [n, states, S, C] or [n, states, S], of which the last `length` are drawn
    action_noise: Tensor | None  # [n, actions, M]; None takes the most likely action
    action: Tensor  # [n, actions, A] float32


class StepKernels(NamedTuple):
    """Parameters and memory for the steps of so many rows."""

    core: Step
    tail: Tail
    cut: TailCut
    weights: Tensor
    vectors: Tensor
    of_deter: Tensor  # [1, D, columns]
    base: Tensor  # [n, columns]
    tiles: Tiles
    product: Tensor  # [n, columns]
    hidden: Tensor  # [2, n, wide]
    outs: Tensor  # [n, outputs of all heads]
    x: Tensor  # [n, inputs of the core]
    entered: Tensor  # [n, units of the core's layer on stoch], if the tail is in parts

    @classmethod
    def bind(
        cls,
        core: Core,
        latent: Latent,
        net: Layers,
        actor: Actor | None,
        width: int,
        deter: Tensor,
        more: Layers = (),
    ) -> tuple[Self, Layers]:
        """net: from deter, and perhaps more, to logits. actor: None where actions [width] are given. deter [n, D].

        Returns also the layers `more`, packed with the others.
        """
        rows, itemsize, capability = len(deter), deter.element_size(), library.capability(deter.device)
        packer = Packer(tail_cut(capability, itemsize), itemsize)
        tail, shared = bind_tail(packer, latent, net, core, actor, width)
        places = [packer.place(layer) for layer in more]
        if isinstance(core, GRU):
            places += packer.plain(core)
        else:
            hidden = core.hidden if isinstance(core, BlockGRU) else ()
            places += [packer.place(layer) for layer in (*hidden, core.gates)]
        packed = packer.pack(deter.dtype, deter.device)
        found = tuple(place.layer_in(*packed) for place in places)
        columns = tail.columns[2]
        of_deter = part(packed[0], shared.weight, columns, deter_width(core))
        empty = deter.new_empty
        kernels = cls(
            _core(core, found[len(more) :], rows),
            tail,
            packer.cut,
            *packed,
            of_deter.t().unsqueeze(0),
            part(packed[1], shared.bias, columns).expand(rows, columns),
            product_tiles(rows, columns, columns, itemsize),
            empty(rows, columns),
            empty(2, rows, tail.wide),
            empty(rows, sum(row.out for row in tail.out), dtype=torch.float32),
            empty(rows, tail.inputs),
            empty(rows if tail.wide > FUSED else 0, tail.enter.out),
        )
        return kernels, found[: len(more)]

    def project(self, deter: Tensor, reset: Tensor | None = None) -> None:
        """Multiply deter [n, D], zero where reset [n], by what all its readers need."""
        block_product(
            deter, reset, self.of_deter, None, None, self.base, self.product, None, "none", self.tiles
        )

    def finish(
        self,
        draws: Draws,
        time: int,
        at: int,
        *,
        start: Tensor | None = None,
        embed: Tensor | None = None,
        reset: Tensor | None = None,
        acts: bool = True,
        enter: bool = True,
    ) -> None:
        """The tail: stoch is drawn for `time`, unless it is `start` [n, S*C]; if the actor acts, its action `at` that
        time; if another step will follow, its core's inputs, of which start and action are zero where reset [n].

        embed [n, U]: what more the first layer before the logits sees.
        """
        if self.tail.wide > FUSED:
            in_parts(self, draws, time, at, start, embed, reset, acts, enter)
            return
        rows, length, _ = draws.index.shape
        inputs = self.product, embed, start, reset, self.hidden, self.outs, self.x, self.weights, self.vectors
        launch(
            tail_kernel,
            (triton.cdiv(rows, ROWS),),
            *inputs,
            *draws,
            rows,
            time,
            length,
            draws.stoch.shape[1],
            draws.action.shape[1],
            at,
            TAIL=self.tail,
            ACT=acts,
            ENTER=enter,
            BM=ROWS,
            num_warps=self.cut.warps,
            num_stages=self.cut.stages,
        )


def _core(core: Core, layers: Layers, rows: int) -> Step:
    if isinstance(core, GRU):
        of_x, of_deter = layers
        return PlainStep(of_x, of_deter) if core.reset_after else PlanetStep.bind(of_x, of_deter, rows)
    *hidden, gates = layers
    return BlockStep.bind(tuple(hidden), gates, rows) if hidden else DenseStep.bind(gates, rows)
