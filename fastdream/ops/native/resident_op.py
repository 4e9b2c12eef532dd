"""torch.ops.fastdream.resident_observe and its gradient: what `resident` calls.

params    `Params` of `resident_pack`
scalars   eps of the state's norms, of the hidden layer's, of the posterior's; unimix
shape     `Shape` of `resident_pack`
learns    whether a gradient will be asked for
After deter, stoch, logit and index come what the backward scan and the weights' gradients read: see `Kept`.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdream.ops.native.library import C, addresses, check_shape, contiguous
from fastdream.ops.native.registry import register, register_once_differentiable
from fastdream.ops.native.resident_gradients import Kept, Slopes, gradients
from fastdream.ops.native.resident_pack import Params, Shape, packed_sizes, packed_vectors, packed_weights
from fastdream.ops.reference.layers import linear

ROWS = 16  # of the batch that a team of CTAs takes
PACKED = Kept._fields.index("weights")  # results before what was packed for the launches

# In which order the CPU plays the CTAs, see csrc/cpu/resident_run.h. The results are the same.
PLAYED_ORDER = 0

# Where kernels of CUDA note the clock of their first CTA before and after every phase of `forward_scan` or
# `backward_scan`: int64. For whoever looks for the slow ones.
CLOCKS: Tensor | None = None


def numbered(device: torch.device) -> torch.device:
    """The device as tensors name it: "cuda" is the current one."""
    known = device.type != "cuda" or device.index is not None
    return device if known else torch.device("cuda", torch.cuda.current_device())


@cache
def _failed(device: torch.device) -> Tensor:
    """A word that kernels on the device set when they waited in vain, and that the host reads without waiting.

    device: as `numbered`.
    """
    return torch.zeros((), dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")


def check_earlier(device: torch.device) -> None:
    """RuntimeError if a launch on the device has waited in vain, as far as the host knows without waiting itself.

    Every call asks; whoever replays a captured graph, in which there are no calls, may ask for it.
    """
    if _failed(numbered(device)):
        raise RuntimeError(
            f"observe on {device}: an earlier launch gave up waiting for one of its CTAs, and what it returned is"
            ' wrong; restart, with fastdream.ops.load(observe="reference") if it happens again'
        )


def _run(name: str, tensors: list[Tensor | None], sizes: list[int], scalars: list[float]) -> None:
    """Run `name` on the current stream of the tensors' device, or play it on the CPU.

    Raises RuntimeError if the launch, or a barrier in an earlier one on that device, has failed.
    """
    assert C is not None
    first = tensors[0]
    assert first is not None
    check_earlier(first.device)
    call = first.element_size(), addresses([*tensors, _failed(first.device), CLOCKS]), sizes, scalars
    if first.device.type == "cpu":
        status = getattr(C, f"play_{name}")(*call, PLAYED_ORDER)
    else:
        with torch.cuda.device(first.device):
            status = getattr(C, f"cuda_{name}")(*call, torch.cuda.current_stream().cuda_stream)
    if status != 0:
        raise RuntimeError(f"{name} on {first.device}: {C.error_string(status)}")


def _placed(tensors: list[Tensor | None]) -> list[Tensor | None]:
    """The tensors without gaps in memory, at addresses from which 16 bytes are copied at a time."""
    return [x if x is None or x.data_ptr() % 16 == 0 else x.clone() for x in contiguous(*tensors)]


def _reset_words(reset: Tensor) -> Tensor:
    """[B, T] bool -> [tiles, T + 1] int32, bit m for row m of the tile, and an empty word at the end."""
    rows = F.pad(reset.to(torch.int32), (0, 1, 0, -reset.shape[0] % ROWS)).unflatten(0, (-1, ROWS))
    bits = torch.arange(ROWS, device=reset.device, dtype=torch.int32).unsqueeze(-1)
    return (rows << bits).sum(1, dtype=torch.int32)


def _workspaces(deter: Tensor, shape: Shape) -> list[Tensor]:
    """Zeros for the sums and products that the CTAs of every tile of the batch exchange."""
    tiles = -(-deter.shape[0] // ROWS)
    sums, products = tiles * ROWS * shape.team, tiles * shape.blocks * ROWS * 2 * shape.hidden
    return list(deter.new_zeros(sums + products, dtype=torch.float32).split([sums, products]))


def _first_layers(p: Params, deter: Tensor, stoch: Tensor, reset: Tensor) -> Tensor:
    """[B, 2H]: the first step's layers of deter | stoch before their norms."""
    forgets = reset[:, :1]
    of_deter = linear(deter.masked_fill(forgets, 0.0), p.deter, p.deter_bias)
    of_stoch = linear(stoch.flatten(1).masked_fill(forgets, 0.0), p.stoch, p.stoch_bias)
    return torch.cat([of_deter, of_stoch], -1)


def _forward_fake(
    params: list[Tensor],
    deter: Tensor,
    stoch: Tensor,
    entered: Tensor,
    embedded: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
    scalars: list[float],
    shape: list[int],
    learns: bool,
) -> tuple[Tensor, ...]:
    s = Shape(*shape)
    batch, length = reset.shape
    lead = batch, length
    given = {"deter": (batch, s.deter), "stoch": (batch, s.stoch, s.classes)}
    given |= {"entered": (*lead, s.deter), "embedded": (*lead, s.hidden)}
    tensors = {"deter": deter, "stoch": stoch, "entered": entered, "embedded": embedded}
    for name, x in (("noise", noise), ("index", index)):
        if x is not None:
            given[name], tensors[name] = (*lead, s.stoch), x
    for name, x in tensors.items():
        check_shape("observe", name, x, *given[name])
        if x.device != deter.device:
            raise ValueError(f"observe: {name} is on {x.device}, expected {deter.device} like deter")
    latents = *lead, s.stoch
    widths = 2 * s.hidden, s.deter, 3 * s.deter, s.hidden, 2 * s.hidden, s.deter, s.hidden
    weights, vectors = packed_sizes(Params(*params), s)
    return (
        deter.new_empty(*lead, s.deter),
        deter.new_empty(*latents, s.classes),
        deter.new_empty(*latents, s.classes),
        deter.new_empty(latents, dtype=torch.int64),
        *(deter.new_empty(*lead, width) for width in widths),
        deter.new_empty((*lead, 4), dtype=torch.float32),
        deter.new_empty(s.team, weights if learns else 0),
        deter.new_empty((s.team, vectors), dtype=torch.float32),
        deter.new_empty((-(-batch // ROWS), length + 1), dtype=torch.int32),
    )


def _forward(
    params: list[Tensor],
    deter: Tensor,
    stoch: Tensor,
    entered: Tensor,
    embedded: Tensor,
    reset: Tensor,
    noise: Tensor | None,
    index: Tensor | None,
    scalars: list[float],
    shape: list[int],
    learns: bool,
) -> tuple[Tensor, ...]:
    inputs = params, deter, stoch, entered, embedded, reset, noise, index, scalars, shape, learns
    outputs = _forward_fake(*inputs)
    if reset.numel() == 0:
        return outputs
    p, s = Params(*params), Shape(*shape)
    out_deter, out_stoch, logit, drawn, *kept = outputs[:PACKED]
    weights, *backward_weights = packed_weights(p, s, learns)
    vectors, words = packed_vectors(p, s), _reset_words(reset)
    state = deter, _first_layers(p, deter, stoch, reset), entered, embedded
    tensors: list[Tensor | None] = [weights, vectors, *state, words, noise, index]
    results = [out_deter, logit, drawn, *kept, *_workspaces(deter, s)]
    _run("resident_forward", [*_placed(tensors), *results], [*shape, *reset.shape], scalars)
    out_stoch.zero_().scatter_(-1, drawn.unsqueeze(-1), 1.0)
    return *outputs[:PACKED], *(backward_weights or outputs[PACKED : PACKED + 1]), vectors, words


def _backward_fake(
    params: list[Tensor],
    deter: Tensor,
    stoch: Tensor,
    reset: Tensor,
    scalars: list[float],
    shape: list[int],
    results: list[Tensor],
    d_deter: Tensor | None,
    d_stoch: Tensor | None,
    d_logit: Tensor | None,
) -> list[Tensor]:
    embedded = results[7]  # [B, T, H], as is the posterior's layer
    return [torch.empty_like(x) for x in (*params, deter, stoch, results[0], embedded)]


def _backward(
    params: list[Tensor],
    deter: Tensor,
    stoch: Tensor,
    reset: Tensor,
    scalars: list[float],
    shape: list[int],
    results: list[Tensor],
    d_deter: Tensor | None,
    d_stoch: Tensor | None,
    d_logit: Tensor | None,
) -> list[Tensor]:
    p, s, kept = Params(*params), Shape(*shape), Kept(*results)
    if reset.numel() == 0:
        return [torch.zeros_like(x) for x in (*params, deter, stoch, kept.deter, kept.post)]
    tensors: list[Tensor | None] = [kept.weights, kept.vectors, deter, kept.deter, kept.logit, kept.words]
    tensors += [kept.pre, kept.hidden, kept.gates, kept.post, kept.roots, d_deter, d_stoch, d_logit]
    total = 5 * s.hidden + 4 * s.deter + s.stoch * s.classes
    slopes = Slopes(
        logit=torch.empty_like(kept.logit),
        pre=torch.empty_like(kept.pre),
        hidden=torch.empty_like(kept.hidden),
        gates=torch.empty_like(kept.gates),
        post=torch.empty_like(kept.post),
        totals=deter.new_empty((-(-deter.shape[0] // ROWS), total), dtype=torch.float32),
    )
    carried = torch.empty_like(deter, dtype=torch.float32, memory_format=torch.contiguous_format)
    workspaces = [*slopes, carried, *_workspaces(deter, s)]
    _run("resident_backward", [*_placed(tensors), *workspaces], [*shape, *reset.shape], scalars)
    return gradients(p, s, deter, stoch, reset, kept, slopes, carried)


def _setup(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    params, deter, stoch, _, _, reset, _, _, scalars, shape, _ = inputs
    ctx.mark_non_differentiable(*output[3:])
    ctx.set_materialize_grads(False)
    ctx.static = scalars, shape
    ctx.save_for_backward(deter, stoch, reset, *output, *params)


def _gradient(ctx: Any, d_deter: Tensor, d_stoch: Tensor, d_logit: Tensor, *_: None) -> tuple:
    deter, stoch, reset, *rest = ctx.saved_tensors
    count = len(Kept._fields)
    results, params = rest[:count], rest[count:]
    grads = torch.ops.fastdream.resident_observe_backward(
        params, deter, stoch, reset, *ctx.static, results, d_deter, d_stoch, d_logit
    )
    return grads[: len(params)], *grads[len(params) :], *(None,) * 6


_STATIC = "float[] scalars, int[] shape"
_RESULTS = ", ".join(["Tensor"] * len(Kept._fields))
register_once_differentiable(
    register(
        "resident_observe(Tensor[] params, Tensor deter, Tensor stoch, Tensor entered, Tensor embedded, Tensor reset,"
        f" Tensor? noise, Tensor? index, {_STATIC}, bool learns) -> ({_RESULTS})",
        _forward,
        _forward_fake,
        ("CPU", "CUDA"),
    ),
    register(
        f"resident_observe_backward(Tensor[] params, Tensor deter, Tensor stoch, Tensor reset, {_STATIC},"
        " Tensor[] results, Tensor? d_deter, Tensor? d_stoch, Tensor? d_logit) -> Tensor[]",
        _backward,
        _backward_fake,
        ("CPU", "CUDA"),
    ),
    _gradient,
    _setup,
    "observe",
)
