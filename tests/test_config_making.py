"""What is made of settings: text forms, inheritance within tables, and each wrong value with where it was said."""

from __future__ import annotations

import json
import ssl
import tomllib
from pathlib import Path

import pytest
import tenacity

from aioconnect import TLS, TRANSIENT, Backoff, Endpoint, Policy, config
from aioconnect.validation import CREDENTIALS
from tests.support.configuring import DURATION, ENDPOINT, SECRET, from_text, hello, one, problems_of


@pytest.mark.parametrize(
    ("settings", "policy"),
    [
        ({"timeout": "off"}, Policy(timeout=None)),
        ({"timeout": None}, Policy(timeout=None)),
        ({"max_attempts": "off", "attempt_timeout": "1m"}, Policy(attempt_timeout=60)),
        ({"retry_on": ["Transient", "LOCAL"]}, Policy()),
        ({"retry_on": "TRANSIENT,LOCAL"}, Policy()),
        ({"retry_on": {"TRANSIENT", KeyError}}, Policy(TRANSIENT | {KeyError})),
        ({"never_retry_on": ""}, Policy()),
        ({"never_retry_on": []}, Policy()),
        ({"wait": {}}, Policy()),
        ({"wait": {"jitter": "none"}}, Policy(wait=Backoff(jitter="none"))),
    ],
)
def test_text_forms(settings: dict[str, object], policy: Policy) -> None:
    assert one({"url": "db:1", "policy": settings}).connector.policy == policy


@pytest.mark.parametrize(
    ("settings", "endpoint"),
    [
        ("db:1", Endpoint("db", 1)),
        ("tcp://a:1,b:2?shuffle=on", Endpoint(targets="a:1,b:2", shuffle=True)),
        ("srv+tls://_db._tcp.example.org", Endpoint(srv="_db._tcp.example.org", tls=True)),
        ("unix:///run/db.sock?server_hostname=db", Endpoint(path="/run/db.sock", tls=TLS(server_hostname="db"))),
        ({"targets": ["a:1", "b:2"]}, Endpoint(targets="a:1,b:2")),
        ({"host": b"db", "port": "1", "local_addr": "off"}, Endpoint("db", 1)),
        ({"path": b"/run/db.sock"}, Endpoint(path="/run/db.sock")),
        ({"url": "db:1?nodelay=off&interleave=2", "nodelay": True}, Endpoint("db", 1, interleave=2)),
        ({"url": "tls://db:1?alpn=h2", "tls": {"alpn": ["x", "y"]}}, Endpoint("db", 1, tls=TLS(alpn="x,y"))),
        ({"url": "tls://db:1?ca_file=a", "tls": {"ca_file": "off"}}, Endpoint("db", 1, tls=True)),
    ],
)
def test_places(settings: object, endpoint: Endpoint) -> None:
    made = one(settings)
    assert made.connector.endpoint == endpoint
    text = tomllib.loads(config.effective("db", made))["aioconnect"]
    assert config.from_mapping(text).endpoints["db"].connector.endpoint == endpoint


def test_a_url_that_asks_for_tls_is_not_contradicted() -> None:
    assert problems_of(one, {"url": "tls://db:1", "tls": False}) == [
        "endpoints.db.tls=False: must not contradict the URL, which asks for TLS"
    ]


@pytest.mark.parametrize(
    ("defaults", "own", "tls"),
    [
        ({"tls": {"ca_file": "a"}}, {}, None),
        ({"tls": {"ca_file": "a"}}, {"tls": True}, TLS(ca_file="a")),
        ({"tls": {"ca_file": "a"}}, {"tls": {}}, TLS(ca_file="a")),
        ({"tls": {"ca_file": "a"}}, {"tls": {"ca_file": "off"}}, TLS()),
        ({"tls": {"ca_file": "a"}}, {"tls": {"cert_file": "b"}}, TLS(ca_file="a", cert_file="b")),
        ({}, {"tls": False}, None),
        ({"keepalive": False}, {"tls": "on"}, TLS()),
    ],
)
def test_defaults_say_how_tls_is_spoken_and_an_endpoint_whether(
    defaults: dict[str, object], own: dict[str, object], tls: TLS | None
) -> None:
    made = config.from_mapping({"defaults": defaults, "endpoints": {"db": {"host": "db", "port": 1, **own}}})
    assert made.endpoints["db"].connector.endpoint.tls == tls


def test_a_table_can_be_switched_off_and_on_again() -> None:
    tree = {
        "defaults": {"keepalive": False},
        "endpoints": {
            "a": "a:1",
            "b": {"url": "b:1", "keepalive": {"count": 3}},
            "c": {"url": "c:1", "keepalive": True},
        },
    }
    made = {name: each.connector.endpoint.keepalive for name, each in config.from_mapping(tree).endpoints.items()}
    assert [str(each) for each in made.values()] == ["None", "15s:15s:3", "15s:15s:9"]


def test_functions_are_arguments() -> None:
    context = ssl.create_default_context()
    made = config.from_mapping(
        {"defaults": {"link": {"heartbeat": {"every": "5s"}}}, "endpoints": {"a": "a:1", "b": "b:1"}},
        functions={
            "prepare": hello,
            "observers": [print],
            "context": {"a": context},
            "wait": {"b": tenacity.wait_fixed(1)},
            "send": {"b": hello},
            "stop": None,
        },
    )
    a, b = made.endpoints["a"], made.endpoints["b"]
    assert a.connector.prepare is b.connector.prepare is hello
    assert a.connector.observers == (print,)
    assert a.connector.endpoint.tls == TLS(context=context)
    assert b.connector.endpoint.tls is None
    assert isinstance(b.connector.policy.wait, tenacity.wait_fixed)
    assert a.new_link().heartbeat is None
    assert (beat := b.new_link().heartbeat) is not None
    assert beat.every == 5


def test_one_retry_budget_for_all_that_have_none_of_their_own() -> None:
    tree = {
        "budget": {"ratio": 0.1},
        "endpoints": {"a": "a:1", "b": "b:1", "c": {"url": "c:1", "policy": {"budget": {}}}},
    }
    a, b, c = (each.connector.record.till for each in config.from_mapping(tree).endpoints.values())
    assert a is b is not c
    assert a is not None
    assert c is not None
    assert (a.tokens.budget.ratio, c.tokens.budget.ratio) == (0.1, 0.2)
    shared = config.from_mapping(tree, {"AIOCONNECT__BUDGET": "off"}).endpoints["a"].connector.record.till
    assert shared is None
    shared = config.from_mapping(tree, {"AIOCONNECT__BUDGET__RATIO": "0.5"}).endpoints["a"].connector.record.till
    assert shared is not None
    assert shared.tokens.budget.ratio == 0.5


def test_what_is_said_alike_is_made_once_but_true_is_not_one() -> None:
    tree = {"endpoints": {name: {"url": "a:1", "policy": {"max_attempts": 1}} for name in "ab"}}
    a, b = (each.connector for each in config.from_mapping(tree).endpoints.values())
    assert a.policy is b.policy
    assert a.record is not b.record
    tree["endpoints"]["b"]["policy"] = {"max_attempts": True}
    assert problems_of(config.from_mapping, tree) == [
        "endpoints.b.policy.max_attempts=True: must be an integer, 1 or more"
    ]


# -- What is wrong ---------------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[str, str]] = {
    "unknown": ("nodelai = true", "{}: key='nodelai': is unknown; did you mean nodelay?"),
    "unknown, elsewhere": (
        "timeout = 5",
        "{}: key='timeout': is unknown; did you mean policy.timeout or link.heartbeat.timeout?",
    ),
    "unknown, like one elsewhere": ("max_sise = 5", "{}: key='max_sise': is unknown; did you mean pool.max_size?"),
    "unknown in a table": ("policy.timeot = 5", "{}.policy: key='timeot': is unknown; did you mean timeout?"),
    "in the wrong table": ("policy.max_size = 5", "{}.policy: key='max_size': is unknown; did you mean pool.max_size?"),
    "table for a value": ("limit = {{}}", "{}.limit=<dict>: must be a value, not a table"),
    "value for a table": ("policy = 5", "{}.policy=5: must be a table"),
    "value for a switch": ("link.heartbeat = 5", "{}.link.heartbeat=5: must be a table, true or false"),
    "duration": ("policy.timeout = 'soon'", "{}.policy.timeout='soon': " + DURATION),
    "no duration": ("policy.timeout = 0", "{}.policy.timeout=0: must be more than 0 and finite"),
    "negative duration": ("user_timeout = -1", "{}.user_timeout=-1: must be at least 1ms and at most 2147483s"),
    "nan": ("policy.attempt_timeout = nan", "{}.policy.attempt_timeout=nan: must be more than 0 and finite"),
    "bool for a duration": ("policy.timeout = true", "{}.policy.timeout=True: " + DURATION),
    "date": ("policy.timeout = 2024-01-01", "{}.policy.timeout=<date>: " + DURATION),
    "attempts": ("policy.max_attempts = 0", "{}.policy.max_attempts=0: must be an integer, 1 or more"),
    "number for an error": (
        "policy.retry_on = ['TRANSIENT', 111]",
        "{}.policy.retry_on=111: must be the name ECONNREFUSED: numbers differ between systems",
    ),
    "unknown number": (
        "policy.never_retry_on = 5000",
        "{}.policy.never_retry_on=5000: must be the name of an error: numbers differ between systems",
    ),
    "unknown code": (
        "policy.retry_on = ['ECONREFUSED']",
        "{}.policy.retry_on: code='ECONREFUSED': is no known code; did you mean ECONNREFUSED?",
    ),
    "no code": (
        "policy.retry_on = [1.5]",
        "{}.policy.retry_on: entry=1.5: must be a code name, an errno number or an exception class",
    ),
    "backoff": ("policy.wait.maximum = '10ms'", "{}.policy.wait.maximum='10ms': must not be below initial, 0.1"),
    "factor": ("policy.wait.factor = 'two'", "{}.policy.wait.factor='two': must be a finite number, at least 1"),
    "jitter": (
        "policy.wait.jitter = 'ful'",
        "{}.policy.wait.jitter='ful': must be one of full, equal, decorrelated, none",
    ),
    "function": ("prepare = 'hello'", "{}: key='prepare': must be given as an argument, prepare={{'db': ...}}"),
    "function in a table": (
        "pool.check = 1",
        "{}.pool: key='check': must be given as an argument, check={{'db': ...}}",
    ),
    "pool": ("pool.max_size = 0", "{}.pool.max_size=0: must be an integer, 1 or more"),
    "pool, both": ("pool = {{ min_size = 5, max_size = 2 }}", "{}.pool.min_size=5: must be an integer from 0 to 2"),
    "heartbeat": (
        "link.heartbeat.every = 1",
        "{}.link.heartbeat: send=None: must be given as an argument, send={{'db': ...}}",
    ),
    "keepalive": ("keepalive.count = 1000", "{}.keepalive.count=1000: must be an integer from 1 to 127"),
    "keepalive in a text": ("keepalive = '1s:1s:x'", "{}.keepalive: count='x': must be an integer from 1 to 127"),
    "tls": (
        "tls.minimum_version = '1.3'",
        "{}.tls.minimum_version='1.3': must be TLSv1.2 or TLSv1.3; an older one needs a context of your own",
    ),
    "tls key alone": ("tls.key_file = 'k'", "{}.tls.key_file='k': must be given together with cert_file"),
    "family": (
        "family = 'inet5'",
        "{}.family='inet5': must be AF_UNSPEC, AF_INET or AF_INET6; unspec, inet or inet6 in a text",
    ),
    "connecting": ("max_connecting = 0", "{}.max_connecting=0: must be an integer, 1 or more"),
    "place twice": ("host = 'db'", "{}.host='db': must not be given together with url"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_wrong_setting(name: str, tmp_path: Path) -> None:
    line, expected = SETTINGS[name]
    right = f"{tmp_path}/service.toml: " + expected.format("endpoints.db")
    assert problems_of(from_text, tmp_path, f"{ENDPOINT}{line.format()}\n") == [right]


URLS = {
    f"tls://user:{SECRET}@db:1": f"='***': {CREDENTIALS}",
    "db": ": target='db': must be HOST:PORT, with a port of its own",
    "db:99999": ": port=99999: must be an integer from 1 to 65535",
    "http://db:1": ": scheme='http': must be one of tcp, tls, srv+tcp, srv+tls, unix",
    f"tcp://db:1?password={SECRET}": ": option='password': is unknown; must be one of",
    "tcp://db:1?ca_file=x": ": ca_file='x': is an option of TLS; write tls:// instead of tcp://",
    "tcp://db:1?nodelay=perhaps": ": nodelay='perhaps': must be True or False; on or off in a text",
    "": ": ",
}


@pytest.mark.parametrize("url", URLS)
def test_a_wrong_url_is_told_by_its_place(url: str, tmp_path: Path) -> None:
    found = problems_of(from_text, tmp_path, f"aioconnect.endpoints.db = {json.dumps(url)}")
    assert len(found) == 1
    assert found[0].startswith(f"{tmp_path}/service.toml: endpoints.db.url{URLS[url]}")
    assert SECRET not in found[0]


def test_a_problem_without_a_field_is_told_by_the_endpoint() -> None:
    assert problems_of(one, {"path": "/x", "tls": True}) == [
        "endpoints.db: server_hostname=None: must be given for TLS over a UNIX socket, which has no host"
    ]
