"""What Triton's kernels are compiled, budgeted and compared at: every op at the widths of the agents' sizes.

A new op gets its lines in CASES, in BUDGETS if it needs more than rows do, and in WIDE.
"""

from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdream.agents.dreamer_v3_config import SIZES
from fastdream.ops.params import Feat

from . import parity_cases as ops
from .ops_tools import Maker, Sizes
from .parity_cases import Arguments, Case
from .parity_tools import cast, changed, tensors
from .triton_earlier import dream, dreams, policy, scans, steps
from .triton_losses import critic_loss, lambda_return, policy_loss, returns, twohot_loss, twohot_mean
from .triton_memories import MEMORY_CASES

PRESETS = tuple(name for name in SIZES if name.endswith("m"))
USUAL = "12m"  # what the default run compiles
CAPABILITIES = (80, 90)
PRECISIONS = (torch.bfloat16, torch.float32)
SEQUENCES = 16
ROWS = SEQUENCES * 64


class Budget(NamedTuple):
    """What a program may take at the most."""

    registers: int = 128  # a thread
    shared: int = 16 * 1024  # bytes
    spilled: int = 0  # bytes a thread


class Blank(Maker):
    """Makes tensors of no memory, for the shapes alone."""

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device="meta").requires_grad_()

    def uniform(self, *shape: int) -> Tensor:
        return torch.empty(shape, device="meta")

    def index(self, *shape: int, high: int | None = None) -> Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def onehot(self, *shape: int) -> Tensor:
        return self.normal(*shape, self.sizes.classes)


def sizes(preset: str) -> Sizes:
    """The widths of a size of DreamerV3; embeddings are as wide as two more layers of features."""
    deter, hidden, classes, depth, units = SIZES[preset]
    return Sizes(deter, hidden, 32, classes, 16 * 4 * depth, 8, units)


def at(width: str, function: Any, m: Maker, n: int) -> Arguments:
    """The arguments of `function`, which looks at deter, at another of the widths."""
    m.sizes = m.sizes._replace(deter=getattr(m.sizes, width))
    return function(m, n)


def few(function: Any, m: Maker, n: int) -> Arguments:
    """The arguments of `function` for as many rows as there are environments."""
    return function(m, 16)


def norm_acts(*triples: tuple[str, str, str]) -> dict[str, Case]:
    return {"-".join(t): Case(partial(at, t[2], partial(ops.norm_act, *t[:2]))) for t in triples}


def gates(m: Maker, n: int) -> Arguments:
    """Those of DreamerV2's core, at a size whose rows the gradient of their norm is given in pieces."""
    m.sizes = m.sizes._replace(deter=3 * SIZES["50m"][0])
    return ops.norm_act("layer", "none", m, n)


def doubled(layer: str, m: Maker, n: int) -> Arguments:
    """The decoder's last convolution but one, of small images, or its last, of RGB."""
    depth = m.sizes.embed // 64
    inp, out, options = (
        (3 * depth, 2 * depth, ("rms", "silu")) if layer == "inner" else (2 * depth, 3, ("none", "none"))
    )
    m.sizes = m.sizes._replace(deter=out)
    weight, bias = m.normal(4, out, inp, 3, 3, scale=(9 * inp) ** -0.5), m.normal(out)
    return m.normal(n // 64, 8, 8, inp), weight, bias, *ops.norm_act(*options, m, 1)[1:]


def convolved(layer: str, m: Maker, n: int) -> Arguments:
    """The encoder's first convolution, of RGB, as stored or as floats, or its second, of small images."""
    depth = m.sizes.embed // 64
    inp, out = (2 * depth, 3 * depth) if layer == "second" else (3, 2 * depth)
    m.sizes = m.sizes._replace(deter=out)
    weight, bias = m.normal(out, inp, 5, 5, scale=(25 * inp) ** -0.5), m.normal(out)
    x, dtype = m.normal(n // 64, 8, 8, inp), None
    if layer == "stored":  # in lines that tiles divide
        x, dtype = m.index(max(1, n // 1024), 16, 64, inp, high=256).to(torch.uint8), torch.float32
    elif layer == "first":
        x = x.detach()
    return x, weight, bias, *ops.norm_act("rms", "silu", m, 1)[1:], dtype


def image_loss(m: Maker, n: int) -> Arguments:
    """RGB of the usual size."""
    shape = n // 64, 64, 64, 3
    return m.normal(*shape), m.index(*shape, high=256).to(torch.uint8)


def scan(function: Any, core: str, m: Maker, n: int) -> Arguments:
    """16 sequences, and a posterior of one hidden layer, as the agents have."""
    rssm, *rest = function(core, "classes", False, m, SEQUENCES)
    return rssm._replace(post=(rssm.post[0], rssm.post[-1]), prior=()), *rest


def heads(apart: bool, m: Maker, n: int) -> Arguments:
    """As many and as deep as those of a dream: actor, critic, and without gradients the reward's, the slow critic's."""
    width = m.sizes.deter + m.sizes.stoch * m.sizes.classes
    outs = (3, 18), (3, 255), (1, 255), (3, 255)
    nets = [ops.chain(m, width, *[m.sizes.units] * depth, out) for depth, out in outs]
    fixed = [ops.mapped(Tensor.detach, net) for net in nets[2:]]
    deter, stoch = m.normal(n, m.sizes.deter), m.onehot(n, m.sizes.stoch).detach().flatten(1)
    return (Feat(deter, stoch) if apart else torch.cat([deter, stoch], -1)), (*nets[:2], *fixed)


def gumbel(unimix: float, m: Maker, n: int) -> Arguments:
    """Drawn, and not replayed: noise that lets one class win by far."""
    logit, noise, *_ = ops.gumbel(unimix, 1.0, m, n)
    winner = m.index(n, m.sizes.stoch).unsqueeze(-1)
    return logit, noise.scatter(-1, winner, 1 - 2**-20), unimix


def gather(m: Maker, n: int) -> Arguments:
    """Images."""
    storage = m.index(n, 64, 64, 3, high=256).to(torch.uint8)
    return storage, m.index(16, high=n), 64


# The agents' layers, at the widths of their hidden layers and of the recurrent state.
CASES: dict[str, dict[str, Case]] = {
    "norm_act": norm_acts(
        ("rms", "silu", "units"),
        ("rms", "silu", "deter"),
        ("layer", "elu", "units"),
        ("none", "silu", "units"),
    )
    | {"layer-none-gates": Case(gates)},
    "conv_pool": ops.cases(convolved, ["stored", "first", "second"]),
    "conv_spread": ops.cases(doubled, ["inner", "last"]),
    "image_loss": ops.cases(image_loss),
    "mlp": ops.cases(ops.mlp, ["rms"], ["silu"]) | ops.cases(ops.mlp, ["layer"], ["elu"]),
    "mlps": ops.cases(heads, [False, True]),
    "prior": ops.cases(ops.prior, ["classes"]),
    "observe": {core: Case(partial(scan, ops.observe, core)) for core in ops.CORES} | scans(ops.observe),
    "observe_step": {core: Case(partial(scan, ops.observe_step, core)) for core in ops.CORES}
    | scans(ops.observe_step),
    "categorical_sample": ops.cases(ops.categorical, [0.01], [False, True]),
    "gumbel_sample": ops.cases(gumbel, [0.0, 0.01]),
    "categorical_kl": ops.cases(ops.categorical_kl, ("step", "mean"), [1.0], [0.0, 0.01]),
    "latent_entropy": ops.cases(ops.entropy, [0.0, 0.01], gradients=False),
    "gaussian_kl": ops.cases(ops.gaussian_kl, ("mean",), [3.0]),
    "bounded_normal": ops.cases(ops.raw_normals),
    "symlog": ops.cases(ops.elementwise),
    "symexp": ops.cases(ops.elementwise),
    "twohot_loss": ops.cases(twohot_loss, [1, 2]),
    "twohot_mean": ops.cases(twohot_mean),
    "critic_loss": ops.cases(critic_loss),
    "lambda_return": ops.cases(lambda_return, [15, 64]),
    "reinforce": ops.cases(policy_loss, ["atari", "classes", "forces"]),
    "percentiles": ops.cases(returns, gradients=False),
    "summarize": ops.cases(ops.summary),
    "join_inputs": ops.cases(ops.inputs, [True], gradients=False),
    "vector_losses": ops.cases(ops.vectors, [True]),
    "gather_sequences": ops.cases(gather, gradients=False),
    "laprop_": ops.cases(ops.laprop, [0.3], [True], [False], [0.0], gradients=False),
    "imagine_step": ops.cases(ops.imagine_step, ops.CORES, ["classes"], gradients=False),
    "imagine": ops.cases(ops.imagine, ops.CORES, ["classes"], ["mixed"], gradients=False)
    | steps(dream)
    | dreams(),
    "rollout": ops.cases(ops.rollout, ops.CORES, ["classes"], gradients=False),
    "policy_step": {
        core: Case(partial(few, partial(ops.policy_step, core, "classes", "mixed", True)), False)
        for core in ops.CORES
    }
    | steps(policy),
} | MEMORY_CASES


def drawn(m: Maker, n: int) -> Arguments:
    """Arguments of imagine that draw every sample, a few steps long."""
    rssm, actor, *state = ops.imagine("block", "classes", "mixed", m, n)[:4]
    return rssm, actor, *state, ops.T, m.uniform(n, ops.T, m.sizes.stoch), m.uniform(n, ops.T + 1, 2)


# Compiled alone: no two precisions draw the same.
DRAWN: dict[str, dict[str, Case]] = {"imagine": {"drawn": Case(drawn, False)}}

# Positions of arguments that stay float32 where the others are in half precision.
WIDE: dict[str, tuple[int, ...]] = {
    "norm_act": (1, 2),
    "conv_pool": (1, 2, 3, 4),
    "conv_spread": (1, 2, 3, 4),
    "mlp": (1,),
    "mlps": (1,),
    "prior": (0,),
    "observe": (0,),
    "observe_step": (0,),
    "categorical_sample": (1,),
    "gumbel_sample": (1,),
    "twohot_loss": (1, 2),
    "twohot_mean": (1,),
    "critic_loss": (1, 2, 3, 5),
    "reinforce": (1, 2, 3),
    "imagine_step": (0, 4),
    "imagine": (0, 1, 5, 6),
    "rollout": (0, 4),
    "policy_step": (0, 1, 2, 8, 9),
    "lstm_mdn_step": (3, 4, 6, 7),
    "lstm_mdn_dream": (1, 4, 6, 7),
}
# Or of whatever precision, alike.
FULL_PRECISION = ("lambda_return", "percentiles", "gather_sequences", "laprop_")
IN_PLACE = ("laprop_",)  # ops that change their arguments
SCANS = ("observe", "observe_step")  # ops of many launches, which take long to interpret
# Steps are products, and few programs: one on each SM, which may have all its registers.
STEPS = Budget(255, 200 * 1024, 64)
MOST_SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a program may have at all
BUDGETS: dict[str, Budget] = {
    "observe": Budget(255, 160 * 1024, 16),
    "observe_step": Budget(255, 160 * 1024, 16),
    "conv_pool": Budget(255, 136 * 1024, 64),  # of images with few channels, whose programs multiply
    "imagine_step": STEPS,
    "imagine": STEPS,
    "rollout": STEPS,
    "policy_step": STEPS,
    "lstm_mdn_step": STEPS,
    "lstm_mdn_dream": STEPS,
    "lstm_scan": STEPS,
    # Of rows of 6144 on sm_80, and of many classes: ptxas prefers more programs on the SM.
    **dict.fromkeys(("norm_act", "reinforce"), Budget(spilled=8)),
    # Of gradients, a warp each: eight of them fit on an SM.
    **dict.fromkeys(("mlp", "mlps", "prior"), Budget(168, spilled=8)),
}


def in_precision(op: str, args: Arguments, dtype: torch.dtype) -> Arguments:
    """The arguments with floats in dtype, or in float32 where the op wants that, and told to compute in dtype."""
    wide = WIDE.get(op, ())
    args = tuple(dtype if isinstance(arg, torch.dtype) else arg for arg in args)
    return tuple(changed(cast(torch.float32 if i in wide else dtype), arg) for i, arg in enumerate(args))


def blank(op: str, case: str, preset: str, dtype: torch.dtype) -> tuple[Arguments, bool]:
    """Arguments without memory, and whether the op has gradients."""
    make, gradients = (CASES[op] | DRAWN.get(op, {}))[case]
    args = make(Blank(0, torch.float32, sizes(preset)), ROWS)
    return changed(lambda x: x.to("meta"), in_precision(op, args, dtype)), gradients


def made(op: str, case: str, preset: str, dtype: torch.dtype) -> Arguments:
    """Random arguments."""
    return in_precision(op, CASES[op][case].make(Maker(0, torch.float32, sizes(preset)), ROWS), dtype)


@cache
def shapes(op: str, case: str, preset: str) -> tuple[torch.Size, ...]:
    """Of all tensors among the arguments."""
    return tuple(x.shape for x in tensors(blank(op, case, preset, torch.float32)[0]))


def names(
    presets: tuple[str, ...] = PRESETS,
    precisions: tuple[torch.dtype, ...] = PRECISIONS,
    *tables: dict[str, dict[str, Case]],
) -> list[tuple]:
    """(op, case, preset, dtype) of everything in CASES and further tables.

    Each once: what has sizes of its own, whatever DreamerV3's, stands under the first preset alone.
    """
    cases = [(op, case) for table in (CASES, *tables) for op, found in table.items() for case in found]
    first: dict[tuple, str] = {}
    for case, preset in product(cases, presets):
        first.setdefault((*case, shapes(*case, preset)), preset)
    return [
        (*case, preset, dtype)
        for case, preset, dtype in product(cases, presets, precisions)
        if first[(*case, shapes(*case, preset))] == preset
        and (dtype == torch.float32 or case[0] not in FULL_PRECISION)
    ]
