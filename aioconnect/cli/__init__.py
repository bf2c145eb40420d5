"""The ``aioconnect`` command: ``demo``, ``probe``, ``chaos``, ``explain`` and ``simulate``.

Exit status: 0 good, 1 not reachable, 2 bad usage, 130 interrupted. What is wrong with an argument is said in one line
on standard error, ``aioconnect: FIELD=VALUE: what would be right``.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NoReturn

from aioconnect import __version__
from aioconnect.errors import ConfigError
from aioconnect.validation import did_you_mean, shown

__all__ = ("main",)

_COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "demo": "watch a connection come through to a server that refuses, resets and stalls",
        "probe": "dial every address of an endpoint and say what each of them answers",
        "chaos": "put faults between clients and a real server: a proxy with latency, resets, stalls, outages",
        "explain": "say what an error means: a code, a number, or a pasted text",
        "simulate": "show what a retry policy does to a server that comes back",
    }
)


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are a `ConfigError`, which `main` prints in one line."""

    def error(self, message: str) -> NoReturn:
        what, _, rest = message.partition(": ")
        if what.startswith("unrecognized"):
            problem = f"arguments={shown(rest)}: are unknown"
        elif what.startswith("the following"):
            problem = f"{rest}='': must be given"
        else:
            problem = f"{what.removeprefix('argument ')}='': {rest}"
        raise ConfigError(f"{problem}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, by default those of the process; the exit status."""
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        # What is still buffered is written here, where a reader that has gone is no error.
        sys.stdout.flush()
    except ConfigError as exc:
        for problem in exc.problems:
            print(f"aioconnect: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # As in `aioconnect probe ... | head -1`. The interpreter flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _run(arguments: Sequence[str]) -> int:
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    if chosen is not None and chosen not in _COMMANDS:
        hint = did_you_mean(chosen, _COMMANDS)
        raise ConfigError(f"command={shown(chosen)}: is none; {hint}")
    parser = _Parser(
        prog="aioconnect", description="Connect with typed errors, retries and backoff.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"aioconnect {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command")
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.", allow_abbrev=False)
        if name == chosen:
            module = importlib.import_module(f"aioconnect.cli.{name}")
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:
        # --help and --version print and leave.
        return int(end.code or 0)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    status: int = options.run(options)
    return status
