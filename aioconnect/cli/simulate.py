"""``aioconnect simulate``: what a policy does to a server that comes back.

With ``--json`` one document is printed. Its fields stay as they are; new ones may be added::

    schema        1
    scenario      the arguments, durations in seconds
    floor         seconds in which the server could accept everybody
    outcomes      a list, one entry for each policy:
      policy                  its name
      attempts                connects that were begun
      attempts_per_client     the mean
      most_attempts           of one client
      peak_per_second_down    the most attempts in a second before the return
      peak_per_second         the most attempts in a second after the return
      peak_per_100ms          the most attempts in a tenth of a second after the return
      connected               connections in the end
      t50, t99, t100          seconds after the return until that share was connected; null if it never was
      gave_up                 calls that ended in an error, by stop_reason
      overflowed              SYNs for which the accept queue had no room
      wasted                  connections that were accepted although the client had left
      arrivals                a list of [seconds after the return, attempts in that tenth of a second]
      digest                  a hash of the times of all attempts and connections
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

from aioconnect.errors import ConfigError

if TYPE_CHECKING:
    from aioconnect.simulation import Progress

__all__ = ("add_arguments", "run")

_WIDEST = 120
_BAR = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_scenario(parser.add_argument_group("scenario"))
    policies = parser.add_argument_group("policies")
    policies.add_argument(
        "--policy", action="append", metavar="SPEC", help="a name or settings; may be given more than once"
    )
    policies.add_argument("--compare", metavar="NAMES", help="variations on the first policy, with commas between")
    running = parser.add_argument_group("running")
    running.add_argument("--seed", default="1", help="of all chance: the same seed, the same result (default: 1)")
    running.add_argument("--parts", metavar="N", help="simulate the fleet in N parts (default: as many as processes)")
    running.add_argument("--processes", default="1", metavar="N", help="of which N at once (default: 1)")
    output = parser.add_argument_group("output")
    output.add_argument("--plot", metavar="FILE", help="draw into a .svg, .png or .pdf too; needs the extra plot")
    output.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    parser.epilog = """\
policies:
  full, equal, decorrelated, none    kinds of jitter, of the package's own backoff
  aws, fixed, grpc, stamina, tenacity    how others wait
  initial=100ms,maximum=60s,jitter=equal    settings: initial, maximum, factor, jitter,
    attempt_timeout, timeout, max_attempts (with --limits), breaker=on|off, budget=on|off

examples:
  aioconnect simulate --clients 5000 --outage 30s --accept-rate 200 --compare full,equal,none
  aioconnect simulate --policy maximum=5s --policy maximum=60s --plot herd.svg
  aioconnect simulate --clients 50 --callers 100 --compare full,breaker=off
  aioconnect simulate --clients 1000000 --accept-rate 40000 --backlog 25600 --parts 10 --processes 2
"""


def _add_scenario(group: Any) -> None:
    group.add_argument("--clients", default="1000", metavar="N", help="that lose the server (default: 1000)")
    group.add_argument("--outage", default="30s", metavar="TIME", help="until it is back (default: 30s)")
    group.add_argument(
        "--accept-rate", default="200", metavar="N", help="connections it accepts in a second (default: 200)"
    )
    group.add_argument("--backlog", default="128", metavar="N", help="that may wait for it (default: 128)")
    group.add_argument(
        "--overflow", default="dropped", metavar="HOW", help="others are dropped, or refused (default: dropped)"
    )
    group.add_argument("--rtt", default="2ms", metavar="TIME", help="for a packet and its answer (default: 2ms)")
    group.add_argument("--connect-timeout", metavar="TIME", help="for one attempt (default: the policy's, 5s)")
    group.add_argument(
        "--down", default="refused", metavar="HOW", help="while down it is refused, or silent (default: refused)"
    )
    group.add_argument("--callers", default="1", metavar="N", help="that share a client's connector (default: 1)")
    group.add_argument("--spread", default="0s", metavar="TIME", help="until all have noticed (default: 0s)")
    group.add_argument("--limits", action="store_true", help="clients give up as their policy says, not never")
    group.add_argument("--horizon", metavar="TIME", help="end so long after the return, whoever is connected")


_SCENARIO = (
    "clients outage accept_rate backlog overflow rtt connect_timeout down callers spread limits horizon seed"
).split()


def run(options: argparse.Namespace) -> int:
    """Simulate and print. Raises `ConfigError` for a bad argument."""
    from aioconnect.simulation import simulate
    from aioconnect.simulation.plotting import check_plot

    if options.plot is not None:
        check_plot(options.plot)
    scenario = {name: getattr(options, name) for name in _SCENARIO}
    meter = _Meter() if sys.stderr.isatty() else None
    try:
        report = simulate(
            policy=options.policy,
            compare=options.compare,
            parts=options.parts,
            processes=options.processes,
            progress=meter,
            **scenario,
        )
    finally:
        if meter is not None:
            meter.clear()
    if options.json:
        print(json.dumps(report.to_dict()))
    else:
        width = min(_WIDEST, shutil.get_terminal_size((100, 24)).columns)
        print(report.text(width, ascii_only=not _writes("▁░▲│")))
    if options.plot is not None:
        _draw(report, options.plot)
    return 0


def _draw(report: Any, path: str) -> None:
    try:
        report.plot(path)
    except OSError as exc:
        raise ConfigError(f"plot={path!r}: cannot be written: {exc.strerror}") from exc


def _writes(text: str) -> bool:
    """Whether standard output has these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


class _Meter:
    """A progress bar on standard error, for whoever waits for more than a moment."""

    def __init__(self) -> None:
        self.began = self.shown = time.monotonic()
        self.drawn = False

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self.shown < 0.2:
            return
        self.shown = now
        done = min(_BAR, int(progress.share * _BAR))
        bar = "#" * done + "." * (_BAR - done)
        line = (
            f"{progress.share:4.0%} [{bar}] {now - self.began:.0f} s  {progress.policy}, {progress.attempts:,} attempts"
        )
        width = shutil.get_terminal_size((100, 24)).columns
        print(f"\r{line[: width - 1]}\x1b[K", end="", file=sys.stderr, flush=True)
        self.drawn = True

    def clear(self) -> None:
        """Leave nothing of it."""
        if self.drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
