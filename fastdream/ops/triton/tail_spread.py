"""The tail of many rows: as in `tail`, whose names these are, but some programs share their rows.

Each computes its columns of every layer in turn, in stages, and waits for the others before it reads theirs. That they
wait inside of one kernel costs less than as many kernels. Programs that share rows are numbered one after the other, so
that they run at the same time on any GPU that begins programs in their order; where none do, every stage is a launch.

stage                      reads                   writes
each later layer of prior  product or hidden       hidden
draws                      product or hidden       logit, index, stoch
layers on stoch            stoch                   hidden: the actor's first; entered: the core's
each later layer of actor  hidden                  hidden
end                        hidden, entered         outs, action, x: of the program's own rows, all columns

hidden has pre-activations; whoever reads them norms them. Its halves take turns: what a stage overwrites, the others
have read in the stage before.
"""

from typing import NamedTuple

import triton
import triton.language as tl

from fastdream.ops.triton.tail import ACTOR, PRIOR
from fastdream.ops.triton.tail_stages import draws, end, later_layer, on_stoch

LINE = tl.constexpr(32)  # stages at the most: counters of a group, in a cache line of its own


class Run(NamedTuple):
    """What a launch computes."""

    act: bool
    enter: bool
    first: int  # stage
    end: int  # stage that it does not compute any more
    rows: int  # as in `config.Spread`
    split: int
    depth: int
    variables: int  # latent, of a program


@triton.jit
def _stage(
    product, start, reset, hidden, entered, outs, x, params, drawn, action_noise, action,
    n, time, length, states, actions, at, i_m, place,
    i_p: tl.constexpr, TAIL: tl.constexpr, RUN: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Stage i_p. Not a loop's body: in a function a constexpr has one value."""
    DRAWS: tl.constexpr = len(TAIL.chains[PRIOR]) - 1
    END: tl.constexpr = DRAWS + 1 + (len(TAIL.chains[ACTOR]) if RUN.act else 1)
    WIDE: tl.constexpr = TAIL.wide
    STRIDE: tl.constexpr = TAIL.columns[2] if i_p == 0 else WIDE
    x_in = product if i_p == 0 else hidden + (i_p + 1) % 2 * n * WIDE
    out = hidden + i_p % 2 * n * WIDE
    if i_p < DRAWS:
        prior: tl.constexpr = TAIL.chains[PRIOR][i_p]
        later: tl.constexpr = TAIL.chains[PRIOR][i_p + 1]
        later_layer(x_in, STRIDE, out, params, place, prior, later, i_p, TAIL, RUN, PDL)
    elif i_p == DRAWS:
        latest: tl.constexpr = TAIL.chains[PRIOR][i_p]
        draws(x_in, STRIDE, params, place, drawn, time, length, states, latest, i_p, TAIL, RUN, PDL)
    elif i_p == DRAWS + 1:
        SC: tl.constexpr = TAIL.stoch * TAIL.classes
        if start is None:
            rows, stride = drawn[4] + (states - length + time) * SC, states * SC
        else:
            rows, stride = start, SC
        on_stoch(rows, stride, product, out, entered, reset, params, place, i_p, TAIL, RUN, PDL)
    elif i_p < END:
        actor: tl.constexpr = TAIL.chains[ACTOR][i_p - DRAWS - 2]
        deeper: tl.constexpr = TAIL.chains[ACTOR][i_p - DRAWS - 1]
        later_layer(x_in, WIDE, out, params, place, actor, deeper, i_p, TAIL, RUN, PDL)
    else:
        end(
            x_in, WIDE, product, entered, reset, outs, x, params, drawn[2], action_noise, action,
            n, time, length, actions, at, i_m, place[0], i_p, TAIL, RUN, PDL
        )  # fmt: skip


@triton.jit(do_not_specialize=["n", "time", "length", "states", "actions", "at"])
def spread_kernel(
    product,  # as in `tail_kernel`, all but the next
    start,
    reset,
    hidden,
    entered,  # [n, out]: stoch times the core's layer on it
    outs,
    x,
    weight,
    vector,
    arrived,  # [groups of programs that share rows, LINE]: zeros; how many of a group have ended a stage
    noise,
    given,
    index,
    logit,
    stoch,
    action_noise,
    action,
    n,
    time,
    length,
    states,
    actions,
    at,
    TAIL: tl.constexpr,
    RUN: tl.constexpr,
    PDL: tl.constexpr,
):
    i_n, i_g = tl.program_id(0), tl.program_id(1)
    i_m = i_g.to(tl.int64) * RUN.rows
    o_m = i_m + tl.arange(0, RUN.rows)[:, None]
    params, drawn = (weight, vector, arrived + i_g * LINE), (noise, given, index, logit, stoch)
    FIRST: tl.constexpr = RUN.first
    END: tl.constexpr = RUN.end
    for i_p in tl.static_range(FIRST, END):
        _stage(
            product, start, reset, hidden, entered, outs, x, params, drawn, action_noise, action,
            n, time, length, states, actions, at, i_m, (i_n, o_m, o_m < n), i_p, TAIL, RUN, PDL
        )  # fmt: skip
