"""``aioconnect explain``: what an error means."""

from __future__ import annotations

import argparse
import sys

from aioconnect.errors import ConfigError, explain

__all__ = ("add_arguments", "run")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "text", nargs="*", metavar="CODE|TEXT", help="a code, a number, or any text that speaks of an error; - reads it"
    )
    parser.epilog = """\
examples:
  aioconnect explain ECONNREFUSED
  aioconnect explain 111
  aioconnect explain "OSError: [Errno 113] Connect call failed ('10.0.3.7', 5432)"
  journalctl -u service -n 50 | aioconnect explain -
"""


def run(options: argparse.Namespace) -> int:
    """Print the explanation. Raises `ConfigError` for what speaks of no error."""
    words: list[str] = options.text
    text = sys.stdin.read() if words == ["-"] else " ".join(words)
    if not text.strip():
        raise ConfigError("text='': must be a code, a number or the text of an error; - reads it from standard input")
    print(explain(text))
    return 0
