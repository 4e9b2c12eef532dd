"""Which models the steps of imagination, of acting and of dreaming compute. Importable without Triton."""

from fastdream.ops.native.actor import MAX_HEADS
from fastdream.ops.native.params import MAX_LAYERS
from fastdream.ops.params import MDNRNN, RSSM, Actor, BlockGRU, Categorical, Layers
from fastdream.ops.triton.scan_limits import problem

CLASSES = 256  # of a categorical, in the latent or in an action
OUTPUTS = 1024  # of an action head
UNITS = 2048  # of a hidden layer, of which a program holds whole rows
MIXTURES = 32  # of a latent dimension
ACTIONS = 32  # inputs of a memory beside the latent


def unserved(rssm: RSSM, net: Layers) -> str:
    """Why a model with that net for its latent has no kernels; empty if it has."""
    latent = rssm.latent
    hidden = rssm.core.hidden if isinstance(rssm.core, BlockGRU) else ()
    if (depth := max(len(net), len(hidden))) > MAX_LAYERS:
        return f"triton takes nets of up to {MAX_LAYERS} layers, not {depth}"
    if isinstance(latent, Categorical) and latent.classes > CLASSES:
        return f"triton takes up to {CLASSES} classes, not {latent.classes}"
    inputs = rssm.core.stoch if isinstance(rssm.core, BlockGRU) else rssm.core.inputs
    if reason := _too_wide((*net[:-1], inputs)):
        return reason
    return "" if len(net) > 1 else "triton needs a hidden layer before the logits"


def _too_wide(layers: Layers) -> str:
    for layer in layers:
        if (units := len(layer.weight)) > UNITS:
            return f"triton takes layers of up to {UNITS} units, not {units}"
    return ""


def unserved_actor(actor: Actor) -> str:
    """Why an actor has no kernels; empty if it has."""
    if not 0 < len(actor.layers) <= MAX_LAYERS or not 0 < len(actor.heads) <= MAX_HEADS:
        return (
            f"triton takes 1 to {MAX_LAYERS} layers and 1 to {MAX_HEADS} heads, not {len(actor.layers)} and "
            f"{len(actor.heads)}"
        )
    for i, head in enumerate(actor.heads):
        if any(layer.norm != "none" or layer.act != "none" for layer in head.out):
            return f"triton takes linear layers for outputs, and actor.heads[{i}] has others"
        if head.classes > CLASSES or head.elements * max(1, head.classes) > OUTPUTS:
            return (
                f"triton takes up to {CLASSES} classes and {OUTPUTS} outputs of a head, and actor.heads[{i}] has "
                f"{head.elements} elements of {head.classes} classes"
            )
    return _too_wide(actor.layers)


def unserved_learned(rssm: RSSM, actor: Actor) -> str:
    """Why dreams with gradients through them have no kernels; empty if they have."""
    if reason := unserved(rssm, rssm.prior) or unserved_actor(actor):
        return reason
    if not actor.detach:
        return "triton has gradients through dreams only of actors that detach the features they see"
    what = problem(rssm._replace(post=rssm.prior, absolute=False))
    return f"triton has no gradients through dreams of {what}" if what else ""


def unserved_memory(model: MDNRNN) -> str:
    """Why a memory has no kernels; empty if it has."""
    if not 0 < model.mixtures <= MIXTURES:
        return f"triton takes up to {MIXTURES} mixtures, not {model.mixtures}"
    latents = len(model.out.weight) // (3 * model.mixtures)
    if (actions := model.weight_ih.shape[1] - latents - model.restart) > ACTIONS:
        return f"triton takes up to {ACTIONS} numbers of an action, not {actions}"
    return ""


def check_served(op: str, reason: str) -> None:
    """ValueError for a reason that is not empty."""
    if reason:
        raise ValueError(f"{op}: {reason}; use the reference")
