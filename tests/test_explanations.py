from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
import subprocess
import sys
import textwrap

import pytest

import aioconnect
from aioconnect import codes, errors, explaining
from aioconnect.explanations import CERTIFICATE_PROBLEMS, EXPLANATIONS

MEMBERS = tuple(row.member for row in codes.rows())


def first_codes(text: str) -> list[str]:
    """The codes of the sheets and of the lines "Also: ..." of an explanation, in order."""
    return [
        re.split(r"[:,]", line.removeprefix("Also: "))[0]
        for line in text.splitlines()
        if line and not line.startswith(" ")
    ]


# The entries


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_is_explained(member: str) -> None:
    entry = EXPLANATIONS[member]
    assert all(entry)
    for text in (entry.meaning, entry.said_by, entry.advice, *entry.causes):
        assert text == text.strip()
        assert not text.endswith(".")


def test_there_is_no_entry_for_what_does_not_exist() -> None:
    beside_the_table = EXPLANATIONS.keys() - set(MEMBERS) - {"UNKNOWN"}
    assert {code for code in beside_the_table if not hasattr(errno, code)} == set()


@pytest.mark.parametrize("member", MEMBERS)
def test_the_advice_says_what_the_default_policy_does(member: str) -> None:
    row, advice = codes.row(member), EXPLANATIONS[member].advice
    if "retried by default" in advice:
        assert ("not retried by default" in advice) == (row.kind not in {"transient", "local"})


def test_set_names_in_the_advice_are_those_of_the_kind() -> None:
    for member in MEMBERS:
        for name in ("STARTING", "DENIED"):
            if f"add {name} to retry_on" in EXPLANATIONS[member].advice:
                assert codes.row(member).kind == name.lower()


# What `explain` takes


@pytest.mark.parametrize("code", sorted({row.code for row in codes.rows()}))
def test_a_code_of_the_table_gives_a_sheet_for_each_member(code: str) -> None:
    text = aioconnect.explain(code)
    assert first_codes(text) == [code] * len(codes.members_of(code))
    assert all(len(line) <= 88 for line in text.splitlines())
    for member in codes.members_of(code):
        assert EXPLANATIONS[member].advice.split(";")[0] in " ".join(text.split())


def test_a_sheet_says_everything() -> None:
    here = errno.ECONNREFUSED
    expected = f"""\
        ECONNREFUSED: nothing listens on that port, or a firewall says so
          number     {here} here ({sys.platform}); 1225, 1234, 10061 on Windows
          raised as  ConnectRefused
          kind       transient: in the set TRANSIENT, retried by default
          said by    the host itself, by a TCP reset, or a firewall, by ICMP port-unreachable
          causes     - the service is starting, restarting or has crashed
                     - it listens on another port or only on 127.0.0.1; inside a container that
                       is not the host's loopback
                     - a Kubernetes Service without ready endpoints: kube-proxy rejects for it
                     - a firewall with REJECT as its default answer
                     - a UNIX socket file that an earlier server left behind
          advice     retried by default; if it lasts, look at the port (`ss -ltn` there) and at
                     the service's log"""
    assert aioconnect.explain("ECONNREFUSED") == textwrap.dedent(expected)


@pytest.mark.parametrize(
    ("what", "code"),
    [
        (errno.ECONNREFUSED, "ECONNREFUSED"),
        (str(errno.ETIMEDOUT), "ETIMEDOUT"),
        (f" {errno.EHOSTUNREACH}\n", "EHOSTUNREACH"),
        (socket.EAI_AGAIN, "EAI_AGAIN"),
        (str(socket.EAI_NONAME), "EAI_NONAME"),
        (10061, "ECONNREFUSED"),
        (1236, "ECONNABORTED"),
        (11001, "EAI_NONAME"),
        (errno.EIO, "EIO"),
        (4242 % 4096 + 3000, "ERRNO_3146"),
        ("ERRNO_3146", "ERRNO_3146"),
        ("econnrefused", "ECONNREFUSED"),
        ("WSAECONNREFUSED", "ECONNREFUSED"),
        ("UV_ECONNRESET", "ECONNRESET"),
        ("EWOULDBLOCK", "EAGAIN"),
        ("EACCES@inet", "EACCES"),
        ("EINVAL", "EINVAL"),
        ("certificate_verify_failed", "CERTIFICATE_VERIFY_FAILED"),
        ("TLSV1_ALERT_RECORD_OVERFLOW: an alert", "TLSV1_ALERT_RECORD_OVERFLOW"),
    ],
)
def test_a_number_or_a_name(what: str | int, code: str) -> None:
    if code == "TLSV1_ALERT_RECORD_OVERFLOW":
        assert explaining.explanation_of(code).meaning == "tlsv1 alert record overflow"
    else:
        assert set(first_codes(aioconnect.explain(what))) == {code}


def test_a_member_is_explained_alone() -> None:
    assert aioconnect.explain("EACCES@inet") in aioconnect.explain("EACCES")
    assert len(first_codes(aioconnect.explain("EACCES@inet"))) == 1


class DriverError(Exception):
    """Some library's own."""


def wrapped(inner: BaseException) -> BaseException:
    try:
        raise DriverError("cannot connect") from inner
    except DriverError as outer:
        return outer


@pytest.mark.parametrize(
    ("exc", "codes_found"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), ["ECONNREFUSED"]),
        (TimeoutError(), ["ETIMEDOUT"]),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), ["EAI_AGAIN"]),
        (wrapped(OSError(errno.EMFILE, "Too many open files")), ["EMFILE"]),
        (asyncio.IncompleteReadError(b"", 4), ["ECONNRESET"]),
        (errors.PeerClosed(b"", 4), ["EOF"]),
        (errors.NotReady("loading"), ["NOT_READY"]),
        (errors.ConnectError("who knows"), ["UNKNOWN"]),
        (errors.typed("EACCES", "connect", "/run/app.sock"), ["EACCES"]),
        (
            ExceptionGroup("both", [OSError(errno.ENETUNREACH, "no"), OSError(errno.ECONNREFUSED, "no")]),
            ["ENETUNREACH", "ECONNREFUSED"],
        ),
    ],
)
def test_an_exception(exc: BaseException, codes_found: list[str]) -> None:
    assert first_codes(aioconnect.explain(exc)) == codes_found


def test_of_an_exception_only_its_own_meaning_is_told() -> None:
    text = aioconnect.explain(errors.typed("EACCES", "connect", "/run/app.sock"))
    assert "mode or owner of the socket file" in text
    assert "ICMPv6" not in text


TRACEBACK = f"""\
Traceback (most recent call last):
  File "/usr/lib/python3.13/asyncio/selector_events.py", line 635, in sock_connect
    return await fut  # not ConnectionResetError
           ^^^^^^^^^
ConnectionRefusedError: [Errno {errno.ECONNREFUSED}] Connect call failed ('127.0.0.1', 1)

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "service.py", line 4, in start
    except BrokenPipeError: ...
httpx.ConnectError: All connection attempts failed
"""

GROUP = f"""\
  + Exception Group Traceback (most recent call last):
  |   File "<stdin>", line 1, in <module>
  |     raise ConnectionAbortedError
  | ExceptionGroup: create_connection failed (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "a.py", line 1, in <module>
    |     raise BrokenPipeError
    | ConnectionRefusedError: [Errno {errno.ECONNREFUSED}] Connect call failed
    +---------------- 2 ----------------
    | OSError: [Errno {errno.ENETUNREACH}] Network is unreachable
    +------------------------------------
"""

MULTIPLE = (
    f"OSError: Multiple exceptions: [Errno {errno.ECONNREFUSED}] Connect call failed ('::1', 1, 0, 0), "
    f"[Errno {errno.ENETUNREACH}] Network is unreachable"
)

OURS = """\
aioconnect.errors.ConnectRefused: tls://db:1: connect 10.0.0.7:1: [ECONNREFUSED] connection refused (9 attempts in ...)
10.0.0.7:1: [ECONNREFUSED] connection refused after 0.1 ms
9 attempts: ECONNREFUSED x8, ETIMEDOUT x1
"""


@pytest.mark.parametrize(
    ("text", "codes_found"),
    [
        (f"[Errno {errno.ECONNREFUSED}] Connect call failed ('127.0.0.1', 1)", ["ECONNREFUSED"]),
        ("ConnectionRefusedError", ["ECONNREFUSED"]),
        ("<class 'ConnectionRefusedError'>", ["ECONNREFUSED"]),
        ("aioconnect.errors.NameNotFound", ["EAI_NONAME"]),
        ("getaddrinfo failed", ["EAI_NONAME"]),
        ("CERTIFICATE_VERIFY_FAILED", ["CERTIFICATE_VERIFY_FAILED"]),
        (TRACEBACK, ["ECONNREFUSED"]),
        (textwrap.indent(TRACEBACK, "    "), ["ECONNREFUSED"]),
        (GROUP, ["ECONNREFUSED", "ENETUNREACH"]),
        (MULTIPLE, ["ECONNREFUSED", "ENETUNREACH"]),
        # Numbers of other systems, told by the words or the class beside them.
        ("ConnectionRefusedError: [Errno 61] Connect call failed ('127.0.0.1', 1)", ["ECONNREFUSED"]),
        ("[Errno 54] Connection reset by peer", ["ECONNRESET"]),
        ("[Errno 61] Connect call failed ('127.0.0.1', 1)", ["ECONNREFUSED"]),
        ("socket.gaierror: [Errno 8] nodename nor servname provided, or not known", ["EAI_NONAME"]),
        ("socket.gaierror: [Errno 11001] getaddrinfo failed", ["EAI_NONAME"]),
        (
            "[WinError 10061] No connection could be made because the target machine actively refused it",
            ["ECONNREFUSED"],
        ),
        ("OSError: [WinError 121] The semaphore timeout period has expired", ["ETIMEDOUT"]),
        ("socket.timeout: timed out", ["ETIMEDOUT"]),
        ("asyncio.exceptions.IncompleteReadError: 0 bytes read on a total of 4 expected bytes", ["EOF"]),
        ("RuntimeError: can't start new thread", ["THREADS_EXHAUSTED"]),
        ("PermissionError: [Errno 1] Operation not permitted", ["EPERM", "EPERM"]),
        # TLS.
        ("ssl.SSLError: [SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)", ["WRONG_VERSION_NUMBER"]),
        ("[SSL] tlsv1 alert no application protocol (_ssl.c:1006)", ["TLSV1_ALERT_NO_APPLICATION_PROTOCOL"]),
        ("SSL routines::ssl/tls alert handshake failure", ["SSLV3_ALERT_HANDSHAKE_FAILURE"]),
        ("ssl.SSLEOFError: EOF occurred in violation of protocol", ["UNEXPECTED_EOF_WHILE_READING"]),
        # Other programs.
        ("redis.exceptions.ConnectionError: Error 111 connecting to cache:6379. Connection refused.", ["ECONNREFUSED"]),
        ("Error: connect ECONNREFUSED 127.0.0.1:5432", ["ECONNREFUSED"]),
        ("Error: getaddrinfo ENOTFOUND db.internal", ["EAI_NONAME"]),
        ("dial tcp 10.0.0.1:5432: i/o timeout", ["ETIMEDOUT"]),
        ("dial tcp: lookup db on 10.0.0.2:53: no such host", ["EAI_NONAME"]),
        ("x509: certificate signed by unknown authority", ["CERTIFICATE_VERIFY_FAILED"]),
        (
            'could not translate host name "db" to address: Temporary failure in name resolution',
            ["EAI_AGAIN"],
        ),
        ("Connection refused (os error 111)", ["ECONNREFUSED"]),
        # Ours, with its notes.
        (OURS, ["ECONNREFUSED", "ETIMEDOUT"]),
    ],
)
def test_a_pasted_text(text: str, codes_found: list[str]) -> None:
    assert first_codes(aioconnect.explain(text)) == codes_found


@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_what_the_system_says_is_recognised(number: int) -> None:
    """Each errno's own exception text leads back to its code."""
    members = codes.members_of(codes.code_of(number))
    assert explaining.members_in(str(OSError(number, os.strerror(number)))) == members


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("certificate has expired", "it has expired, or the clock"),
        ("self-signed certificate", "the server made it itself"),
        ("self-signed certificate in certificate chain", "its root is not known"),
        ("unable to get local issuer certificate", "its authority is not known"),
        ("Hostname mismatch, certificate is not valid for 'db'.", "it is for another name"),
    ],
)
def test_a_certificate_problem_is_named(words: str, meaning: str) -> None:
    text = f"[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: {words} (_ssl.c:1006)"
    assert f"here       {meaning}" in aioconnect.explain(text)
    exc = ssl.SSLCertVerificationError(1, text)
    exc.verify_code, exc.verify_message, exc.reason = 1, words, "CERTIFICATE_VERIFY_FAILED"
    assert f"here       {meaning}" in aioconnect.explain(exc)


def test_certificate_problems_are_found_as_they_are_written() -> None:
    for words in CERTIFICATE_PROBLEMS:
        assert words == words.lower()


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("ECONREFUSED", "; did you mean ECONNREFUSED?"),
        ("etimeout", "; did you mean ETIMEDOUT?"),
        ("ConnectionRefuseError", "; did you mean ConnectionRefusedError?"),
        ("hello", ""),
        ("", ""),
        (0, ""),
        (99999, ""),
        (-4711, ""),
        (KeyError("x"), ""),
        (asyncio.CancelledError(), ""),
    ],
)
def test_what_speaks_of_no_error(what: str | int | BaseException, hint: str) -> None:
    with pytest.raises(aioconnect.ConfigError) as caught:
        aioconnect.explain(what)
    (problem,) = caught.value.problems
    assert problem.startswith("what=")
    assert problem.endswith(f"must be a code, a number, an exception or a text that speaks of one{hint}")


def test_no_problem_repeats_a_secret_or_a_whole_page() -> None:
    with pytest.raises(aioconnect.ConfigError) as caught:
        aioconnect.explain("https://me:secret@host/")
    assert "secret" not in str(caught.value)
    with pytest.raises(aioconnect.ConfigError) as caught:
        aioconnect.explain("word " * 1000)
    assert len(str(caught.value)) < 200


def test_explaining_costs_no_import_until_it_is_asked_for() -> None:
    program = "import sys, aioconnect; assert 'difflib' not in sys.modules; print(aioconnect.explain('EOF')[:3])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "EOF\n"
