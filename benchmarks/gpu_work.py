"""What gpu.py measures in its own process: the machine, ops, whole updates and policy steps, as data for JSON."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from fastdream import ops as fd
from fastdream.ops import Dream, Ops, reference
from fastdream.replay import Replay
from fastdream.replay_device import DeviceReplay
from fastdream.transfer import Downloaded, Uploads

from . import floors
from .calls import PLANS, forward, forward_backward, leaves
from .gpu_bench import Bench, floor_of, mapped
from .inputs import Call
from .jobs import compiled, compiled_observe
from .shapes import BACKENDS, EarlierJob, Job, earlier_job, entries, job, random_batch, shape

# Which arguments of an op an agent has in the type of its matrix products; the others are float32 throughout.
HALF = {
    "norm_act": (0,), "conv_pool": (0,), "conv_spread": (0,), "image_loss": (0,),
    "mlp": (0,), "mlps": (0,), "prior": (1,),
    "block_gru": (1, 2, 3), "layernorm_gru": (1, 2, 3), "gru": (1, 2, 3),
    "categorical_sample": (0,), "gumbel_sample": (0,), "categorical_kl": (0, 1),
    "twohot_loss": (0,), "twohot_mean": (0,), "critic_loss": (0,), "bounded_normal": (0, 1), "latent_entropy": (0,),
    "observe_step": (1, 2, 3, 4), "observe": (1, 2, 3, 4), "imagine_step": (1, 2, 3), "imagine": (2, 3),
    "rollout": (1, 2, 3), "policy_step": (3, 4, 5, 6),
}  # fmt: skip


def machine(bench: Bench) -> dict[str, Any]:
    """What the device does at its best: FLOPs of a product in the type of matrix products, bytes of a copy."""
    side, size = (64, 2**10) if bench.dry else (8192, 2**28)
    a, b = (torch.randn(side, side, device=bench.device, dtype=bench.dtype) for _ in range(2))
    x, y = (torch.ones(size, device=bench.device) for _ in range(2))
    product = bench.measure(lambda: torch.mm(a, b))["median"]
    copy = bench.measure(lambda: y.copy_(x))["median"]
    return {"rates": {"flops": 2 * side**3 / product, "bytes": 2 * 4 * size / copy}}


def update(name: str, bench: Bench) -> dict[str, Any]:
    """One update of a whole agent, as it is called and as a graph."""
    task = job(name)
    agent = task.agent(fd.load("reference"))
    floor = floors.update(agent, random_batch(agent, task.batch, task.length), task.batch, task.length)
    del agent
    return {"floor": floor_of(floor), "candidates": _learners(task, bench)}


def update_earlier(name: str, bench: Bench) -> dict[str, Any]:
    """One update of an earlier agent, whose floor nobody has counted."""
    return {"candidates": _learners(earlier_job(name), bench)}


def _learners(task: Job | EarlierJob, bench: Bench) -> dict[str, Any]:
    makers = {}
    for key, table in bench.tables().items():
        makers[key] = partial(bench.learner, task, table, False)
        makers[f"{key} + graph"] = partial(bench.learner, task, table, True)
    return bench.candidates(makers)


def op(plan: str, size: str, bench: Bench) -> dict[str, Any]:
    """An op by every backend that has it, with gradients where it is learned through, called and as a graph."""
    call, name = on_device(plan, size, bench), plan.partition(":")[0]
    floor, run = pass_of(plan, call, getattr(reference, name))
    makers: dict[str, Callable[[], Callable[[], Any]]] = {}
    for backend in BACKENDS:
        try:
            table = fd.load("reference", device=bench.device, **{name: backend})
        except ValueError:
            continue
        function = getattr(table, name)
        if backend == "reference":
            makers[backend] = lambda f=function: partial(run, f)  # type: ignore[misc]
        makers[f"{backend} + graph"] = lambda f=function: bench.graph(partial(run, f))  # type: ignore[misc]
    return {"floor": floor_of(floor), "candidates": bench.candidates(makers)}


def on_device(plan: str, size: str, bench: Bench) -> Call:
    """A call whose tensors lie on the device, in the types in which an agent has them."""
    s, half = shape(size), HALF.get(plan.partition(":")[0], ())
    tiny = replace(s, batch=2, length=min(2, s.length), horizon=2)
    call = PLANS[plan].call(tiny if bench.dry else s)

    def move(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        kind = dtype if x.is_floating_point() else x.dtype
        return x.detach().to(bench.device, kind).requires_grad_(x.requires_grad)

    args = (
        mapped(lambda x, i=i: move(x, bench.dtype if i in half else x.dtype), arg)  # type: ignore[misc]
        for i, arg in enumerate(call.args)
    )
    return call._replace(args=tuple(args))


def pass_of(plan: str, call: Call, function: Callable[..., Any]) -> tuple[floors.Floor, Callable[..., Any]]:
    """The floor of a call, forward or with all gradients, and what makes it with a backend's function."""
    if not PLANS[plan].backward:
        floor = floors.forward(call.args, forward(function, call), call.flops)
        floor = floor if call.bytes is None else floor._replace(bytes=call.bytes)
        return floor, lambda f: forward(f, call)
    outputs = function(*call.args, **call.kwargs)
    grads = [torch.ones_like(x) for x in floors.tensors(outputs) if x.requires_grad]
    floor = floors.forward_backward(call.args, outputs, call.flops)
    return floor, lambda f: forward_backward(f, call, leaves(call), grads)


def policy(name: str, n: int, bench: Bench) -> dict[str, Any]:
    """One action in each of n environments, from observations in NumPy to actions in NumPy."""
    task, rng = job(name), np.random.default_rng(0)
    obs = {key: entries(space, (n,), rng) for key, space in task.obs.items()}
    obs["is_first"] = np.zeros(n, bool)

    def acting(table: Ops, captured: bool) -> Callable[[], Any]:
        agent = bench.agent(task, table, captured)
        return partial(agent.policy, agent.init_policy(n), obs)

    makers = {}
    for key, table in bench.tables().items():
        makers[key] = partial(acting, table, False)
        makers[f"{key} + graph"] = partial(acting, table, True)
    floor = floors.policy(task.agent(fd.load("reference")), n)
    return {"floor": floor_of(floor), "candidates": bench.candidates(makers)}


def transfer(name: str, bench: Bench) -> dict[str, Any]:
    """A batch to the device and its latents back: all keys in one pinned copy, each by itself, or never elsewhere."""
    task, copies = job(name), bench.copies()
    batch = random_batch(task.agent(fd.load("reference")), task.batch, task.length)
    data = {key: x.numpy() for key, x in batch.items()}
    uploads = Uploads(copies, {key: (x.shape, x.dtype) for key, x in data.items()})
    uploads.put(data)
    there = uploads.put(data).tensors()
    latents = {key: there[key] for key in ("deter", "stoch")}
    nbytes = floors.nbytes(batch)
    spec = {key: (x.shape[2:], x.dtype) for key, x in data.items()}
    sizes = spec, task.batch * batch["reward"].shape[1], 1, batch["reward"].shape[1]
    ram, resident = Replay(*sizes), DeviceReplay(*sizes, device=bench.device, copies=copies)
    for step in np.ndindex(batch["reward"].shape):
        for replay in (ram, resident):
            replay.add(0, {key: x[step] for key, x in data.items()})
    ids = resident.gather(task.batch).ids

    def sampled() -> Any:
        ram.read(ram.draw(task.batch), uploads.buffers)
        return uploads.send().tensors()

    found = bench.candidates(
        {
            "sampled in RAM, and up": lambda: sampled,
            "sampled on the device": lambda: lambda: resident.gather(task.batch),
            "latents to a replay in RAM": lambda: (
                lambda: ram.update(ids, Downloaded(copies, latents).arrays())
            ),
            "latents to a replay on the device": lambda: lambda: resident.update(ids, latents),
            "up, one pinned copy": lambda: lambda: uploads.send().tensors(),
            "up, packed before": lambda: lambda: uploads.put(data).tensors(),
            "up, key by key": lambda: lambda: {key: x.to(bench.device) for key, x in batch.items()},
            "latents down, one pinned copy": lambda: lambda: Downloaded(copies, latents).arrays(),
            "latents down, key by key": lambda: lambda: {key: x.cpu() for key, x in latents.items()},
        }
    )
    return {"nbytes": nbytes, "candidates": found}


def profiles(name: str, bench: Bench) -> dict[str, Any]:
    """Kernels of an update, and which share of its time one of them is running."""
    found = {}
    for key, table in bench.tables().items():
        for captured in (True,) if bench.dry else (True, False):
            call = bench.learner(job(name), table, captured)
            about = bench.profiled(call)
            wall = bench.measure(call)["median"]
            about |= {"wall": wall, "utilisation": about["busy"] / wall}
            found[f"{key} + graph" if captured else key] = about
            del call
            bench.clean()
    return {"profiles": found}


def compiled_op(size: str, bench: Bench) -> dict[str, Any]:
    """The observe scan through torch.compile, a few steps at a time, called and as a graph."""
    call = on_device("observe", size, bench)
    floor, run = pass_of("observe", call, reference.observe)
    function = partial(compiled_observe, backend=compiler(bench))
    makers = {
        "compiled": lambda: partial(run, function),
        "compiled + graph": lambda: bench.graph(partial(run, function)),
    }
    return {"floor": floor_of(floor), "candidates": bench.candidates(makers)}


def compiled_update(name: str, bench: Bench) -> dict[str, Any]:
    """An update whose scans and larger ops go through torch.compile, called and as a graph."""
    table, backend = fd.load("reference", device=bench.device), compiler(bench)
    whole = (
        "mlp",
        "mlps",
        "prior",
        "conv_pool",
        "conv_spread",
        "image_loss",
        "categorical_kl",
        "twohot_loss",
        "twohot_mean",
    )
    table = table._replace(
        observe=partial(compiled_observe, backend=backend),
        imagine=partial(compiled_imagine, backend=backend),
        **{key: compiled(getattr(reference, key), backend) for key in whole},
    )
    makers = {"compiled": partial(bench.learner, job(name), table, False)}
    makers["compiled + graph"] = partial(bench.learner, job(name), table, True)
    return {"candidates": bench.candidates(makers)}


def compiler(bench: Bench) -> str:
    """A backend of torch.compile."""
    return "eager" if bench.dry else "inductor"


def compiled_imagine(
    rssm: Any, actor: Any, deter: Any, stoch: Any, length: int, *noise: Any, backend: str
) -> Dream:
    """The reference through torch.compile, a few steps at a time."""
    step, pieces = 3, []
    draws, action_draws, *_ = noise
    for begin in range(0, length, step):
        count = min(step, length - begin)
        part = compiled(reference.imagine, backend)(
            rssm,
            actor,
            deter,
            stoch,
            count,
            draws[:, begin : begin + count],
            action_draws[:, begin : begin + count + 1],
        )
        deter, stoch = part.deter[:, -1], part.stoch[:, -1]
        last = begin + count == length
        cut = [x if last else x[:, :-1] for x in (part.deter, part.stoch, part.action)]
        pieces.append((cut[0], cut[1], part.logit, cut[2]))
    return Dream(*(torch.cat(xs, 1) for xs in zip(*pieces, strict=True)))
