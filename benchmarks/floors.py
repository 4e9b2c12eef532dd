"""The least work and traffic that a computation can come down to; what is timed is held against it.

FLOPs    of matrix products and convolutions as the architecture is written, two for a multiply-add; all else is free.
         Products with one-hots count as products.
bytes    what must come from memory and go there once, as if a cache held everything in between.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastdream.agents.dreamer_v3 import DreamerV3
from fastdream.agents.dreamer_v3_nets import Networks
from fastdream.convs import Conv
from fastdream.ops import RSSM, Actor


class Floor(NamedTuple):
    """FLOPs, and bytes to and from memory."""

    flops: int
    bytes: int


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dictionaries."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from tensors(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors(item)


def nbytes(tree: Any) -> int:
    """Bytes of all tensors, each counted once."""
    return sum({id(x): x.numel() * x.element_size() for x in tensors(tree)}.values())


def forward(inputs: Any, outputs: Any, flops: int) -> Floor:
    """Inputs are read, outputs written."""
    return Floor(flops, nbytes(inputs) + nbytes(outputs))


def forward_backward(inputs: Any, outputs: Any, flops: int) -> Floor:
    """Then the outputs' gradients are read and those of the inputs that want one written, for twice the FLOPs."""
    wanted = [x for x in tensors(inputs) if x.requires_grad]
    given = [x for x in tensors(outputs) if x.requires_grad]
    return Floor(3 * flops, nbytes(inputs) + nbytes(outputs) + nbytes(wanted) + nbytes(given))


def macs(*parts: nn.Module | tuple) -> int:
    """Multiply-adds of one row through dense and block layers: as many as they have weights."""
    trees = (tuple(part.parameters()) if isinstance(part, nn.Module) else part for part in parts)
    return sum(x.numel() for tree in trees for x in tensors(tree) if x.dim() in (2, 3))


def observe_flops(rssm: RSSM, rows: int) -> int:
    """Core and posterior on B * T rows."""
    return 2 * rows * macs(rssm.core, rssm.post)


def imagine_flops(rssm: RSSM, actor: Actor | tuple, starts: int, horizon: int) -> int:
    """Core and prior on every imagined state, the actor on those and on the starts."""
    return 2 * starts * (horizon * macs(rssm.core, rssm.prior) + (horizon + 1) * macs(actor))


def laprop_bytes(params: list[Tensor]) -> int:
    """Parameters and both moments are read and written, gradients read: seven times the parameters."""
    return 7 * nbytes(params)


def gather_bytes(storage: Tensor, batch: int, length: int) -> int:
    """The rows that are gathered are read and written; the rest of the storage stays where it is."""
    return 2 * batch * length * nbytes(storage[:1])


def conv_macs(net: nn.Module, *inputs: Any) -> list[int]:
    """Multiply-adds of each convolution that `net(*inputs)` makes, in their order; inputs with one row."""
    counts: list[int] = []

    def count(conv: Conv, inputs: tuple[Tensor], output: Tensor) -> None:
        # One product for every output, but for every input if transposed. Four outputs are pooled into one.
        places = inputs[0] if conv.transposed else output
        counts.append(conv.weight.numel() * places.shape[2] * places.shape[3] * (4 if conv.pool else 1))

    hooks = [module.register_forward_hook(count) for module in net.modules() if isinstance(module, Conv)]
    if hooks:
        with torch.no_grad():
            net(*inputs)
    for hook in hooks:
        hook.remove()
    return counts


def encoder_convs(nets: Networks) -> list[int]:
    """Multiply-adds of the encoder's convolutions for one observation."""
    spaces = nets.enc.vectors | nets.enc.images
    zeros = {k: torch.from_numpy(np.zeros((1, *space.shape), space.dtype)) for k, space in spaces.items()}
    return conv_macs(nets.enc, zeros)


def decoder_convs(nets: Networks) -> list[int]:
    """Multiply-adds of the decoder's convolutions for one observation."""
    deter, stoch = nets.dyn.initial(1, device=torch.device("cpu"), dtype=torch.float32)
    return conv_macs(nets.dec, deter, nets.dyn.flat(stoch))


def update_flops(nets: Networks, batch: int, length: int, horizon: int) -> int:
    """One update of DreamerV3.

    On replayed states, three times (backward costs two): encoder, world model, decoder, reward, continuation, critic;
    once: slow critic. On imagined states, once: core, prior, reward, continuation, slow critic; three times: actor,
    critic, but for the gradient of their inputs, since nothing is differentiated through the dream.
    """
    rows = batch * length
    encoder = encoder_convs(nets)
    # What sees the observation itself passes no gradient on.
    first = sum(encoder[:1]) + (macs(nets.enc.mlp0) if nets.enc.vectors else 0)
    convs = sum(encoder) + sum(decoder_convs(nets))
    world = macs(nets.enc, nets.dyn, nets.dec, nets.rew, nets.con, nets.val) + convs
    replayed = 3 * world - first + macs(nets.slowval)
    rolled = macs(nets.dyn.core, nets.dyn.prior, nets.dyn.priorlogit)
    once = macs(nets.rew, nets.con, nets.slowval)
    learned = 3 * macs(nets.pol, nets.val) - macs(nets.pol.mlp[0], nets.val.mlp[0])
    return 2 * rows * (replayed + horizon * rolled + (horizon + 1) * (once + learned))


def update_bytes(nets: Networks, batch: dict[str, Tensor]) -> int:
    """Parameters, moments and slow critic are read and written, the batch read, its latents written."""
    learned, slow = (nbytes(tuple(p)) for p in (nets.learned().values(), nets.slowval.parameters()))
    return 6 * learned + 2 * slow + nbytes(batch) + nbytes([batch["deter"], batch["stoch"]])


def update(agent: DreamerV3, batch: dict[str, Tensor], rows: int, length: int) -> Floor:
    """FLOPs and bytes of `agent.update` on a batch of rows x length."""
    flops = update_flops(agent.nets, rows, length, agent.config.imag_length)
    return Floor(flops, update_bytes(agent.nets, batch))


def policy(agent: DreamerV3, n: int) -> Floor:
    """One action in each of n environments: the weights of encoder, core, posterior and actor are read once."""
    nets = agent.nets
    parts = nets.enc, nets.dyn.core, nets.dyn.obs, nets.dyn.obslogit, nets.pol
    weights = nbytes([tuple(part.parameters()) for part in parts])
    state = 2 * 4 * n * nets.dyn.feat_width
    return Floor(2 * n * (macs(*parts) + sum(encoder_convs(nets))), weights + state)
