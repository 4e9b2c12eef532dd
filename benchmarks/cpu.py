"""What the native ops reach on this CPU, beside plain PyTorch, torch.compile and other codebases.

    python benchmarks/cpu.py --bars                                    everything; exit status 1 if a bar is missed
    python benchmarks/cpu.py --bars --only observe-1m --threads 1
    python benchmarks/cpu.py --bars --peer torchrl --peer-path VENV --peer-python VENV/bin/python \\
                                    --peer r2dreamer --peer-path FOLDER --peer-python VENV/bin/python

Candidates of a job are timed in turn; what is compared are medians of one run and one number of threads. Peers are
timed where they are given, by the adapters in benchmarks/peers, which say how to get them; a bar whose peer is not
there is neither met nor missed. `--peer r2dreamer+fastdream` times r2dreamer on our ops, by `fastdream.integrations`.
torch.compile takes minutes for each shape and number of threads, and less once its cache is filled.
"""

import sys
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    # The folder is no installed package, and this file was started by its path: its neighbours find one another under
    # this name.
    package = sys.modules["benchmarks"] = ModuleType("benchmarks")
    package.__path__ = [str(Path(__file__).parent)]
    from benchmarks.contest import main

    sys.exit(main(description=__doc__))
