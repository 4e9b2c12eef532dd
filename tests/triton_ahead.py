"""`python -m tests.triton_ahead`: kernels that were found out on tensors without memory beside those of real tensors.

    found      reads requests of `fastdream.ahead` from standard input, as JSON; writes for each how many kernels it
               leads to, and the names of those that acting and learning on real tensors launches beyond these.
    command    fulfils the request there as `python -m fastdream.ahead` does, but for learning; writes for each kernel
               that acting on real tensors launches whether Triton found it in its cache.
    device     fulfils the request as a run does, then acts and learns on this machine's GPU; writes the names of the
               kernels, and of what launches them, that Triton did not find in its cache.

Runs in a process of its own, where Triton does not interpret.
"""

import io
import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import triton
from torch._subclasses.fake_tensor import FakeTensorMode

from fastdream import agents, ahead
from fastdream import config as configs
from fastdream.ops.triton import library
from fastdream.ops.triton.ahead import Work, pretend
from fastdream.spaces import spaces_from_json

from . import agent_tools, dreamer_tools


def act(agent: Any, wanted: Mapping[str, Any]) -> None:
    """On real tensors."""
    tools, n = agent_tools if agent.replay_context else dreamer_tools, wanted["environments"]
    for mode in ("sample", "mode"):
        agent.policy(agent.init_policy(n), tools.observation(agent, n), mode)


def compared(wanted: dict[str, Any], told: list[Work]) -> dict[str, Any]:
    """What one request leads to; `told` gets every kernel that was not launched before."""
    begun = len(told)
    with FakeTensorMode():
        ahead.launch_all(ahead.make(wanted), wanted)
    found = len(told)
    agent, (rows, length) = ahead.make(wanted), wanted["batch"]
    tools = agent_tools if agent.replay_context else dreamer_tools
    agent.update(agent.init_train(rows), tools.batch(agent, rows, length))
    act(agent, wanted)
    return {"found": found - begun, "more": [work.name for work in told[found:]]}


def found() -> list[dict[str, Any]]:
    told: list[Work] = []
    requests = json.load(sys.stdin)
    (capability,) = {wanted["capability"] for wanted in requests}
    pretend(capability, told.append)
    return [compared(wanted, told) for wanted in requests]


def command() -> list[bool]:
    request = sys.stdin.read()
    sys.stdin, wanted = io.StringIO(request), json.loads(request)
    ahead.learn = lambda *_: None
    with redirect_stdout(sys.stderr):
        ahead.main()
    hits: list[bool] = []
    library.run = lambda kernel, grid, args, constants: kernel.warmup(*args, grid=grid, **constants)
    triton.knobs.runtime.jit_cache_hook = None
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    act(ahead.make(wanted), wanted)
    return hits


def device() -> list[str]:
    request = sys.stdin.read()
    done = subprocess.run(
        ahead.COMMAND, input=request, text=True, env=ahead.environment(), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    wanted, missed = json.loads(request), []

    def look(*, src: Any, cache_hit: bool, **_: Any) -> None:
        missed.extend([src.fn.__name__] * (not cache_hit))

    def build(name: str, *args: Any, **options: Any) -> Any:
        missed.extend([name] * (name != "cuda_utils"))  # which every process that has a GPU needs
        return compiled(name, *args, **options)

    compiled, triton.runtime.build._build = triton.runtime.build._build, build
    triton.knobs.compilation.listener = look
    spaces = [spaces_from_json(wanted[key]) for key in ("obs", "act")]
    dreamer = configs.from_dict(agents.settings(wanted["agent"]).Config, wanted["dreamer"])
    agent = agents.find(wanted["agent"])(*spaces, dreamer, device="cuda")
    tools, (rows, length) = agent_tools if agent.replay_context else dreamer_tools, wanted["batch"]
    agent.update(
        agent.init_train(rows), {k: x.to("cuda") for k, x in tools.batch(agent, rows, length).items()}
    )
    act(agent, wanted)
    return missed


if __name__ == "__main__":
    modes = {"found": found, "command": command, "device": device}
    with np.errstate(all="ignore"):  # of results that nobody computed
        json.dump(modes[sys.argv[1]](), sys.stdout)
