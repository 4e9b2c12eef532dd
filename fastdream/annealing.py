"""Numbers that change while an agent learns, written as text so that a flag can hold them."""

import re
from collections.abc import Callable

from torch import Tensor

# Name -> the arguments that it takes. `x` below is the number of updates so far.
FORMS = {
    "linear": ("start", "end", "duration"),  # from start to end, then stays
    "warmup": ("duration", "value"),  # from 0 to value, then stays
    "exp": ("start", "end", "halflife"),  # approaches end
    "horizon": ("start", "end", "duration"),  # 1 - 1/h with h as linear: a discount
}


class Annealed:
    """A number, or `linear(a,b,n)`, `warmup(n,a)`, `exp(a,b,n)`, `horizon(a,b,n)` over updates.

    ValueError for any other text, with what would be one.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._value = _parse(text)

    def __reduce__(self) -> tuple[type["Annealed"], tuple[str]]:
        return Annealed, (self.text,)  # what was made of it cannot be pickled

    def __call__(self, count: Tensor) -> Tensor:
        """The value after `count` updates, 0-d like it, float32."""
        return self._value(count.float())


def _parse(text: str) -> Callable[[Tensor], Tensor]:
    match = re.fullmatch(r"\s*(\w+)\s*\(([^()]*)\)\s*", text)
    name, inner = (match[1], match[2].split(",")) if match else ("", [text])
    try:
        numbers = [float(part) for part in inner]
    except ValueError as error:
        raise _unknown(text) from error
    if not name:
        return lambda x: x * 0 + numbers[0]
    if name not in FORMS or len(numbers) != len(FORMS[name]):
        raise _unknown(text)
    if numbers[0 if name == "warmup" else 2] <= 0:
        raise ValueError(f"{text!r} changes over no updates: they must be more than 0")
    if name == "warmup":
        duration, value = numbers
        return lambda x: value * (x / duration).clamp(0, 1)
    start, end, duration = numbers
    if name == "exp":
        return lambda x: (start - end) * 0.5 ** (x / duration) + end
    if name == "horizon":
        return lambda x: 1 - 1 / _linear(x, start, end, duration)
    return lambda x: _linear(x, start, end, duration)


def _linear(x: Tensor, start: float, end: float, duration: float) -> Tensor:
    mix = (x / duration).clamp(0, 1)
    return (1 - mix) * start + mix * end


def _unknown(text: str) -> ValueError:
    forms = ", ".join(f"{name}({','.join(args)})" for name, args in FORMS.items())
    return ValueError(f"{text!r} is no number that changes over updates; write a number or {forms}")
