"""Configuration as a whole: inherited, overridden, all problems at once, no secret told, and described for others."""

from __future__ import annotations

import contextlib
import doctest
import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import tenacity
from hypothesis import given, settings
from hypothesis import strategies as st

from aioconnect import TLS, TRANSIENT, Backoff, Endpoint, Policy, config
from aioconnect.config_making import Configured
from aioconnect.config_settings import endpoint_keys, walked
from aioconnect.errors import ConfigError
from tests.support.configuring import DURATION, ENDPOINT, SECRET, SERVICE, from_text, hello, one, problems_of


def test_a_file_gives_endpoints_that_inherit_the_defaults(tmp_path: Path) -> None:
    made = from_text(tmp_path, SERVICE)
    assert made.grace == 20.0
    assert list(made.endpoints) == ["sidecar", "db", "user-cache"]
    db, cache = made.endpoints["db"].connector, made.endpoints["user-cache"].connector
    assert db.endpoint == Endpoint(
        "db.internal",
        5432,
        tls=TLS(ca_file="/etc/ca.pem", minimum_version="TLSv1.3", handshake_timeout=2),
        keepalive=False,
    )
    assert db.policy == Policy(TRANSIENT | {"EAI_NONAME"}, timeout=10, wait=Backoff(0.05, 8))
    assert cache.endpoint == Endpoint("cache", 6379, keepalive="30s:15s:9", nodelay=False)
    assert cache.policy == db.policy.replace(timeout=0.5, never_retry_on={"ECONNRESET"}, wait=Backoff(0.05, 2))


def test_what_only_tcp_has_is_not_inherited_by_a_unix_socket(tmp_path: Path) -> None:
    sidecar = from_text(tmp_path, SERVICE).endpoints["sidecar"].connector
    assert sidecar.endpoint == Endpoint(path="/run/sidecar.sock")
    assert sidecar.policy.timeout == 10


def test_variables_stand_over_a_file(tmp_path: Path) -> None:
    environ = {
        "AIOCONNECT__GRACE": "3",
        "AIOCONNECT__DEFAULTS__POLICY__ATTEMPT_TIMEOUT": "1s",
        "AIOCONNECT__ENDPOINTS__DB__PORT": "5433",
        "AIOCONNECT__ENDPOINTS__USER_CACHE__URL": "tcp://other:1",
        "AIOCONNECT__ENDPOINTS__USER_CACHE__POLICY__WAIT__FACTOR": "3",
        "AIOCONNECT__ENDPOINTS__FEED": "tcp://feed:7000",
        "AIOCONNECT_LEVEL": "not ours",
    }
    made = from_text(tmp_path, SERVICE, environ=environ)
    assert made.grace == 3
    assert list(made.endpoints) == ["sidecar", "db", "user-cache", "feed"]
    assert made.endpoints["db"].connector.endpoint.targets == (("db.internal", 5433),)
    cache = made.endpoints["user-cache"].connector
    assert cache.endpoint.targets == (("other", 1),)
    assert not cache.endpoint.nodelay
    assert cache.policy.wait == Backoff(0.05, 2, 3)
    assert {each.connector.policy.attempt_timeout for each in made.endpoints.values()} == {1.0}


def test_the_environment_alone() -> None:
    environ = {
        "NET__ENDPOINTS__DB__HOST": "db",
        "NET__ENDPOINTS__DB__PORT": "5432",
        "NET__ENDPOINTS__DB__TLS": "on",
        "NET__ENDPOINTS__DB__TLS__ALPN": "h2,http/1.1",
        "NET__ENDPOINTS__DB__POLICY__RETRY_ON": "TRANSIENT, ECONNREFUSED",
        "NET__ENDPOINTS__DB__POLICY__MAX_ATTEMPTS": "3",
        "NET__ENDPOINTS__DB__KEEPALIVE": "10s:5s:3",
        "NET__ENDPOINTS__DB__LIMIT": "1000",
    }
    db = config.from_env(environ, "NET").endpoints["db"].connector
    assert db.endpoint == Endpoint("db", 5432, tls=TLS(alpn=("h2", "http/1.1")), keepalive="10s:5s:3")
    assert db.policy == Policy(TRANSIENT, max_attempts=3)
    assert db.limit == 1000


def test_the_process_has_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIOCONNECT__ENDPOINTS__DB", "db:1")
    assert list(config.from_env().endpoints) == ["db"]


# -- What is wrong ---------------------------------------------------------------------------------------------------


def test_all_problems_at_once_and_a_wrong_default_only_once() -> None:
    tree = {
        "grace": "x",
        "defaults": {"policy": {"timeout": "soon"}, "nodelai": 1},
        "endpoints": {"a": "a", "b": {}, "c": {"url": "c:1", "pool": {"max_size": 0}, "link": {"heartbeat": {}}}},
    }
    assert problems_of(
        config.from_mapping, tree, {"AIOCONNECT__DEFAULT": "x"}, functions={"prepare": {"d": hello}}
    ) == [
        "defaults: key='nodelai': is unknown; did you mean nodelay?",
        "AIOCONNECT__DEFAULT: key='default': is unknown; did you mean defaults?",
        "prepare: key='d': is no endpoint; must be one of a, b, c",
        "endpoints.a.url: target='a': must be HOST:PORT, with a port of its own",
        "defaults.policy.timeout='soon': " + DURATION,
        "endpoints.b: url=None: must be given, or else host or port or targets or path or srv",
        "endpoints.c.pool.max_size=0: must be an integer, 1 or more",
        "endpoints.c.link.heartbeat: send=None: must be given as an argument, send={'c': ...}",
        "grace='x': " + DURATION,
    ]


SECRETS: list[dict[str, object]] = [
    {"url": f"tls://user:{SECRET}@db:1"},
    {"url": f"tls://user:{SECRET}@db:1", "host": "db"},
    {"url": f"tcp://db:1?token={SECRET}"},
    {"url": f"tcp://db:1#{SECRET}"},
    {"url": "db:1", "password": SECRET},
    {"url": "db:1", "policy": {"passwd": SECRET}},
    {"host": f"user:{SECRET}@db", "port": 1},
    {"url": "db:1", "limit": {"password": SECRET}},
    {"url": "db:1", "path": f"user:{SECRET}@x"},
]


@pytest.mark.parametrize("settings", SECRETS)
def test_a_password_is_never_printed(settings: dict[str, object], tmp_path: Path) -> None:
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items() if not isinstance(value, dict))
    said = {key.upper(): value for key, value in settings.items() if isinstance(value, str)}
    environ = {f"A__ENDPOINTS__DB__{key}": value for key, value in said.items()} | {"A__X": "1"}
    for call in (
        lambda: one(settings),
        lambda: config.from_env(environ, "A"),
        lambda: from_text(tmp_path, f"[aioconnect.endpoints.db]\nx = 1\n{text}"),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert SECRET not in f"{caught.value!r} {caught.value} {caught.getrepr(style='native')}"
    broken = f"[aioconnect.endpoints.db]\n{text}x = y = z"
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, broken)
    assert SECRET not in f"{caught.value!r} {caught.value} {caught.value.__context__!r}"


# -- Junk ------------------------------------------------------------------------------------------------------------

NAMES = sorted(
    {path[-1] for path, _ in walked(endpoint_keys())} | {"defaults", "endpoints", "db", "grace", "aioconnect"}
)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.just(object())
    | st.sampled_from(["off", "5s", "tls://db:1", "unix:///x", "db:1?x=y", "TRANSIENT", "a,b", "15s:15s:9"])
)  # fmt: skip
KEYS = st.sampled_from(NAMES) | st.text() | st.integers()
JUNK = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=10)
few = settings(max_examples=50)


@few
@given(st.dictionaries(KEYS, JUNK) | JUNK, st.dictionaries(st.text(), st.text()))
def test_junk_is_refused_or_taken(tree: Any, environ: dict[str, str]) -> None:
    with contextlib.suppress(ConfigError):
        config.from_mapping(tree, {f"AIOCONNECT__{name.upper()}": text for name, text in environ.items()})


@few
@given(st.dictionaries(KEYS, JUNK), st.dictionaries(KEYS, JUNK), st.dictionaries(st.sampled_from(NAMES), JUNK))
def test_junk_in_an_endpoint_is_refused_or_taken(defaults: Any, own: Any, functions: Any) -> None:
    with contextlib.suppress(ConfigError):
        made = config.from_mapping({"defaults": defaults, "endpoints": {"db": own}}, functions=functions)
        text = config.effective("db", made.endpoints["db"])
        again = config.from_mapping(tomllib.loads(text)["aioconnect"], functions=functions).endpoints["db"]
        assert again.connector.endpoint == made.endpoints["db"].connector.endpoint
        assert again.connector.policy == made.endpoints["db"].connector.policy


@few
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=5), st.text()
)
def test_junk_in_variables_is_refused_or_taken(names: list[tuple[str, ...]], text: str) -> None:
    environ = {"__".join(("A", *each)).upper(): text for each in names}
    with contextlib.suppress(ConfigError):
        config.from_env(environ, "A")


def test_a_mapping_that_holds_itself_is_refused() -> None:
    tree: dict[str, Any] = {"endpoints": {"db": {"url": "db:1"}}}
    tree["endpoints"]["db"]["policy"] = tree
    tree["endpoints"]["db"]["targets"] = [tree]
    assert len(problems_of(config.from_mapping, tree)) == 3


# -- For people and editors ------------------------------------------------------------------------------------------


def test_effective_settings_say_where_they_come_from(tmp_path: Path) -> None:
    made = from_text(
        tmp_path, SERVICE, environ={"AIOCONNECT__ENDPOINTS__DB__LIMIT": "1000"}, functions={"prepare": hello}
    )
    lines = [tuple(line.split("  # ")) for line in config.effective("db", made.endpoints["db"]).splitlines()[1:]]
    said = {line.strip(): where.removeprefix(f"{tmp_path}/") for line, where in lines}
    expected = {
        'url = "tls://db.internal:5432?handshake_timeout=2s&keepalive=off"': "service.toml: endpoints.db.url",
        'tls.ca_file = "/etc/ca.pem"': "service.toml: defaults.tls.ca_file",
        'tls.key_file = "off"': "default",
        'tls.handshake_timeout = "2s"': "service.toml: endpoints.db.url: handshake_timeout",
        'limit = "1000"': "AIOCONNECT__ENDPOINTS__DB__LIMIT",
        'policy.retry_on = ["TRANSIENT", "EAI_NONAME"]': "service.toml: defaults.policy.retry_on",
        'policy.wait.maximum = "8s"': "service.toml: endpoints.db.policy.wait.maximum",
        'policy.attempt_timeout = "5s"': "default",
        "pool.max_size = 20": "service.toml: endpoints.db.pool.max_size",
        "# prepare = hello": "prepare",
        "keepalive = false": "service.toml: endpoints.db.url: keepalive",
        "link.heartbeat = false": "default",
    }
    assert expected.items() <= said.items()


def settings_of(made: Configured) -> tuple[object, ...]:
    return made.connector.endpoint, made.connector.policy, made.connector.limit, made.new_link().heartbeat


@pytest.mark.parametrize("name", ["sidecar", "db", "user-cache"])
def test_effective_settings_are_toml_that_says_the_same(name: str, tmp_path: Path) -> None:
    before = from_text(tmp_path, SERVICE).endpoints[name]
    text = config.effective(name, before)
    after = from_text(tmp_path, text).endpoints[name]
    assert settings_of(after) == settings_of(before)
    assert [line.partition("  # ")[0] for line in config.effective(name, after).splitlines()] == [
        line.partition("  # ")[0] for line in text.splitlines()
    ]


def test_an_object_is_explained_by_its_name_alone() -> None:
    made = one({"url": "db:1", "link": {"heartbeat": True}}, wait=tenacity.wait_fixed(1), send=hello)
    lines = [line.partition("  # ")[0].strip() for line in config.effective("db", made).splitlines()]
    assert "# policy.wait = wait_fixed" in lines
    assert "# link.heartbeat.send = hello" in lines
    assert 'link.heartbeat.every = "15s"' in lines


def test_the_schema_is_one_and_takes_what_is_right(tmp_path: Path) -> None:
    schema = json.loads(json.dumps(config.schema()))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(tomllib.loads(SERVICE))
    for name, each in from_text(tmp_path, SERVICE).endpoints.items():
        validator.validate(tomllib.loads(config.effective(name, each)))
    described = schema["$defs"]["endpoint"]["properties"]
    assert described["nodelay"] == {"description": "TCP_NODELAY", "type": ["boolean", "string"], "default": True}
    assert described["policy"]["properties"]["timeout"]["default"] == "60s"


@pytest.mark.parametrize(
    "line",
    [
        "nodelai = true",
        "policy.timeot = 5",
        "limit = {}",
        "policy = 5",
        "policy.timeout = 'soon'",
        "policy.retry_on = ['ECONREFUSED']",
        "policy.retry_on = [111]",
        "policy.wait.jitter = 'ful'",
        "prepare = 'hello'",
        "link.heartbeat = 5",
    ],
)
def test_the_schema_refuses_what_is_wrong_by_itself(line: str) -> None:
    validator = jsonschema.Draft202012Validator(config.schema())
    assert validator.is_valid(tomllib.loads(ENDPOINT))
    assert not validator.is_valid(tomllib.loads(f"{ENDPOINT}{line}"))


def test_the_schema_refuses_what_cannot_be_a_default() -> None:
    validator = jsonschema.Draft202012Validator(config.schema())
    assert not validator.is_valid({"aioconnect": {"defaults": {"url": "db:1"}}})
    assert not validator.is_valid({"aioconnect": {"defaults": {"tls": True}}})
    assert validator.is_valid({"aioconnect": {"defaults": {"tls": {"ca_file": "x"}}}})


def test_the_examples() -> None:
    assert doctest.testmod(config).failed == 0
