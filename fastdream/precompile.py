"""python -m fastdream.precompile 9.0 --task atari100k_pong --size 12m

Compile the kernels that `python -m fastdream.train` with these flags launches on a GPU of that compute capability, for
the image of a container, say, whose runs shall not begin by compiling. They come into Triton's cache: TRITON_CACHE_DIR,
else .triton/cache in the home directory. No GPU is needed, but the versions of Triton, PyTorch and fastdream that will
run.
"""

import re
import subprocess
import sys
from collections.abc import Sequence

from fastdream import agents, ahead, cli, entry
from fastdream.driver import Voice
from fastdream.ops import triton
from fastdream.train import make_driver


def main(args: Sequence[str] | None = None) -> None:
    """The command. Exits with 2 after a mistake of its user, and 1 where a kernel cannot be compiled."""
    args = sys.argv[1:] if args is None else args
    if not args or args[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        raise SystemExit(0 if args else 2)
    try:
        given = request(args[0], args[1:])
    except ValueError as error:
        entry.fail(str(error))
    done = subprocess.run(ahead.COMMAND, input=given, text=True, env=ahead.environment())
    if done.returncode:
        entry.fail("the kernels were not compiled: see above", code=1)
    print(f"for compute capability {args[0]}; they are in {ahead.cache()}")


def request(capability: str, flags: Sequence[str]) -> str:
    """What `ahead` is asked for; ValueError if that cannot be."""
    if not re.fullmatch(r"\d+\.\d", capability):
        raise ValueError(
            f"{capability!r} is no compute capability: give one such as 8.0 (A100), 9.0 (H100, H200) or 8.9 (L4)"
        )
    number = int(capability.replace(".", ""))
    if number < 80:
        raise ValueError(f"kernels need compute capability 8.0, asked for is {capability}")
    if problem := triton.missing():
        raise ValueError(problem)
    config = cli.parse(flags).config
    if config.ops not in ahead.BY_TRITON:
        raise ValueError(f"--ops {config.ops} takes no kernels of Triton: leave it out")
    if config.agent in agents.STAGED:
        raise ValueError(f"--agent {config.agent}: it has few kernels, which are compiled as it goes")
    with make_driver(config, Voice()) as driver:
        return ahead.request(config, driver.obs_space, driver.act_space, number)


if __name__ == "__main__":
    entry.run(main)
