"""Triton's interpreter without what it does again and again.

At every launch, and at every call of a device function, it looks through all of Triton's language for what it must
replace by its own, and only after a launch it puts some of that back. For kernels as small as those of tests this takes
most of the time. Here it looks once for each function, and what it has replaced stays so: nothing is compiled beside.
"""

from functools import cache


def look_once() -> None:
    """From now on, in this process."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    interpreter._patch_lang = cache(interpreter._patch_lang)
    interpreter._LangPatchScope.restore = lambda scope: None
