"""The actor flattened for the kernels, in the order in which csrc/cpu/actor.h reads it."""

from fastdream.ops.native.params import Flat, add_layer, add_layers
from fastdream.ops.params import ActionHead, Actor
from fastdream.ops.reference.actor import action_width

HEADS = "categorical", "bounded_normal"  # enum HeadKind of csrc/cpu/actor.h
MAX_HEADS = 32  # kMaxHeads there


def add_actor(flat: Flat, op: str, actor: Actor, feat: int) -> tuple[int, int]:
    """Append an actor on features of that width. Returns the widths of an action and of the noise that draws it."""
    if not actor.layers or not 0 < len(actor.heads) <= MAX_HEADS:
        raise ValueError(
            f"{op}: the actor has {len(actor.layers)} layers and {len(actor.heads)} heads; native takes 1 layer "
            f"or more and up to {MAX_HEADS} heads, use the reference for others"
        )
    add_layers(flat, op, "actor.layers", actor.layers)
    width = feat
    for i, layer in enumerate(actor.layers):
        if layer.weight.dim() != 2 or layer.weight.shape[1] != width:
            shape = list(layer.weight.shape)
            raise ValueError(f"{op}: actor.layers[{i}].weight has shape {shape}, expected [out, {width}]")
        width = layer.weight.shape[0]
    flat.sizes.append(len(actor.heads))
    for i, head in enumerate(actor.heads):
        _add_head(flat, op, f"actor.heads[{i}]", head, width)
    return action_width(actor), sum(head.elements for head in actor.heads)


def _add_head(flat: Flat, op: str, name: str, head: ActionHead, width: int) -> None:
    if head.kind not in HEADS:
        raise ValueError(f"{op}: {name} has kind {head.kind!r}; choose {' or '.join(HEADS)}")
    discrete = head.kind == "categorical"
    if len(head.out) != (1 if discrete else 2):
        raise ValueError(f"{op}: {name} has {len(head.out)} output layers, expected {1 if discrete else 2}")
    flat.sizes.extend([HEADS.index(head.kind), head.elements, head.classes, len(head.out)])
    flat.scalars.extend([head.unimix, head.min_std, head.max_std])
    out = head.elements * (head.classes if discrete else 1)
    for k, layer in enumerate(head.out):
        add_layer(flat, op, f"{name}.out[{k}]", layer, (width, out))
