"""Nets of dense layers and the actor, flattened for the kernels in the order in which csrc/cpu/actor.h reads them."""

from fastdream.ops.native.params import Flat, add_layer, add_layers, latent_shape
from fastdream.ops.params import ActionHead, Actor, Latent, Layers
from fastdream.ops.reference.actor import action_width

HEADS = "categorical", "bounded_normal", "trunc_normal", "tanh_normal"  # enum HeadKind of csrc/cpu/actor.h
MAX_HEADS = 32  # kMaxHeads there


def add_chain(flat: Flat, op: str, name: str, layers: Layers, width: int) -> int:
    """Append dense layers that take so many features one after the other. Returns how many the last one gives."""
    add_layers(flat, op, name, layers)
    return chained(op, name, layers, width)


def chained(op: str, name: str, layers: Layers, width: int) -> int:
    """How many features the last of these layers gives; ValueError unless each is dense and takes what comes to it."""
    for i, layer in enumerate(layers):
        if layer.weight.dim() != 2 or layer.weight.shape[1] != width:
            shape = list(layer.weight.shape)
            raise ValueError(f"{op}: {name}[{i}].weight has shape {shape}, expected [out, {width}]")
        width = layer.weight.shape[0]
    return width


def add_latent_net(flat: Flat, op: str, name: str, layers: Layers, width: int, latent: Latent) -> None:
    """Append the layers from so many features to the latent's logits."""
    add_layers(flat, op, name, layers)
    check_net(op, name, layers, width, latent)


def check_net(op: str, name: str, layers: Layers, width: int, latent: Latent) -> None:
    """ValueError unless the layers lead from so many features to the latent's logits, the last of them linear."""
    out = chained(op, name, layers, width)
    shape = latent_shape(op, latent)
    if not layers or out != shape.logits:
        wanted = "{} * {}".format(*shape.factors)
        raise ValueError(f"{op}: {name} has {len(layers)} layers that give {out}, expected {wanted}")
    if layers[-1].norm != "none" or layers[-1].act != "none":
        raise ValueError(f"{op}: the last layer of {name} must be linear; use the reference for others")


def add_actor(flat: Flat, op: str, actor: Actor, feat: int) -> tuple[int, int]:
    """Append an actor on features of that width. Returns the widths of an action and of the noise that draws it."""
    if not 0 < len(actor.heads) <= MAX_HEADS:
        raise ValueError(
            f"{op}: the actor has {len(actor.heads)} heads; native takes 1 to {MAX_HEADS}, use the reference for others"
        )
    blocked = any(layer.weight.dim() != 2 for head in actor.heads for layer in head.out)
    if blocked and not actor.layers:
        raise ValueError(f"{op}: the actor has no layers and heads of blocks; use the reference for such")
    width = add_chain(flat, op, "actor.layers", actor.layers, feat)
    flat.sizes.append(len(actor.heads))
    for i, head in enumerate(actor.heads):
        _add_head(flat, op, f"actor.heads[{i}]", head, width)
    return action_width(actor), sum(head.elements for head in actor.heads)


def _add_head(flat: Flat, op: str, name: str, head: ActionHead, width: int) -> None:
    kind = "categorical" if head.kind == "score" else head.kind  # whose gradients alone differ
    if kind not in HEADS:
        raise ValueError(f"{op}: {name} has kind {kind!r}; choose {', '.join(HEADS)} or score")
    discrete = kind == "categorical"
    if len(head.out) != (1 if discrete else 2):
        raise ValueError(f"{op}: {name} has {len(head.out)} output layers, expected {1 if discrete else 2}")
    flat.sizes.extend([HEADS.index(kind), head.elements, head.classes, len(head.out)])
    flat.scalars.extend([head.unimix, head.min_std, head.max_std, head.init_std])
    out = head.elements * (head.classes if discrete else 1)
    for k, layer in enumerate(head.out):
        add_layer(flat, op, f"{name}.out[{k}]", layer, (width, out))
