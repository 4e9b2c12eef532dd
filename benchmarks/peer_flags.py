"""Flags that name other codebases to be timed: --peer begins one, --peer-path and --peer-python complete it."""

import argparse
from typing import Any


class TakePeer(argparse.Action):
    """Collects dictionaries with name, path and python."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, value: Any, option: str | None = None
    ) -> None:
        peers: list[dict[str, Any]] = args.peers
        if option == "--peer":
            args.peers = [*peers, {"name": value}]
        elif not peers:
            parser.error(f"{option} comes after the --peer that it belongs to")
        else:
            args.peers = [*peers[:-1], peers[-1] | {str(option).removeprefix("--peer-"): value}]


def complete(parser: argparse.ArgumentParser, peers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The peers, each with a path; exits with 2 where one has none."""
    if missing := [peer["name"] for peer in peers if "path" not in peer]:
        parser.error(
            f"--peer {missing[0]} needs a --peer-path DIR; benchmarks/peers/{missing[0]}.py says of what"
        )
    return peers
