"""Calls of World Models' memory as it is for Doom, cut for tiny presets; it has widths of its own."""

from fastdream.ops import MDNRNN, Control, Layer

from . import floors
from .inputs import Call, Source
from .shapes import Shape

LATENTS, UNITS = 64, 512


def lstm_mdn_step(s: Shape) -> Call:
    """An action, the restart flag and the logit of the end; 1024 dreams."""
    r, (latents, width) = Source(), (LATENTS, UNITS) if s.deter >= UNITS else (4, 16)
    shapes = (1 + 15 * latents, width), (1 + 15 * latents,)
    out = Layer(*(0.05 * Source().normal(*dims, grad=False) for dims in shapes))
    maps = (4 * width, latents + 2), (4 * width, width), (4 * width,)
    weights = (0.05 * r.normal(*dims, grad=False) for dims in maps)
    inputs = (r.normal(s.starts, dims, grad=False) for dims in (width, width, latents, 1))
    noise = r.resets(s.starts), r.uniform(s.starts, latents), r.normal(s.starts, latents, grad=False)
    model = MDNRNN(*weights, out, restart=True)
    return Call((model, *inputs, *noise), 2 * s.starts * floors.macs(model))


def lstm_mdn_dream(s: Shape) -> Call:
    """As many steps as a dream of DreamerV3 has, under controllers that see the cell."""
    step, r, n = lstm_mdn_step(s), Source(), s.horizon
    model, hidden, cell, latent, _, restart, *_ = step.args
    (rows, width), latents = hidden.shape, latent.shape[1]
    control = Control(0.05 * r.normal(rows, latents + 2 * width, 1, grad=False), None)
    noise = r.uniform(rows, n, latents), r.normal(rows, n, latents, grad=False)
    return Call((model, control, hidden, cell, latent, restart, *noise), n * step.flops)


def lstm_scan(s: Shape) -> Call:
    """As long a batch as DreamerV3's, an episode of which begins now and then."""
    r, width = Source(), UNITS if s.deter >= UNITS else 16
    weight = 0.05 * r.normal(4 * width, width, grad=False)
    entered, state = r.normal(s.batch, s.length, 4 * width), [r.normal(s.batch, width) for _ in range(2)]
    args = entered, weight.requires_grad_(), r.resets(s.batch, s.length), *state
    return Call(args, 2 * s.starts * weight.numel())
