"""Which models the scans compute. Importable without Triton."""

from fastdream.ops.native.params import MAX_LAYERS
from fastdream.ops.params import RSSM, BlockGRU, Categorical
from fastdream.ops.triton.config import WIDEST

CLASSES = 256  # of a latent variable
UNITS = 2048  # of the core's input layers, of which a program holds a whole row


def problem(rssm: RSSM) -> str | None:
    """What of the model is not computed, in words; None if all of it is."""
    core, latent = rssm.core, rssm.latent
    if isinstance(latent, Categorical) and latent.classes > CLASSES:
        return f"{latent.classes} classes, only {CLASSES}"
    if len(rssm.post) < 2:
        return "a posterior without a hidden layer"
    hidden, inputs = (core.hidden, core.stoch) if isinstance(core, BlockGRU) else ((), core.inputs)
    if max(len(hidden), len(rssm.post)) > MAX_LAYERS:
        return f"nets deeper than {MAX_LAYERS}"
    if (units := inputs.weight.shape[0]) > UNITS:
        return f"input layers of {units}, only of {UNITS}"
    widths = [layer.weight.shape[0] for layer in rssm.post[:-1]]
    if isinstance(core, BlockGRU):
        widths.append(core.hidden[0].weight.shape[0] * core.hidden[0].weight.shape[2])
    if max(widths) > WIDEST:
        return f"layers of {max(widths)}, only of {WIDEST}"
    if isinstance(core, BlockGRU) and core.deter[4:] != core.stoch[4:]:
        return "layers of deter and stoch that differ in norm, activation or eps"
    return None


LIMITS = (
    f"over {CLASSES} classes, no hidden layer of the posterior, nets deeper than {MAX_LAYERS} or "
    f"wider than {WIDEST}"
)
