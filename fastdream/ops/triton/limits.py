"""Which models the steps of imagination and of acting compute. Importable without Triton."""

from fastdream.ops.params import GRU, RSSM, Actor, Categorical, Layers

CLASSES = 256  # of a categorical, in the latent or in an action
OUTPUTS = 1024  # of an action head


def unserved(rssm: RSSM, net: Layers) -> str:
    """Why a model with that net for its latent has no kernels; empty if it has."""
    latent = rssm.latent
    if not isinstance(latent, Categorical):
        return f"triton has no {type(latent).__name__} latents"
    if isinstance(rssm.core, GRU):
        return "triton has no GRU core"
    if latent.classes > CLASSES:
        return f"triton takes up to {CLASSES} classes, not {latent.classes}"
    return "" if len(net) > 1 else "triton needs a hidden layer before the logits"


def unserved_actor(actor: Actor) -> str:
    """Why an actor has no kernels; empty if it has."""
    for i, head in enumerate(actor.heads):
        if any(layer.norm != "none" or layer.act != "none" for layer in head.out):
            return f"triton takes linear layers for outputs, and actor.heads[{i}] has others"
        if head.classes > CLASSES or head.elements * max(1, head.classes) > OUTPUTS:
            return (
                f"triton takes up to {CLASSES} classes and {OUTPUTS} outputs of a head, and actor.heads[{i}] has "
                f"{head.elements} elements of {head.classes} classes"
            )
    return ""


def check_served(op: str, reason: str) -> None:
    """ValueError for a reason that is not empty."""
    if reason:
        raise ValueError(f"{op}: {reason}; use the reference")
