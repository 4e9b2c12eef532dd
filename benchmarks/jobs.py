"""The jobs of `bars` as functions to call: what each candidate does, and the least work that it comes down to.

`native` is what `--ops auto` runs, `reference` plain PyTorch; both are in this process and see the same inputs.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fastdream import ops as fd
from fastdream.agents.dreamer_v3 import DreamerV3
from fastdream.ops import RSSM, Layer, Step, reference

from . import floors
from .bars import OURS, Rates
from .calls import PLANS, forward, forward_backward, leaves
from .clock import best
from .floors import Floor
from .shapes import entries, job, random_batch, shape

TABLES = {"reference": "reference", OURS: "auto"}
OPS = {"observe": "observe", "imagine": "imagine", "imagine16": "imagine:16"}
CHUNK = 4  # steps that are compiled as one graph


class Work(NamedTuple):
    """What to time, by candidate, and its floor."""

    candidates: dict[str, Callable[[], Any]]
    floor: Floor


def work(name: str, wanted: set[str]) -> Work:
    """A job's candidates, as far as they are wanted and are no peers."""
    kind, _, rest = name.partition(":")
    build = {"policy": policy, "update": update}.get(kind) or partial(op, OPS[kind])
    return build(rest, wanted & {*TABLES, "compiled"})


def op(plan: str, size: str, wanted: set[str]) -> Work:
    """One call of an op, with all gradients where its plan has any."""
    call, name = PLANS[plan].call(shape(size)), plan.partition(":")[0]
    functions = {key: getattr(fd.load(backend), name) for key, backend in TABLES.items() if key in wanted}
    if "compiled" in wanted:
        functions["compiled"] = compiled_observe
    with torch.no_grad():
        least = floors.forward(call.args, reference_outputs(name, call.args), call.flops)
    if not PLANS[plan].backward:
        return Work({key: partial(forward, f, call) for key, f in functions.items()}, least)
    outputs = reference_outputs(name, call.args)
    grads = [torch.ones_like(x) for x in floors.tensors(outputs) if x.requires_grad]
    run = {key: partial(forward_backward, f, call, leaves(call), grads) for key, f in functions.items()}
    return Work(run, floors.forward_backward(call.args, outputs, call.flops))


def reference_outputs(name: str, args: tuple) -> Any:
    return getattr(reference, name)(*args)


@cache
def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """Made when it is wanted, since even that takes a while."""
    torch._dynamo.config.recompile_limit = 64  # one function meets the shapes of many layers
    return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)


def compiled_observe(
    rssm: RSSM,
    deter: Tensor,
    stoch: Tensor,
    action: Tensor,
    embed: Tensor,
    reset: Tensor,
    noise: Tensor,
    index: None = None,
    backend: str = "inductor",
) -> Step:
    """The reference through torch.compile, a few steps at a time: the whole scan would take hours to compile."""
    steps = []
    for inputs in zip(*(x.split(CHUNK, 1) for x in (action, embed, reset, noise)), strict=True):
        steps.append(compiled(reference.observe, backend)(rssm, deter, stoch, *inputs))
        deter, stoch = steps[-1].deter[:, -1], steps[-1].stoch[:, -1]
    return Step(*(torch.cat(parts, 1) for parts in zip(*steps, strict=True)))


def policy(name: str, wanted: set[str]) -> Work:
    """One action in each of so many environments, from observations in NumPy to actions in NumPy."""
    task, rng, calls = job(name), np.random.default_rng(0), {}
    n = task.batch * task.length
    obs = {key: entries(space, (n,), rng) for key, space in task.obs.items()}
    obs["is_first"] = np.zeros(n, bool)
    for key in wanted & set(TABLES):
        agent = task.agent(fd.load(TABLES[key]))
        calls[key] = partial(agent.policy, agent.init_policy(n), obs)
    return Work(calls, floors.policy(agent, n))


def update(name: str, wanted: set[str]) -> Work:
    """One update with everything that belongs to it."""
    calls = {}
    for key in wanted & set(TABLES):
        agent, batch = learner(name, key)
        calls[key] = partial(agent.update, agent.init_train(job(name).batch), batch)
    return Work(calls, floors.update(agent, batch, job(name).batch, job(name).length))


def learner(name: str, candidate: str) -> tuple[DreamerV3, dict[str, Tensor]]:
    """An agent and a batch for it."""
    task = job(name)
    agent = task.agent(fd.load(TABLES[candidate]))
    return agent, random_batch(agent, task.batch, task.length)


def convolution_share(name: str) -> float:
    """Of the CPU time of an update, what convolutions and their gradients take; 0 without images."""
    run = update(name, {OURS}).candidates[OURS]
    run()
    with profile(activities=[ProfilerActivity.CPU]) as trace:
        run()
    times = {event.key: event.self_cpu_time_total for event in trace.key_averages()}
    return sum(time for key, time in times.items() if "conv" in key) / sum(times.values())


def peak_memory(name: str, candidate: str) -> int:
    """Bytes that updates take on top of the agent and its batch, at most. Wants a process of its own (Linux)."""
    agent, batch = learner(name, candidate)
    carry = agent.init_train(job(name).batch)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts anew
    before = _status("VmRSS")
    for _ in range(3):
        agent.update(carry, batch)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """A line of /proc/self/status in bytes."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{key}:"))


def machine_rates(side: int = 1024, size: int = 2**26) -> Rates:
    """The best of several products and several ways to read memory, with the threads that torch uses now."""
    a, b = torch.randn(2, side, side).unbind()
    x = torch.ones(size)
    rows, ones = x.view(-1, 2**12), torch.ones(2**12)
    product = best([lambda: torch.mm(a, b), own_product(a, b)])
    reading = best([x.sum, lambda: torch.mv(rows, ones), lambda: torch.dot(x, x)])
    return Rates(2 * side**3 / product, 4 * size / reading)


def own_product(a: Tensor, b: Tensor) -> Callable[[], Tensor]:
    """The same product as one linear layer by the native kernels, or by torch where there are none."""
    layers, mlp = (Layer(b.t().contiguous()),), fd.load("auto").mlp
    return lambda: mlp(a, layers)
