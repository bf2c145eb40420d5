"""Single values: what is taken, what is refused, and in which words."""

from __future__ import annotations

import math
import os
import socket
import ssl
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioconnect import validation
from aioconnect.errors import ConfigError
from aioconnect.validation import Problems, format_duration, parse_duration, shown


class Secretive:
    def __repr__(self) -> str:
        raise AssertionError("somebody else's repr was asked for")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (1.5, "1.5"),
        ("a b", "'a b'"),
        ("\ud800", r"'\ud800'"),
        (b"a\0", r"b'a\x00'"),
        ("user:secret@host", "'***'"),
        ("user%3Asecret%40host", "'***'"),
        (("user:secret@host", 1), "('***', 1)"),
        ([1, 2, 3, 4, 5], "(1, 2, 3, 4, ...)"),
        ((), "()"),
        (Path("/run/x"), "'/run/x'"),
        (socket.AF_INET, "AF_INET"),
        (ssl.TLSVersion.TLSv1_2, "TLSv1_2"),
        (Secretive(), "<Secretive>"),
        ({"password": "secret"}, "<dict>"),
        pytest.param(10**5000, "<16610-bit integer>", id="huge"),
        ("x" * 100, "'" + "x" * 76 + "..."),
    ],
)
def test_shown(value: object, text: str) -> None:
    assert shown(value) == text


def test_problems_are_raised_at_once() -> None:
    problems = Problems()
    problems.raise_any()
    problems.add("a", 1, "must be 2")
    problems.add("b", "x", "must be y")
    with pytest.raises(ConfigError) as caught:
        problems.raise_any()
    assert caught.value.problems == ("a=1: must be 2", "b='x': must be y")


def test_problems_of_a_part() -> None:
    def wrong() -> int:
        raise ConfigError("count=0: must be more", "idle=0: must be more")

    problems = Problems()
    assert problems.unless_wrong(lambda: 5) == 5
    assert problems.unless_wrong(wrong, "part.") is None
    assert problems.found == ["part.count=0: must be more", "part.idle=0: must be more"]


def test_did_you_mean() -> None:
    assert validation.did_you_mean("nodelya", ("nodelay", "family")) == "did you mean nodelay?"
    assert validation.did_you_mean("zzz", ("nodelay", "family")) == "must be one of nodelay, family"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25), ("2s", 2.0), ("1m", 60.0), ("1.5h", 5400.0), ("3", 3.0), ("1e3", 1000.0), (".5", 0.5),
        ("-1s", -1.0), ("1e999", math.inf),
        ("", None), ("s", None), ("ms", None), ("soon", None), ("1d", None), ("1 s", None), (" 1", None),
        ("1_0", None), ("nan", None), ("inf", None), ("٣", None), ("1s1s", None), ("e", None), ("0x10", None),
    ],
)  # fmt: skip
def test_parse_duration(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "250ms"), (0.01, "10ms"), (15.0, "15s"), (1.5, "1.5s"), (1e15, "1000000000000000.0s"), (1e-9, "1e-09s")],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False))
def test_durations_round_trip_to_the_last_bit(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@given(st.text())
def test_any_text_is_a_duration_or_none(text: str) -> None:
    seconds = parse_duration(text)
    assert seconds is None or isinstance(seconds, float)


@pytest.mark.parametrize(("value", "seconds"), [(1, 1.0), (0.5, 0.5), ("250ms", 0.25)])
def test_durations(value: object, seconds: float) -> None:
    problems = Problems()
    checked = validation.check_duration(problems, "wait", value)
    assert (checked, type(checked), problems.found) == (seconds, float, [])


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (None, "must be a number of seconds, or a text such as '250ms', '2s', '1m'"),
        (True, "must be a number of seconds, or a text such as '250ms', '2s', '1m'"),
        (b"1s", "must be a number of seconds, or a text such as '250ms', '2s', '1m'"),
        (0, "must be more than 0 and finite"),
        (-1, "must be more than 0 and finite"),
        (-0.0, "must be more than 0 and finite"),
        (math.nan, "must be more than 0 and finite"),
        (math.inf, "must be more than 0 and finite"),
        ("1e999", "must be more than 0 and finite"),
    ],
)
def test_no_durations(value: object, right: str) -> None:
    problems = Problems()
    validation.check_duration(problems, "wait", value)
    assert problems.found == [f"wait={shown(value)}: {right}"]


def test_durations_have_limits() -> None:
    problems = Problems()
    assert validation.check_duration(problems, "wait", "10ms", 0.01, 60) == 0.01
    validation.check_duration(problems, "wait", 0.009, 0.01)
    validation.check_duration(problems, "wait", "2m", 0.01, 60)
    validation.check_duration(problems, "wait", 10**400, high=60)
    assert problems.found == [
        "wait=0.009: must be at least 10ms and finite",
        "wait='2m': must be at least 10ms and at most 60s",
        "wait=<1329-bit integer>: must be more than 0 and at most 60s",
    ]


@pytest.mark.parametrize(("value", "seconds"), [(None, None), ("off", None), ("1s", 1.0)])
def test_optional_durations(value: object, seconds: float | None) -> None:
    problems = Problems()
    assert validation.check_optional_duration(problems, "wait", value) == seconds
    assert problems.found == []


@pytest.mark.parametrize("value", [5, "5", "005", socket.IPPROTO_EGP - 3])
def test_integers(value: object) -> None:
    problems = Problems()
    number = validation.check_integer(problems, "count", value, 1, 9)
    assert (number, type(number), problems.found) == (5, int, [])


@pytest.mark.parametrize("value", [0, 10, -5, 10**400, "0", "+5", "٣", "", "9" * 5000, True, 5.0, None, b"5"])
def test_no_integers(value: object) -> None:
    problems = Problems()
    validation.check_integer(problems, "count", value, 1, 9)
    assert len(problems.found) == 1
    assert problems.found[0].endswith(": must be an integer from 1 to 9")


def test_an_integer_without_an_upper_limit() -> None:
    problems = Problems()
    assert validation.check_integer(problems, "count", 10**30, 1) == 10**30
    validation.check_integer(problems, "count", 0, 1)
    assert problems.found == ["count=0: must be an integer, 1 or more"]


@pytest.mark.parametrize("text", ["on", "ON", "true", "yes", "1"])
def test_switched_on(text: str) -> None:
    problems = Problems()
    assert validation.check_switch(problems, "nodelay", text) is True
    assert validation.check_switch(problems, "nodelay", True) is True
    assert problems.found == []


@pytest.mark.parametrize("text", ["off", "False", "no", "0"])
def test_switched_off(text: str) -> None:
    problems = Problems()
    assert validation.check_switch(problems, "nodelay", text) is False
    assert problems.found == []


@pytest.mark.parametrize("value", [None, 1, 0, "", "maybe"])
def test_no_switch(value: object) -> None:
    problems = Problems()
    validation.check_switch(problems, "nodelay", value)
    assert problems.found == [f"nodelay={value!r}: must be True or False; on or off in a text"]


@pytest.mark.parametrize("value", ["a,b", ["a", "b"], ("a", "b"), iter(["a", "b"])])
def test_sequences(value: object) -> None:
    problems = Problems()
    assert validation.check_sequence(problems, "alpn", value) == ("a", "b")
    assert problems.found == []


@pytest.mark.parametrize("value", [5, None, b"a,b", bytearray(b"a")])
def test_no_sequences(value: object) -> None:
    problems = Problems()
    validation.check_sequence(problems, "alpn", value)
    assert problems.found == [f"alpn={shown(value)}: must be a sequence, or a text with commas"]


@pytest.mark.parametrize("value", ["/etc/ca.pem", b"/etc/ca.pem", Path("/etc/ca.pem")])
def test_files(value: object) -> None:
    problems = Problems()
    assert validation.check_file(problems, "ca_file", value) == "/etc/ca.pem"
    assert validation.check_file(problems, "ca_file", None) is None
    assert problems.found == []


def test_the_name_of_a_file_need_not_be_text() -> None:
    problems = Problems()
    assert validation.check_file(problems, "ca_file", b"\xff") == os.fsdecode(b"\xff")
    # Two escaped bytes that are one character together: the same file, so the same value.
    assert validation.check_file(problems, "ca_file", "\udcc3\udca9") == "é"
    assert problems.found == []


@pytest.mark.parametrize(
    ("value", "right"),
    [
        ("", "must be the path of a UNIX socket, not empty"),
        (5, "must be the path of a UNIX socket: str, bytes or PathLike"),
        ("\ud800", "must be a path that the file system's encoding can write"),
        ("tcp://h:1", "must be the path of a UNIX socket, not a URL"),
        ("a\0b", "must not contain a NUL character, but for the first of an abstract name"),
        ("\0", "must not contain a NUL character, but for the first of an abstract name"),
        ("x" * 500, f"must be at most {validation.LONGEST_SOCKET_PATH} bytes long, and has 500"),
        ("é" * 54, f"must be at most {validation.LONGEST_SOCKET_PATH} bytes long, and has 108"),
    ],
)
def test_no_socket_paths(value: object, right: str) -> None:
    problems = Problems()
    validation.check_socket_path(problems, "path", value)
    assert problems.found == [f"path={shown(value)}: {right}"]


def test_the_longest_socket_path_is_taken() -> None:
    problems = Problems()
    longest = "/" + "x" * (validation.LONGEST_SOCKET_PATH - 1)
    assert validation.check_socket_path(problems, "path", longest) == longest
    assert problems.found == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is the kernel's")
def test_the_kernel_has_the_same_limit(tmp_path: Path) -> None:
    longest = "\0" + "x" * (validation.LONGEST_SOCKET_PATH - 1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(longest)
    with socket.socket(socket.AF_UNIX) as sock, pytest.raises(OSError, match="too long"):
        sock.bind(str(tmp_path / ("x" * validation.LONGEST_SOCKET_PATH)))


def test_abstract_names_exist_on_linux_only(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = Problems()
    monkeypatch.setattr(sys, "platform", "linux")
    assert validation.check_socket_path(problems, "path", "\0app") == "\0app"
    assert problems.found == []
    monkeypatch.setattr(sys, "platform", "darwin")
    validation.check_socket_path(problems, "path", "\0app")
    assert problems.found == [r"path='\x00app': must be a path: abstract names exist on Linux only"]
