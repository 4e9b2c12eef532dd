"""The policy step, for a few environments at a time: as many launches as it has products that wait for one another."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastdream.ops.native.actor import add_actor, add_chain, add_latent_net
from fastdream.ops.native.params import Flat, LatentShape, add_core, latent_shape
from fastdream.ops.params import RSSM, Actor, Layer, Layers, Step
from fastdream.ops.reference.actor import action_width, check_mode
from fastdream.ops.reference.layers import match
from fastdream.ops.reference.policy import squish
from fastdream.ops.triton.block_product import Normed, block_product, product_sums, product_tiles
from fastdream.ops.triton.core import bias_rows
from fastdream.ops.triton.library import check_floats, check_shape, contiguous, register
from fastdream.ops.triton.limits import check_served, unserved, unserved_actor
from fastdream.ops.triton.step import Draws, StepKernels
from fastdream.ops.triton.unflatten import Reader, add_latent


class Layout(NamedTuple):
    """What the kernels must know beside parameters."""

    width: int  # of deter
    stoch: int
    classes: int  # 0: normals
    action: int  # width
    features: int
    elements: int  # numbers that draw an action

    @property
    def latent(self) -> LatentShape:
        """Of its draws."""
        return LatentShape(self.stoch, self.classes, 0, 0.0, 0.0)


Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def policy_step(
    encoder: Layers,
    rssm: RSSM,
    actor: Actor,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    features: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    action_noise: Tensor | None,
    index: Tensor | None = None,
    vectors: tuple[int, ...] = (),
) -> tuple[Step, Tensor]:
    """As `fastdream.ops.reference.policy_step`, for what `limits` serves.

    Computes in deter's dtype, float32 or half precision, whatever that of the parameters. Raises ValueError naming
    what does not fit. An index that is no class draws nothing.
    """
    flat, layout = _flatten(encoder, rssm, actor)
    noise, index = layout.latent.draws("policy_step", noise, index)
    if action_noise is None:
        check_mode(actor)
    features = squish(features.detach(), vectors) if vectors else features
    params, filled = flat.present()
    state = (match(x, deter.dtype).detach() for x in (deter, stoch, action, features))
    settings = [x.detach() for x in params], filled, flat.sizes, flat.scalars, list(layout)
    outputs = torch.ops.fastdream.triton_policy_step(*settings, *state, reset, noise, index, action_noise)
    step, act = Step(*outputs[:4]), outputs[4]
    return step if layout.classes else step._replace(index=None), act


def _flatten(encoder: Layers, rssm: RSSM, actor: Actor) -> tuple[Flat, Layout]:
    op, latent = "policy_step", latent_shape("policy_step", rssm.latent)
    check_served(op, unserved(rssm, rssm.post) or unserved_actor(actor))
    check_served(op, "triton has no posterior that sees the embedding alone" if rssm.absolute else "")
    flat, width = Flat([], [], []), action_width(actor)
    add_latent(flat, op, rssm.latent)
    features = encoder[0].weight.shape[-1] if encoder else 0
    embed = add_chain(flat, op, "encoder", encoder, features)
    deter_width = add_core(flat, op, rssm.core, latent.width, width)
    seen = rssm.post[0].weight.shape[-1]
    add_latent_net(flat, op, "post", rssm.post, seen, rssm.latent)
    if encoder and deter_width + embed != seen:
        wanted = seen - deter_width
        raise ValueError(f"{op}: encoder gives {embed} features, the posterior takes {wanted}")
    _, elements = add_actor(flat, op, actor, deter_width + latent.width)
    features = features or seen - deter_width
    return flat, Layout(deter_width, latent.stoch, latent.classes, width, features, elements)


def _fake(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    deter: Tensor,
    *inputs: Tensor | None,
) -> Outputs:
    n, rows = Layout(*layout), len(deter)
    expected = {
        "stoch": (rows, *n.latent.state),
        "action": (rows, n.action),
        "features": (rows, n.features),
        "reset": (rows,),
        "noise": (rows, n.stoch),
        "index": (rows, n.stoch),
        "action_noise": (rows, n.elements),
    }
    given = {name: x for name, x in zip(expected, inputs, strict=True) if x is not None}
    whole = {name: given[name] for name in ("reset", "index") if name in given}
    floats = {name: x for name, x in given.items() if name not in whole}
    check_floats("policy_step", deter=deter, **floats, **{f"parameter {i}": x for i, x in enumerate(params)})
    check_shape("policy_step", "deter", deter, rows, n.width)
    for name, x in given.items():
        check_shape("policy_step", name, x, *expected[name])
    for name, x in whole.items():
        if x.is_floating_point() or x.device != deter.device:
            wanted = "bool" if name == "reset" else "int64"
            raise ValueError(
                f"policy_step: {name} is {x.dtype} on {x.device}, expected {wanted} on {deter.device}"
            )
    return (
        deter.new_empty(rows, n.width),
        deter.new_empty(rows, *n.latent.state),
        deter.new_empty(rows, *n.latent.logit),
        deter.new_empty((rows, n.stoch if n.classes else 0), dtype=torch.int64),
        deter.new_empty((rows, n.action), dtype=torch.float32),
    )


def _embedded(encoder: Layers, of_embed: Layer, features: Tensor) -> Tensor:
    """The features [n, F] through the encoder and the part of the posterior's first layer that sees them: [n, U]."""
    x, normed = features, None
    for layer in (*encoder, of_embed):
        out, inp = layer.weight.shape
        tiles = product_tiles(len(x), out, out, x.element_size())
        y = x.new_empty(len(x), out)
        sums = product_sums(y, 1, tiles, layer.norm)
        weight = layer.weight.t().unsqueeze(0)
        block_product(
            x, None, weight, None, None, bias_rows(layer, len(x)), y, sums, layer.norm, tiles, normed
        )
        x, normed = y, Normed(layer, sums, tiles.n)
    return x


def _kernel(
    params: list[Tensor],
    filled: list[int],
    sizes: list[int],
    scalars: list[float],
    layout: list[int],
    deter: Tensor,
    *inputs: Tensor | None,
) -> Outputs:
    n = Layout(*layout)
    outputs = _fake(params, filled, sizes, scalars, layout, deter, *inputs)
    new, onehot, logit, drawn, act = outputs
    deter, (stoch, action, features, reset, *draws) = deter.contiguous(), contiguous(*inputs)
    assert stoch is not None and action is not None and features is not None and reset is not None
    reader = Reader(params, filled, sizes, scalars)
    latent = reader.latent()
    encoder, core, post, actor = reader.layers(), reader.core(), reader.layers(), reader.actor()
    embedding = *encoder, Layer(post[0].weight[:, n.width :])
    kernels, layers = StepKernels.bind(core, latent, post, actor, n.action, deter, embedding)

    noise, given, action_noise = (None if x is None else x.unsqueeze(1) for x in draws)
    results = drawn.unsqueeze(1), logit.unsqueeze(1), onehot.unsqueeze(1)
    before = Draws(noise, given, *results, None, action.unsqueeze(1))
    after = Draws(noise, given, *results, action_noise, act.unsqueeze(1))
    embed = _embedded(layers[:-1], layers[-1], features)
    kernels.project(deter, reset)
    kernels.finish(before, 0, 0, start=stoch.flatten(1), reset=reset, acts=False)
    kernels.core(deter, kernels.x, new, reset)
    kernels.project(new)
    kernels.finish(after, 0, 0, embed=embed, enter=False)
    return outputs


register(
    "policy_step(Tensor[] params, int[] filled, int[] sizes, float[] scalars, int[] layout, Tensor deter,"
    " Tensor stoch, Tensor action, Tensor features, Tensor reset, Tensor? noise, Tensor? index, Tensor? action_noise)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _kernel,
    _fake,
)
