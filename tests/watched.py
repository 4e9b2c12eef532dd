"""What an agent computes on its way to a loss: calls of its methods and ops, kept with what they gave."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Call(NamedTuple):
    """Positional arguments and result."""

    given: tuple[Any, ...]
    result: Any


Calls = dict[str, list[Call]]


def watch(owner: Any, *names: str) -> Calls:
    """Keep every call of these methods from now on, in the lists that are returned."""
    calls: Calls = {name: [] for name in names}
    for name, kept in calls.items():
        setattr(owner, name, _keeping(getattr(owner, name), kept))
    return calls


def watch_ops(agent: Any, *names: str) -> Calls:
    """Keep every call that the agent itself, not its networks, makes of these ops."""
    calls: Calls = {name: [] for name in names}
    agent.ops = agent.ops._replace(
        **{name: _keeping(getattr(agent.ops, name), kept) for name, kept in calls.items()}
    )
    return calls


def _keeping(function: Callable[..., Any], kept: list[Call]) -> Callable[..., Any]:
    def called(*args: Any, **kwargs: Any) -> Any:
        kept.append(Call(args, function(*args, **kwargs)))
        return kept[-1].result

    return called
