"""One job of cpu.py again and again, for a profiler to look at.

    cmake -S . -B build -DCMAKE_STRIP=true && cmake --build build && cp build/_C.* fastdream/    # keep the symbols
    perf record -e cpu-clock -D 4000 python benchmarks/repeat.py observe:1m --seconds 20
    perf report --no-children --stdio --comm python --dso $(basename fastdream/_C.*)

`-D` leaves out what Python does first. Jobs are those of benchmarks/bars.py.
"""

import argparse
import sys
import time
from pathlib import Path
from types import ModuleType


def main() -> None:
    """Repeat until the time is over, and say how often."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "job", help="observe:1m, imagine:12m, policy:proprio-1m-1x1, update:proprio-12m-4x16, ..."
    )
    parser.add_argument("--candidate", choices=("native", "reference"), default="native")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    args = parser.parse_args()
    import torch

    from benchmarks import jobs
    from fastdream.allocator import keep_freed_memory

    torch.set_flush_denormal(True)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    run = jobs.work(args.job, {args.candidate}).candidates[args.candidate]
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < args.seconds:
        run()
        count += 1
    print(f"{args.job}: {count} times, {1e3 * (time.perf_counter() - start) / count:.3g} ms each")


if __name__ == "__main__":
    # As in cpu.py: the folder is no installed package.
    package = sys.modules["benchmarks"] = ModuleType("benchmarks")
    package.__path__ = [str(Path(__file__).parent)]
    main()
