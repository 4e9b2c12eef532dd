"""Other Dreamer codebases on fastdream's kernels: functions of theirs replaced at run time, their sources untouched.

    python -m fastdream.integrations r2dreamer train.py env=dmc_walker_walk     their own command, behind ours
    python -m fastdream.integrations sheeprl -m sheeprl exp=dreamer_v3          a module, as with `python -m`

or in a program, before it makes its agent:

    from fastdream.integrations import r2dreamer

    patch = r2dreamer.install()  # patch.undo() puts their functions back, as does the end of a `with` block

The command also lets freed memory stay with its process, as our own commands do; a program that wants that calls
`fastdream.allocator.keep_freed_memory()`. On a CPU it took 5 to 7 % off updates at size12m, B4 x T16, one thread.

Parameters, checkpoints, settings and logs remain theirs. What is computed remains what they compute, up to rounding and
to which random numbers draw a sample; each module says where it departs from that. A release whose functions take
other arguments than the one that a module names is refused before anything is replaced.
"""
