"""``aioconnect simulate``."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import aioconnect
from aioconnect.cli import main
from aioconnect.cli.simulate import _Meter
from aioconnect.simulation import Progress

Capture = pytest.CaptureFixture[str]

SMALL = ["simulate", "--clients", "60", "--outage", "3s", "--accept-rate", "50"]
ROOT = Path(aioconnect.__file__).parent.parent


def test_a_table_and_a_plot_are_printed(capsys: Capture) -> None:
    assert main([*SMALL, "--compare", "full,none"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith("60 clients lose their server for 3 s; until it is back dials are refused.\n")
    assert [line.split()[0] for line in printed.out.splitlines()[4:8]] == ["policy", "floor", "full", "none"]
    assert "Attempts per second, all to one scale" in printed.out
    assert "▲" in printed.out


def test_every_option_arrives(capsys: Capture) -> None:
    given = (
        "--clients 20 --outage 2s --accept-rate 40 --backlog 7 --overflow refused --rtt 4ms --connect-timeout 500ms "
        "--down silent --callers 2 --spread 1s --limits --horizon 30s --seed 5 --policy max_attempts=50,timeout=60s "
        "--policy stamina --compare breaker=off --parts 2 --json"
    )
    assert main(["simulate", *given.split()]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["scenario"] == {
        "clients": 20,
        "outage": 2.0,
        "accept_rate": 40.0,
        "backlog": 7.0,
        "overflow": "refused",
        "rtt": 0.004,
        "connect_timeout": 0.5,
        "down": "silent",
        "callers": 2,
        "spread": 1.0,
        "limits": True,
        "horizon": 30.0,
        "seed": 5,
    }
    names = [each["policy"] for each in document["outcomes"]]
    assert names == ["max_attempts=50,timeout=60s", "stamina", "breaker=off"]
    assert (document["schema"], document["floor"]) == (1, 1.0)


def test_the_document_has_what_is_documented(capsys: Capture) -> None:
    def outcome() -> dict[str, Any]:
        assert main([*SMALL, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)["outcomes"][0]
        return found

    once = outcome()
    assert once == outcome()
    documented = sys.modules["aioconnect.cli.simulate"].__doc__ or ""
    assert [name for name in once if f" {name}" not in documented] == []
    assert once["connected"] == 60
    assert once["t50"] < once["t99"] <= once["t100"]
    assert sum(count for _, count in once["arrivals"]) == once["attempts"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clients", "many"], "clients='many': must be an integer from 1 to 100000000"),
        (["--outage", "long"], "outage='long': must be a number of seconds, or a text such as '250ms', '2s', '1m'"),
        (["--accept-rate", "-1"], "accept_rate='-1': must be a number of connections a second, more than 0"),
        (["--rtt=-2ms"], "rtt='-2ms': must be at least 0 and finite"),
        (["--backlog", "deep"], "backlog='deep': must be a finite number, 0 or more"),
        (["--policy", "ful"], "policy='ful': 'ful' is no policy; did you mean full?"),
        (["--policy", "initial=9s"], "policy.maximum=5.0: must not be below initial, '9s'"),
        (["--compare", "full,nune"], "compare='nune': 'nune' is no policy; did you mean none?"),
        (["--processes", "0"], "processes=0: must be an integer from 1 to 1024"),
        (["--plot", "herd.gif"], "plot='herd.gif': must end with .svg, .png, .pdf"),
        (["--plot", "nowhere/herd.png"], "plot='nowhere/herd.png': must be in a directory that exists"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["simulate", *arguments]) == 2
    assert capsys.readouterr().err == f"aioconnect: {message}\n"


@pytest.mark.slow
def test_it_draws(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "herd.svg"
    assert main([*SMALL, "--plot", str(path), "--json"]) == 0
    assert path.read_text(encoding="utf-8").startswith("<?xml")
    assert json.loads(capsys.readouterr().out)["schema"] == 1
    path.unlink()
    path.mkdir()
    assert main([*SMALL, "--plot", str(path)]) == 2
    assert "cannot be written: Is a directory" in capsys.readouterr().err


def test_what_cannot_be_written_gets_ascii() -> None:
    command = [sys.executable, "-m", "aioconnect", *SMALL]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=True)
    assert done.stdout.isascii()
    assert b"Attempts per second" in done.stdout


@pytest.mark.slow
def test_a_bar_is_drawn_on_a_terminal_only_and_removed_again() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "aioconnect", *SMALL, "--clients", "700", "--accept-rate", "700"]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, timeout=60, check=True)
        os.set_blocking(ours, False)
        drawn = os.read(ours, 100_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "% [" in drawn
    assert drawn.endswith("\r\x1b[K")
    assert done.stdout.startswith(b"700 clients")


def test_the_bar_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    drawn = io.StringIO()
    monkeypatch.setattr("sys.stderr", drawn)
    meter = _Meter()
    meter.shown -= 1
    meter(Progress("full", 0.5, 1_234_567))
    meter(Progress("full", 0.6, 1_234_567))
    meter.clear()
    line, _, left = drawn.getvalue().partition("\x1b[K")
    assert line.startswith("\r 50% [###############...............] ")
    assert (len(line), left) == (40, "\r\x1b[K")
