"""What the tail kernel is told of the layers: sizes, and where their parameters lie. Importable without Triton."""

import math
from typing import NamedTuple, cast

from fastdream.ops.native.params import latent_shape
from fastdream.ops.params import GRU, ActionHead, Actor, BlockGRU, Core, Gaussian, Latent, Layer, Layers
from fastdream.ops.triton.config import power_of_two
from fastdream.ops.triton.packing import Packer, Row, biases

Rows = tuple[Row, ...]


class Head(NamedTuple):
    """An action key: where its numbers lie in a row of outputs, of noise and of actions."""

    kind: str  # of `ActionHead`; a score is drawn as a categorical
    elements: int
    classes: int  # 1 if continuous
    rows: int  # of its tile, powers of two for elements and classes
    cols: int
    output: int
    noise: int
    action: int
    unimix: float
    min_std: float
    max_std: float
    offset: float  # added to the raw deviations of a tanh_normal


class Tail(NamedTuple):
    """The layers that follow deter in a step."""

    stoch: int
    classes: int  # of each variable; of normals 1
    std: str  # form of their deviations, "none" of classes
    min_std: float
    unimix: float
    groups: int  # latent variables drawn at a time, and columns of each: powers of two
    padded: int
    dense: bool  # stoch is multiplied by, not gathered
    chains: tuple[Rows, Rows]  # hidden layers of the latent's net, and of the actor
    logit: Row
    out: Rows  # all heads' layers as one, if there is an actor
    heads: tuple[Head, ...]
    noise: int  # numbers that draw an action
    width: int  # of an action
    deter: tuple[
        Row, ...
    ]  # the core's layers: on deter, if it has one; on stoch; on action, or of the other what is
    enter: Row
    action: Row
    clipped: bool  # the action that the core takes
    columns: tuple[
        int, int, int
    ]  # of deter's products: where the actor's and the core's begin, and how many there are
    inputs: int  # numbers that the core takes
    wide: int  # stride of hidden rows


class Shared(NamedTuple):
    """Where what multiplies deter lies, for all who read it: the first layers of net and actor, the core's on deter."""

    weight: int  # [columns, D]
    bias: int  # [columns]


def bind_tail(
    packer: Packer,
    latent: Latent,
    net: Layers,
    core: Core,
    actor: Actor | None,
    width: int,
) -> tuple[Tail, Shared]:
    """Describe and collect everything after deter, for actions of `width` numbers.

    net: from deter, and perhaps more, to logits. actor: None where actions are given.
    """
    count, classes, _, unimix, min_std = latent_shape("step", latent)
    D, inputs = deter_width(core), count * max(1, classes)
    prior = packer.row(net[0]), *(packer.row(layer, layer.weight) for layer in net[1:-1])
    firsts, acts, out = [net[0]], cast(Rows, ()), cast(Rows, ())
    if actor is not None:
        first, *later = actor.layers
        firsts.append(first)
        stoch = packer.row(first._replace(bias=None), first.weight[:, D:], gathered=True)
        acts = stoch, *(packer.row(layer, layer.weight) for layer in later)
        out = (packer.joined([out for head in actor.heads for out in head.out]),)
    begins = len(net[0].weight), sum(len(layer.weight) for layer in firsts)
    deter: Rows = ()
    if isinstance(core, BlockGRU):
        firsts.append(core.deter)
        deter = (packer.row(core.deter),)
        enter = packer.row(core.stoch, core.stoch.weight, gathered=True)
        action = packer.row(core.action, core.action.weight)
    else:
        weight = core.inputs.weight
        enter = packer.row(core.inputs, weight[:, :inputs], gathered=True)
        action = packer.row(Layer(weight), weight[:, inputs:])
    padded, heads = max(2, power_of_two(classes)), () if actor is None else _heads(actor)
    tail = Tail(
        stoch=count,
        classes=max(1, classes),
        std=latent.std if isinstance(latent, Gaussian) else "none",
        min_std=min_std,
        unimix=unimix,
        groups=max(1, min(power_of_two(count), packer.cut.drawn // padded)),
        padded=padded,
        dense=classes <= packer.cut.dense,
        chains=(prior, acts),
        logit=packer.tiled(net[-1]),
        out=out,
        heads=heads,
        noise=sum(head.elements for head in heads),
        width=width,
        deter=deter,
        enter=enter,
        action=action,
        clipped=isinstance(core, BlockGRU),
        columns=(*begins, sum(len(layer.weight) for layer in firsts)),
        inputs=enter.out * (3 if deter else 1),
        wide=-(-max(row.out for row in (*prior, *acts)) // 64) * 64,
    )
    place = packer.weights.add(*(layer.weight[:, :D] for layer in firsts))
    return tail, Shared(place, packer.vectors.add(*biases(firsts)))


def _heads(actor: Actor) -> tuple[Head, ...]:
    heads, output, noise, action = [], 0, 0, 0
    for head in actor.heads:
        classes = max(1, head.classes)
        heads.append(
            Head(
                kind="categorical" if head.kind == "score" else head.kind,
                elements=head.elements,
                classes=classes,
                rows=power_of_two(head.elements),
                cols=power_of_two(classes),
                output=output,
                noise=noise,
                action=action,
                unimix=head.unimix,
                min_std=head.min_std,
                max_std=head.max_std,
                offset=_offset(head),
            )
        )
        output += sum(len(layer.weight) for layer in head.out)
        noise += head.elements
        action += head.elements * classes
    return tuple(heads)


def _offset(head: ActionHead) -> float:
    """Of which softplus is the deviation at the start."""
    return head.init_std + math.log(-math.expm1(-head.init_std))


def deter_width(core: Core) -> int:
    """Width D of the state that the core carries."""
    if isinstance(core, GRU):
        return core.weight_hh.shape[1]
    weight = core.gates.weight
    return weight.shape[0] * weight.shape[1] if weight.dim() == 3 else weight.shape[0] // 3
