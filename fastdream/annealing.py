"""Numbers that change while an agent learns, written as text so that a flag can hold them."""

import re

from torch import Tensor

# Name -> the arguments that it takes.
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
        self.form, self.numbers = _parse(text)

    def __call__(self, count: Tensor) -> Tensor:
        """The value after `count` updates, 0-d like it, float32."""
        x = count.float()
        if not self.form:
            return x * 0 + self.numbers[0]
        start, end, duration = self.numbers
        if self.form == "exp":
            return (start - end) * 0.5 ** (x / duration) + end
        mix = (x / duration).clamp(0, 1)
        value = (1 - mix) * start + mix * end
        return 1 - 1 / value if self.form == "horizon" else value


def _parse(text: str) -> tuple[str, list[float]]:
    """The form, of which "" is a number, and its arguments; those of a warm-up as of what is linear from 0 on."""
    match = re.fullmatch(r"\s*(\w+)\s*\(([^()]*)\)\s*", text)
    name, inner = (match[1], match[2].split(",")) if match else ("", [text])
    try:
        numbers = [float(part) for part in inner]
    except ValueError as error:
        raise _unknown(text) from error
    if not name:
        return name, numbers
    if name not in FORMS or len(numbers) != len(FORMS[name]):
        raise _unknown(text)
    if name == "warmup":
        name, numbers = "linear", [0.0, *reversed(numbers)]
    if numbers[2] <= 0:
        raise ValueError(f"{text!r} changes over no updates: they must be more than 0")
    return name, numbers


def _unknown(text: str) -> ValueError:
    forms = ", ".join(f"{name}({','.join(args)})" for name, args in FORMS.items())
    return ValueError(f"{text!r} is no number that changes over updates; write a number or {forms}")
