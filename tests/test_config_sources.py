"""Where settings come from, and what is wrong with a file, a variable or an argument before any value is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest

from aioconnect import config
from tests.support.configuring import DURATION, ENDPOINT, from_text, hello, one, problems_of

FILES: dict[str, tuple[str, str]] = {
    "no syntax": (
        "[aioconnect\n",
        "must be TOML: Expected ']' at the end of a table declaration (at line 1, column 12)",
    ),
    "no table": ("", "must have a table [aioconnect]"),
    "a value for the table": ("aioconnect = 1", "must have a table [aioconnect]"),
    "empty": ("[aioconnect]", "endpoints=None: must name at least one endpoint"),
    "root key": (f"aioconnect.endpoint = 1{ENDPOINT}", "key='endpoint': is unknown; did you mean endpoints?"),
    "grace": (f"aioconnect.grace = '-1s'{ENDPOINT}", "grace='-1s': must be at least 0 and finite"),
    "budget": (f"aioconnect.budget = 5{ENDPOINT}", "budget=5: must be a table, true or false"),
    "budget's ratio": (
        f"aioconnect.budget.ratio = 2{ENDPOINT}",
        "budget.ratio=2: must be a finite number, from 0 to 1",
    ),
    "budget's key": (
        f"aioconnect.budget.ration = 2{ENDPOINT}",
        "budget: key='ration': is unknown; did you mean ratio?",
    ),
    "endpoints": ("aioconnect.endpoints = ['db:1']", "endpoints=('db:1'): must be a table"),
    "endpoint": ("aioconnect.endpoints.db = 5", "endpoints.db=5: must be a table"),
    "name": ("aioconnect.endpoints.'a b' = 'db:1'", "endpoints: key='a b': must be of letters, digits, - and _"),
    "defaults": (f"aioconnect.defaults = 'db:1'{ENDPOINT}", "defaults='db:1': must be a table"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file(name: str, tmp_path: Path) -> None:
    text, expected = FILES[name]
    assert problems_of(from_text, tmp_path, text) == [f"{tmp_path}/service.toml: {expected}"]


VARIABLES: dict[tuple[str, str], str] = {
    ("ENDPOINTS__DB__POLICY__TIMEOUT", "soon"): "A__ENDPOINTS__DB__POLICY__TIMEOUT='soon': " + DURATION,
    ("ENDPOINTS__DB__POLICY__RETRY_ON", "TRANSIENT,ECONREFUSED"): "A__ENDPOINTS__DB__POLICY__RETRY_ON: "
    "code='ECONREFUSED': is no known code; did you mean ECONNREFUSED?",
    ("ENDPOINTS__DB__POLICY__RETRY_ON", "111"): "A__ENDPOINTS__DB__POLICY__RETRY_ON='111': "
    "must be the name ECONNREFUSED: numbers differ between systems",
    ("ENDPOINTS__DB__TIMEOUT", "1"): "A__ENDPOINTS__DB__TIMEOUT: key='timeout': is unknown; "
    "did you mean A__ENDPOINTS__DB__POLICY__TIMEOUT or A__ENDPOINTS__DB__LINK__HEARTBEAT__TIMEOUT?",
    ("ENDPOINTS__DB__NODELAI", "1"): "A__ENDPOINTS__DB__NODELAI: key='nodelai': is unknown; "
    "did you mean A__ENDPOINTS__DB__NODELAY?",
    ("ENDPOINTS__DB__NODELAY__X", "1"): "A__ENDPOINTS__DB__NODELAY__X: key='nodelay': is unknown; "
    "did you mean A__ENDPOINTS__DB__NODELAY?",
    ("ENDPOINTS__DB__PREPARE", "x"): "A__ENDPOINTS__DB__PREPARE: key='prepare': "
    "must be given as an argument, prepare={'db': ...}",
    ("ENDPOINTS__DB__POLICY", "x"): "A__ENDPOINTS__DB__POLICY='x': must be a table",
    ("ENDPOINTS__DB__MAX_CONNECTING", "many"): "A__ENDPOINTS__DB__MAX_CONNECTING='many': must be an integer, 1 or more",
    ("ENDPOINTS__DB__POLICY__WAIT__FACTOR", "1_0"): "A__ENDPOINTS__DB__POLICY__WAIT__FACTOR='1_0': "
    "must be a finite number, at least 1",
    ("ENDPOINTS__DB__HOST", "db"): "A__ENDPOINTS__DB__HOST='db': must not be given together with url",
    ("ENDPOINTS__D.B__URL", "db:1"): "A__ENDPOINTS__D.B__URL: key='d.b': must be of letters, digits, - and _",
    ("ENDPOINTS", "db:1"): "A__ENDPOINTS: key='endpoints': must go on with __ and a name",
    ("ENDPOINT__DB", "db:1"): "A__ENDPOINT__DB: key='endpoint': is unknown; did you mean endpoints?",
    ("DEFAULTS__URL", "db:1"): "A__DEFAULTS__URL='db:1': is for one endpoint, and cannot be a default",
    ("DEFAULTS__TLS", "on"): "A__DEFAULTS__TLS='on': is for an endpoint to say, by tls:// or tls = true",
    ("DEFAULTS__KEEPALIVE__IDLE", "0"): "A__DEFAULTS__KEEPALIVE__IDLE='0': must be more than 0 and at most 32767s",
    ("BUDGET__RATIO", "x"): "A__BUDGET__RATIO='x': must be a finite number, from 0 to 1",
    ("BUDGET__RATION", "1"): "A__BUDGET__RATION: key='ration': is unknown; did you mean A__BUDGET__RATIO?",
    ("GRACE", "x"): "A__GRACE='x': " + DURATION,
}


@pytest.mark.parametrize("variable", VARIABLES, ids=" ".join)
def test_a_wrong_variable(variable: tuple[str, str]) -> None:
    name, value = variable
    environ = {"A__ENDPOINTS__DB__URL": "db:1", f"A__{name}": value}
    assert problems_of(config.from_env, environ, "A") == [VARIABLES[variable]]


ARGUMENTS: list[tuple[dict[str, object], str]] = [
    ({"prepar": hello}, "argument='prepar': is unknown; did you mean prepare?"),
    ({"prepare": {"dv": hello}}, "prepare: key='dv': is no endpoint; must be one of db"),
    ({"prepare": {"db": "hello"}}, "prepare['db']='hello': must be a coroutine function of a Connection"),
    ({"prepare": 5}, "prepare=5: must be a coroutine function of a Connection"),
    ({"observers": print}, "observers=<builtin_function_or_method>: must be callables of an event, in a sequence"),
    ({"wait": {"db": 5}}, "wait['db']=5: must be a Backoff or another tenacity wait"),
    ({"stop": 5}, "stop=5: must be a tenacity stop, or None"),
    ({"context": {"db": "x"}}, "context['db']='x': must be an ssl.SSLContext"),
    ({"send": {"db": 5}}, "send['db']=5: must be a function of a Connection, or a coroutine function"),
]


@pytest.mark.parametrize(("functions", "expected"), ARGUMENTS)
def test_a_wrong_argument(functions: dict[str, object], expected: str) -> None:
    assert problems_of(one, "db:1", **functions) == [expected]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert problems_of(config.from_toml, missing) == [
        f"{missing}: must be a file that can be read (No such file or directory)"
    ]
    missing.write_bytes(b"[aioconnect]\nx = '\xff'")
    assert problems_of(config.from_toml, missing) == [f"{missing}: must be UTF-8, and is not at byte 18"]
    assert problems_of(config.from_toml, "a\0b") == ["a\0b: must be the path of a TOML file"]


def test_a_mapping_that_is_none() -> None:
    assert problems_of(config.from_mapping, ["db:1"]) == ["configuration=('db:1'): must be a table"]
    assert problems_of(config.from_mapping, {"aioconnect": {}}) == [
        "key='aioconnect': is unknown; give the table inside it"
    ]


def test_names_that_a_variable_cannot_tell_apart() -> None:
    tree = {"endpoints": {"a-b": "a:1", "a_b": "b:1"}}
    found = problems_of(config.from_mapping, tree, {"AIOCONNECT__ENDPOINTS__A_B__NODELAY": "off"})
    assert found == ["AIOCONNECT__ENDPOINTS__A_B__NODELAY: endpoint='a_b': could be a-b or a_b"]
