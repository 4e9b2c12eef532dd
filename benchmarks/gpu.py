"""Everything that a GPU must show, in one command: floors, ops, scans, whole updates, and other codebases beside them.

    python benchmarks/gpu.py                              all of it, within 8 minutes; writes results/gpu.json
    python benchmarks/gpu.py --only update --only hardware
    python benchmarks/gpu.py --dry-run                    the same on a CPU at tiny sizes, to see that it runs
    python benchmarks/gpu.py --table                      the tables of results/gpu.json, in Markdown
    python benchmarks/gpu.py --peer r2dreamer --peer-path FOLDER [--peer-python PYTHON]

The work is cut into parts, most valuable first. They run in a process beside this one: a part that fails, crashes or
takes too long is recorded with its error, and the next ones run on. The exit status is 0 if every part ran.
`nvcc` compiles the hardware probe; where there is none, --probe takes a program that was compiled elsewhere by

    nvcc -O3 -std=c++17 -arch=sm_90a benchmarks/probes/hardware.cu -o hardware
"""

import sys
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    # The folder is no installed package, and this file was started by its path: its neighbours find one another under
    # this name.
    package = sys.modules["benchmarks"] = ModuleType("benchmarks")
    package.__path__ = [str(Path(__file__).parent)]
    from benchmarks.gpu_run import main

    sys.exit(main(description=__doc__))
