"""Endpoints from a file, a mapping or the environment: defaults inherited, everything checked before anything is made.

    [aioconnect.defaults.policy]
    timeout = "10s"
    retry_on = ["TRANSIENT", "LOCAL", "EAI_NONAME"]

    [aioconnect.endpoints]
    db = "tls://db.internal:5432"

    [aioconnect.endpoints.cache]
    url = "tcp://cache:6379"
    policy.timeout = "500ms"
    pool.max_size = 20

Keys are the keywords of the constructors: those of `Endpoint` and `Connector` for the endpoint itself, those of `TLS`,
`Keepalive`, `Policy`, `Pool` and `Link` in the tables of their names. Durations have units, a plain number is seconds;
errors are named, never numbered; ``"off"`` is None. An endpoint inherits ``defaults`` key by key, and so does a table;
of a URL its options come between. Beside the two, ``grace`` is for closing everything, and ``budget`` a `RetryBudget`
for all endpoints without one of their own.

Variables spell the path, which ``__`` divides: ``AIOCONNECT__ENDPOINTS__DB__POLICY__TIMEOUT=30s``, and for the URL
just ``AIOCONNECT__ENDPOINTS__DB=tls://db:5432``. They stand over a file.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin

from aioconnect import codes, hosts
from aioconnect.config_making import Configured, Maker, named_codes
from aioconnect.config_settings import PLACE, ROOT, Key, Path, endpoint_keys, is_list
from aioconnect.config_sources import TABLE, Level, Setting, Sources, read_toml
from aioconnect.connector import Connector
from aioconnect.endpoint import OPTIONS, TLS, Endpoint
from aioconnect.errnoset import NAMED, ErrnoSet
from aioconnect.hosts import Target
from aioconnect.validation import Problems, check_duration, format_duration

__all__ = ("Configuration", "effective", "from_env", "from_mapping", "from_toml", "schema")


class Configuration(NamedTuple):
    """Endpoints by name, in the order in which they were named."""

    endpoints: Mapping[str, Configured]
    grace: float
    """Seconds for closing everything."""


def from_toml(
    path: str | os.PathLike[str],
    environ: Mapping[str, str] | None = None,
    prefix: str = "AIOCONNECT",
    functions: Mapping[str, object] = MappingProxyType({}),
) -> Configuration:
    """The table ``[aioconnect]`` of a TOML file, with what the environment says over it, if one is given."""
    problems = Problems()
    sources = Sources(problems)
    label, tree = read_toml(problems, path)
    problems.raise_any()
    sources.mapping(tree, label)
    if environ is not None:
        sources.environment(environ, prefix)
    return _configured(sources, label, functions)


def from_mapping(
    mapping: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    prefix: str = "AIOCONNECT",
    functions: Mapping[str, object] = MappingProxyType({}),
) -> Configuration:
    """What such a table says, from wherever it comes. Raises ConfigError with every problem at once."""
    sources = Sources(Problems())
    sources.mapping(mapping)
    if environ is not None:
        sources.environment(environ, prefix)
    return _configured(sources, "", functions)


def from_env(
    environ: Mapping[str, str] | None = None,
    prefix: str = "AIOCONNECT",
    functions: Mapping[str, object] = MappingProxyType({}),
) -> Configuration:
    """Environment variables alone, by default those of the process. Raises ConfigError with every problem at once."""
    sources = Sources(Problems())
    sources.environment(os.environ if environ is None else environ, prefix)
    return _configured(sources, prefix, functions)


def _configured(sources: Sources, label: str, functions: Mapping[str, object]) -> Configuration:
    sources.arguments(functions)
    problems = sources.problems
    endpoints: dict[str, Configured] = {}
    maker = Maker(problems, sources.root)
    for name, own in sources.endpoints.items():
        made = maker.make(name, sources.where[name], sources.defaults, own)
        if made is not None:
            endpoints[name] = made
    if not sources.endpoints and not problems.found:
        problems.add(": ".join(filter(None, (label, "endpoints"))), None, "must name at least one endpoint")
    given = sources.root.get(("grace",), Setting(ROOT["grace"].default, "grace"))
    grace = check_duration(problems, given.where, given.value, zero=True)
    # A wrong default is found again by each endpoint that inherits it.
    problems.found[:] = dict.fromkeys(problems.found)
    problems.raise_any()
    return Configuration(MappingProxyType(endpoints), grace)


# -- For people ------------------------------------------------------------------------------------------------------


def effective(name: str, endpoint: Configured) -> str:
    """All settings of an endpoint, also the defaults, and where each was said; as TOML that says the same."""
    idle = OPTIONS if endpoint.connector.endpoint.path is not None else ()
    keys = {each: key for each, key in endpoint_keys().items() if each not in idle}
    lines = list(_lines(keys, endpoint.settings, ()))
    width = max(len(line) for line, _ in lines)
    rows = (f"{line:<{width}}  # {where}" for line, where in lines)
    return "\n".join([f"[aioconnect.endpoints.{name}]", *rows])


def _lines(keys: Mapping[str, Key], settings: Level, within: Path) -> Iterator[tuple[str, str]]:
    for key in keys.values():
        path = (*within, key.name)
        setting = settings.get(path)
        if setting is None and (key.name in ("url", *PLACE) or not key.in_file):
            continue
        value, where = setting or Setting(True if key.is_required else key.default, "default")
        dotted = ".".join(path)
        if key.made is not None and (value is True or isinstance(value, key.made)):
            yield from _lines(key.table, settings, path)
        elif key.made is not None and not value:
            yield f"{dotted} = false", where
        elif (key.made is None and key.in_file) or isinstance(value, str):
            yield f"{dotted} = {_as_toml(key, value)}", where
        else:
            # Not its repr, which may say anything.
            yield f"# {dotted} = {getattr(value, '__qualname__', type(value).__name__)}", where


def _as_toml(key: Key, value: object) -> str:
    if key.is_codes and value != "off":
        value = tuple(ErrnoSet(cast("Any", named_codes(Problems(), key.name, value))).named())
    if isinstance(value, socket.AddressFamily):
        value = hosts.family_text(value)
    if key.is_duration and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = format_duration(value)
    if isinstance(value, (list, tuple)) and not isinstance(value, Target):
        return f"[{', '.join(_as_toml(Key(key.name, str), each) for each in cast('Iterable[object]', value))}]"
    if isinstance(value, bytes):
        value = os.fsdecode(value)
    elif value is None:
        value = "off"
    # Strings of JSON are strings of TOML, except for DEL; so are its numbers, true and false.
    text = json.dumps(value if isinstance(value, (bool, int, float)) else f"{value}", ensure_ascii=False)
    return text.replace("\x7f", "\\u007f")


# -- For editors -----------------------------------------------------------------------------------------------------


def schema() -> dict[str, Any]:
    """The JSON schema of such a file, for editors that complete and check TOML by one.

    ``python -c "import json, aioconnect.config as c; print(json.dumps(c.schema()))" > aioconnect.schema.json``, and
    ``#:schema ./aioconnect.schema.json`` in the first line of the file. What a value may be depends on others, too,
    and that is not in it.
    """
    inherited = {name: key for name, key in endpoint_keys().items() if name not in ("url", *PLACE)}
    defaults = _table(inherited, Endpoint, Connector)
    defaults["properties"]["tls"] = _table(inherited["tls"].table, TLS)
    endpoint = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/endpoint"}]}
    properties = {
        "defaults": defaults,
        "endpoints": {"type": "object", "additionalProperties": endpoint},
        **{name: _anything(key) for name, key in ROOT.items()},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Endpoints of aioconnect",
        "type": "object",
        "required": [TABLE],
        "properties": {TABLE: {"type": "object", "additionalProperties": False, "properties": properties}},
        "$defs": {"endpoint": _table(endpoint_keys(), Endpoint, Connector)},
    }


def _table(keys: Mapping[str, Key], *documented: type) -> dict[str, Any]:
    told = {name: text for each in documented for name, text in _descriptions(each).items()}
    properties: dict[str, Any] = {}
    for key in keys.values():
        if key.in_file:
            about = {"description": told[key.name]} if key.name in told else {}
            properties[key.name] = {**about, **_anything(key)}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _anything(key: Key) -> dict[str, Any]:
    """What a key takes."""
    types = list(dict.fromkeys(_TYPES[each] for each in key.kinds if each in _TYPES))
    kinds: list[Any] = [{"enum": list(get_args(each))} for each in key.kinds if get_origin(each) is Literal]
    if key.made is not None:
        types = list(dict.fromkeys([*types, "boolean"] if key.is_switch else types))
        kinds.append(_table(key.table, key.made))
    elif key.is_duration:
        types = ["number"]
        kinds.append({"type": "string", "pattern": "^[-+.0-9e]+(ms|s|m|h)?$"})
    elif key.is_codes:
        types = []
        kinds += [dict(_CODES), {"type": "array", "items": dict(_CODES)}]
    elif any(map(is_list, key.kinds)):
        kinds.append({"type": "array", "items": {"type": "string"}})
    if types:
        kinds.append({"type": types if len(types) > 1 else types[0]})
    if key.is_optional and "string" not in types:
        kinds.append({"const": "off"})
    default = {} if key.made is not None or key.is_required or key.default is None else {"default": _default(key)}
    return {**(kinds[0] if len(kinds) == 1 else {"anyOf": kinds}), **default}


_TYPES: Mapping[Any, str] = MappingProxyType({str: "string", int: "integer", float: "number", bool: "boolean"})


def _default(key: Key) -> object:
    return json.loads(_as_toml(key, key.default))


_CODES: Mapping[str, Any] = MappingProxyType(
    {
        "anyOf": (
            {"enum": (*NAMED, *map(str.lower, NAMED), *sorted(codes.KNOWN))},
            {"type": "string", "pattern": "^ERRNO_[0-9]+$|[@,]"},
        )
    }
)


_DESCRIBED = r"((?:``\w+``(?:, )?)+): (.+?)(?=\s+(?:- )?``\w+``(?:, ``\w+``)*: |\n\s*\n|\Z)"
"""In a docstring: one or more names, a colon, and the text up to the next such names or an empty line."""


def _descriptions(documented: type) -> dict[str, str]:
    """What the docstring of a class says of its keywords."""
    found: dict[str, str] = {}
    for names, text in re.findall(_DESCRIBED, documented.__doc__ or "", re.DOTALL):
        for name in re.findall(r"\w+", names):
            found.setdefault(name, " ".join(text.split()).rstrip(".;"))
    return found
