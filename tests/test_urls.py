"""The pieces of a URL."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioconnect import urls
from aioconnect.errors import ConfigError
from aioconnect.urls import Parts, quote, split_url, unquote
from aioconnect.validation import Problems

KNOWN = ("nodelay", "alpn")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("db:80", Parts("tcp", ("db:80",), None, {})),
        ("tcp://a:1,b:2", Parts("tcp", ("a:1", "b:2"), None, {})),
        ("TLS://a:1?alpn=h2", Parts("tls", ("a:1",), None, {"alpn": "h2"})),
        ("tcp://a:1?", Parts("tcp", ("a:1",), None, {})),
        ("tcp://a:1?alpn=a%2Cb%3D%26=&nodelay=", Parts("tcp", ("a:1",), None, {"alpn": "a,b=&=", "nodelay": ""})),
        ("tcp://%61:80", Parts("tcp", ("a:80",), None, {})),
        ("[fe80::1%eth0]:80", Parts("tcp", ("[fe80::1%eth0]:80",), None, {})),
        ("[fe80::1%25eth0]:80", Parts("tcp", ("[fe80::1%eth0]:80",), None, {})),
        ("[fe80::1%25]:80", Parts("tcp", ("[fe80::1%25]:80",), None, {})),
        ("[fe80::1%2525]:80", Parts("tcp", ("[fe80::1%25]:80",), None, {})),
        ("SRV+tcp://_a._tcp.b%2Ec?nodelay=1", Parts("srv+tcp", (), None, {"nodelay": "1"}, "_a._tcp.b.c")),
        ("srv+tls://", Parts("srv+tls", (), None, {}, "")),
        ("unix:///run/app.sock", Parts("unix", (), "/run/app.sock", {})),
        ("unix:/run/app.sock", Parts("unix", (), "/run/app.sock", {})),
        ("unix:////run", Parts("unix", (), "//run", {})),
        ("unix:///run/a@b?alpn=h2", Parts("unix", (), "/run/a@b", {"alpn": "h2"})),
        ("UNIX:run/app.sock", Parts("unix", (), "run/app.sock", {})),
        ("unix:%40app", Parts("unix", (), "@app", {})),
        ("unix://@app", Parts("unix", (), "\0app", {})),
        ("unix:@app", Parts("unix", (), "\0app", {})),
        ("unix://@/a%20b%40c", Parts("unix", (), "\0/a b@c", {})),
    ],
)
def test_split_url(url: str, parts: Parts) -> None:
    problems = Problems()
    assert split_url(problems, url, KNOWN) == parts
    assert problems.found == []


def test_what_is_wrong_behind_the_place_is_only_noted() -> None:
    problems = Problems()
    parts = split_url(problems, "tls://a:1/db?nodelya=1&alpn=h2&alpn=x&nodelay=%2&nodelay#x", KNOWN)
    assert parts == Parts("tls", ("a:1",), None, {"alpn": "h2"})
    assert problems.found == [
        "path='/db': must not be there: only ?options can follow tls://host:port",
        "fragment='#': must not be there; a # is written %23",
        "option='nodelya': is unknown; did you mean nodelay?",
        "option='alpn': must be given only once",
        "nodelay='%2': must have two hexadecimal digits after each %",
        "option='nodelay': must have a value, as in nodelay=...",
    ]


@pytest.mark.parametrize("url", ["tcp://a:1,b%:2", "unix:///a%", "http://u:secret@h", 5, " a:1", "unix://a"])
def test_what_is_wrong_with_the_place_is_raised(url: object) -> None:
    with pytest.raises(ConfigError):
        split_url(Problems(), url, KNOWN)


@given(
    st.text(alphabet=st.characters(exclude_categories=["Cs"]))
    | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))
)
def test_quoting_round_trips(text: str) -> None:
    quoted = quote(text)
    assert quoted.isascii()
    assert quoted.isprintable()
    assert not set(quoted) & set("@?#&= ")
    assert unquote(quoted) == text


@given(st.text())
def test_any_text_can_be_unquoted_or_not(text: str) -> None:
    assert isinstance(unquote(text), str | None)


@pytest.mark.parametrize("text", ["%", "%2", "%zz", "%2 ", "a%", "%%", "%é0", "%20\ud800"])
def test_broken_quoting(text: str) -> None:
    assert unquote(text) is None


@pytest.mark.parametrize(
    ("path", "url"),
    [("/a b", "unix:///a%20b"), ("@a", "unix:%40a"), ("\0a@b", "unix://@a%40b"), ("é", "unix:%C3%A9")],
)
def test_format_path(path: str, url: str) -> None:
    assert urls.format_path(path) == url
    assert split_url(Problems(), url, ()).path == path
