"""World Models' memory, without gradient: two launches a step, whether actions are given or controllers choose them."""

from typing import Any

import torch
import triton
from torch import Tensor

from fastdream.ops.native.mdn import Layout, check_state, flatten
from fastdream.ops.params import MDNRNN, Control, MDNDream, MDNStep
from fastdream.ops.reference.layers import match
from fastdream.ops.reference.mdn import control_sums
from fastdream.ops.triton.library import check_floats, check_shape, register
from fastdream.ops.triton.limits import check_served, unserved_memory
from fastdream.ops.triton.lstm import Acting, lstm, lstm_tiles
from fastdream.ops.triton.mixture import mixture, mixture_tiles
from fastdream.ops.triton.unflatten import Reader

Outputs = tuple[Tensor, Tensor, Tensor, Tensor]


def lstm_mdn_step(
    model: MDNRNN,
    hidden: Tensor,
    cell: Tensor,
    latent: Tensor,
    action: Tensor,
    restart: Tensor,
    uniform: Tensor,
    normal: Tensor,
    temperature: float = 1.0,
) -> MDNStep:
    """As `fastdream.ops.reference.lstm_mdn_step`.

    Computes in hidden's dtype, float32 or half precision, whatever that of the parameters. Raises ValueError naming
    what does not fit.
    """
    check_served("lstm_mdn_step", unserved_memory(model))
    flat, layout = flatten("lstm_mdn_step", model, hidden, latent, action)
    params, filled = flat.present()
    settings = filled, flat.sizes, [temperature, *flat.scalars], list(layout)
    with torch.no_grad():
        cast = [match(x, hidden.dtype) for x in params]
        state = hidden, match(cell, hidden.dtype), latent
        inputs = action, None, None, restart, uniform, normal
        return MDNStep(*torch.ops.fastdream.triton_lstm_mdn(cast, *settings, *state, *inputs))


def lstm_mdn_dream(
    model: MDNRNN,
    control: Control,
    hidden: Tensor,
    cell: Tensor,
    latent: Tensor,
    restart: Tensor,
    uniform: Tensor,
    normal: Tensor,
    temperature: float = 1.0,
) -> MDNDream:
    """As `fastdream.ops.reference.lstm_mdn_dream`; otherwise as `lstm_mdn_step` here."""
    check_served("lstm_mdn_dream", unserved_memory(model))
    flat, layout = flatten("lstm_mdn_dream", model, hidden, latent, control.weight)
    params, filled = flat.present()
    settings = filled, flat.sizes, [temperature, *flat.scalars], list(layout)
    with torch.no_grad():
        cast = [match(x, hidden.dtype) for x in params]
        state = hidden, match(cell, hidden.dtype), latent
        inputs = None, *control, restart, uniform, normal
        return MDNDream(*torch.ops.fastdream.triton_lstm_mdn(cast, *settings, *state, *inputs))


def _fake(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    hidden: Tensor,
    cell: Tensor,
    latent: Tensor,
    action: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    restart: Tensor,
    uniform: Tensor,
    normal: Tensor,
) -> Outputs:
    n, op = Layout(*layout), "lstm_mdn_step" if weight is None else "lstm_mdn_dream"
    noise = {"uniform": uniform, "normal": normal}
    floats = {
        "cell": cell,
        "latent": latent,
        "action": action,
        "control.weight": weight,
        "control.bias": bias,
    }
    floats |= noise
    check_floats(op, hidden=hidden, **floats, **{f"parameter {i}": x for i, x in enumerate(params)})
    check_state(op, hidden, restart)
    rows, units = hidden.shape
    times = () if weight is None else (uniform.shape[1],)
    features = n.latent + units * (2 if weight is not None and weight.shape[1] > n.latent + units else 1)
    shapes = {
        "cell": (rows, units),
        "latent": (rows, n.latent),
        "action": (rows, n.action),
        "control.weight": (rows, features, n.action),
        "control.bias": (rows, n.action),
        **dict.fromkeys(noise, (rows, *times, n.latent)),
    }
    for name, x in floats.items():
        if x is not None:
            check_shape(op, name, x, *shapes[name])
    if times == (0,):
        raise ValueError(f"{op}: uniform is of 0 steps, expected 1 at least")
    wide = torch.float32
    return (
        hidden.new_empty(rows, units),
        hidden.new_empty(rows, units),
        hidden.new_empty((rows, *times, n.latent), dtype=wide),
        hidden.new_empty((rows, *times), dtype=wide),
    )


def _kernel(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    hidden: Tensor,
    cell: Tensor,
    *inputs: Any,
) -> Outputs:
    outputs = _fake(params, filled, sizes, scalars, layout, hidden, cell, *inputs)
    n, (temperature, *rest) = Layout(*layout), scalars
    latent, action, weight, bias, restart, uniform, normal = inputs
    reader = Reader([x.contiguous() for x in params], filled, sizes, rest)
    of_input, of_hidden, out = (reader.layer() for _ in range(3))
    assert of_input.bias is not None
    weights = of_input.weight, of_hidden.weight, of_input.bias
    hidden, cell, first = hidden.contiguous(), cell.contiguous(), restart.contiguous()

    (rows, units), itemsize = hidden.shape, hidden.element_size()
    tiles = lstm_tiles(rows, units, itemsize)
    out_tiles = mixture_tiles(rows, n.latent, n.mixtures, itemsize)
    programs = triton.cdiv(units, tiles.n) + triton.cdiv(n.latent, out_tiles.n)
    actions = _Actions(action, weight, bias, latent, hidden, cell, programs)
    new_hidden, new_cell, drawn, ends = outputs
    if weight is None:
        drawn, ends, uniform, normal = (x.unsqueeze(1) for x in (drawn, ends, uniform, normal))
    latent, uniform, normal = (packed(x, 1) for x in (latent, uniform, normal))
    spare, length = (torch.empty_like(new_hidden), torch.empty_like(new_cell)), drawn.shape[1]
    for time in range(length):
        # The last step writes what is returned, the ones before it there and beside it by turns.
        states = (new_hidden, new_cell) if (length - time) % 2 else spare
        acting, flags = actions.at(time), None if time else first
        lstm(latent, acting, flags, hidden, cell, *weights, *states, n.flag, tiles)
        (hidden, cell), latent = states, drawn[:, time]
        draws = uniform[:, time], normal[:, time], latent, ends[:, time]
        mixture(hidden, out.weight, out.bias, *draws, n.mixtures, temperature, out_tiles, acting)
    return outputs


class _Actions:
    """Where a step finds its action: given, or as sums of which the step before has left the parts."""

    def __init__(
        self,
        action: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        latent: Tensor,
        hidden: Tensor,
        cell: Tensor,
        programs: int,
    ) -> None:
        self.action = None if action is None else packed(action, 1)
        if weight is None:
            return
        self.control = packed(weight.float(), 2), None if bias is None else packed(bias.float(), 1)
        sums = control_sums(weight, latent, hidden, cell)
        self.first = sums.t().contiguous().unsqueeze(0)
        self.parts = sums.new_empty(2, programs, *self.first.shape[1:])

    def at(self, time: int) -> Tensor | Acting:
        """That of a step."""
        if self.action is not None:
            return self.action
        before = self.parts[(time - 1) % 2] if time else self.first
        return Acting(before, self.parts[time % 2], *self.control)


def packed(x: Tensor, dims: int) -> Tensor:
    """x, whose last so many dimensions have no gaps."""
    whole = x[(0,) * (x.dim() - dims)].is_contiguous() if x.numel() else True
    return x if whole else x.contiguous()


register(
    "lstm_mdn(Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout, Tensor hidden, Tensor cell,"
    " Tensor latent, Tensor? action, Tensor? weight, Tensor? bias, Tensor restart, Tensor uniform, Tensor normal)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
