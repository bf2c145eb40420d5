"""Makes the connector, the pool and the link of an endpoint from its settings.

The constructors decide what is right. A problem that one of them finds is reported with the place of the setting: a
line of a file, a variable, or the defaults.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar, cast

from aioconnect import codes, urls
from aioconnect.budget import RetryBudget
from aioconnect.config_settings import PLACE, ROOT, Key, Path, endpoint_keys, keys_of
from aioconnect.config_sources import Level, Setting, switched
from aioconnect.connector import Connector
from aioconnect.endpoint import OPTIONS, TLS, Endpoint
from aioconnect.errnoset import NAMED
from aioconnect.link import Link
from aioconnect.policy import Policy
from aioconnect.pool import Pool
from aioconnect.validation import Problems, switch

__all__ = ("Configured", "Maker", "named_codes")

T = TypeVar("T")


class Configured(NamedTuple):
    """One endpoint: what can be made of it, and by which settings."""

    connector: Connector
    new_pool: Callable[[], Pool]
    new_link: Callable[[], Link]
    settings: Level
    """The settings that were given, its own and inherited, each with where."""


class Maker:
    """Makes endpoints from their settings. Values are made once and shared by all endpoints with equal settings."""

    def __init__(self, problems: Problems, root: Level) -> None:
        self.problems = problems
        self._known: dict[object, Any] = {}
        building = _Building(problems, "", "", root, self._known)
        given = root.get(("budget",))
        budget: RetryBudget | None = (
            building.whole(ROOT["budget"], ("budget",), given.where) if given and given.value else None
        )
        self._lender = Connector(_NOWHERE, Policy(budget=budget))
        """Its retry budget is that of all endpoints without one of their own."""

    def make(self, name: str, where: str, defaults: Level, own: Level) -> Configured | None:
        """One endpoint; ``None`` if a setting cannot work, which is noted. All the others are checked nevertheless."""
        parts, said = self._said(own.get(("url",)))
        if ("path",) in own if parts is None else parts.path is not None:
            defaults = {path: setting for path, setting in defaults.items() if path[0] not in OPTIONS}
        settings = {**defaults, **said, **own}
        building = _Building(self.problems, where, name, settings, self._known)
        endpoint = building.endpoint(parts)
        policy: Policy | None = building.whole(endpoint_keys()["policy"], ("policy",), where)
        connecting = functools.partial(Connector, endpoint or _NOWHERE, policy or Policy())
        if policy is not None and policy.budget is None:
            connecting = functools.partial(connecting, share=self._lender)
        connector = building.part(connecting, keys_of(Connector), where)
        pool = building.recipe(Pool, "pool", connector or self._lender)
        link = building.recipe(Link, "link", connector or self._lender)
        if endpoint is None or policy is None or connector is None or pool is None or link is None:
            return None
        return Configured(connector, pool, link, settings)

    def _said(self, url: Setting | None) -> tuple[urls.Parts | None, Level]:
        """The pieces of a URL, and what its scheme and its options say."""
        if url is None:
            return None, {}
        found, for_tls = Problems(), _tls_options()
        parts = found.unless_wrong(lambda: urls.split_url(found, url.value, (*OPTIONS, *for_tls)))
        if parts is None or found.found:
            self.problems.found += [_located(problem, {"url": url}, url.where) for problem in found.found]
            return None, {}
        said: Level = {}
        if parts.scheme.endswith("tls") or not for_tls.isdisjoint(parts.options):
            said["tls",] = Setting(value=True, where=url.where)
        for name, text in parts.options.items():
            path = ("tls", name) if name in for_tls else (name,)
            value = switched(text) if name in keys_of(Endpoint) and keys_of(Endpoint)[name].is_switch else text
            said[path] = Setting(value, f"{url.where}: {name}")
        return parts, said


class _Building:
    """The tables of one endpoint, and what constructors make of them. None stands for what they refused."""

    def __init__(self, problems: Problems, where: str, name: str, settings: Level, known: dict[object, Any]) -> None:
        self.problems = problems
        self.where = where
        self.name = name
        self._known = known
        self.tables: dict[Path, dict[str, Setting]] = {}
        for path, setting in settings.items():
            self.tables.setdefault(path[:-1], {})[path[-1]] = setting

    def endpoint(self, parts: urls.Parts | None) -> Endpoint | None:
        """Where to connect to; ``parts`` are those of its URL."""
        given = self.tables.get((), {})
        url = given.get("url")
        if url is None:
            if given.keys().isdisjoint(PLACE):
                self.problems.add(f"{self.where}: url", None, f"must be given, or else {' or '.join(PLACE)}")
                return None
            return self.part(Endpoint, keys_of(Endpoint), self.where)
        if parts is None:
            return None
        # What its options say is among the settings by now, where it may have been said again; or it is refused.
        refused = parts.scheme.endswith("tcp") and not _tls_options().isdisjoint(parts.options)
        text = url.value if refused else url.value.partition("?")[0]
        make = functools.partial(Endpoint.parse if given.keys().isdisjoint(PLACE) else _moved, text)
        return self.part(make, keys_of(Endpoint), url.where)

    def recipe(self, make: Callable[..., T], name: str, connector: Connector) -> Callable[[], T] | None:
        """A function that makes pools or links. It is tried once, to find problems now; making one opens nothing."""
        values = self._values(endpoint_keys()[name].table, (name,))
        made = functools.partial(make, connector)
        if values is None or (values and self._once(made, make, values, (name,), self.where) is None):
            return None
        return functools.partial(made, **values)

    def whole(self, key: Key, path: Path, where: str) -> Any:
        """The value that a table describes, such as the `TLS` of ``[...tls]``."""
        missing = [] if key.is_complete else [name for name, each in key.table.items() if each.is_required]
        for name in missing:
            if name not in self.tables.get(path, {}):
                right = f"must be given as an argument, {name}={{{self.name!r}: ...}}"
                self.problems.add(f"{where}: {name}", None, right)
                return None
        values = self._values(key.table, path)
        make: Any = key.made
        return None if values is None else self._once(make, make, values, path, where)

    def part(self, make: Callable[..., T], keys: Mapping[str, Key], where: str) -> T | None:
        """The value that the settings of these keys make, outside any table."""
        values = self._values(keys, ())
        return None if values is None else self._call(make, values, (), where)

    def _values(self, keys: Mapping[str, Key], path: Path) -> dict[str, Any] | None:
        """The keywords that a table gives."""
        problems = Problems()
        values: dict[str, Any] = {}
        given = self.tables.get(path, {})
        for name, setting in given.items():
            key = keys.get(name)
            if key is None:
                continue
            if key.made is None:
                values[name] = _value(problems, key, setting)
            elif setting.value is True:
                made = self.whole(key, (*path, name), setting.where)
                if made is not None:
                    values[name] = made
            else:
                values[name] = None if setting.value is False and bool not in key.kinds else setting.value
        self.problems.found += [_located(problem, given, self.where) for problem in problems.found]
        return None if problems.found else values

    def _once(self, make: Callable[..., T], alike: object, values: dict[str, Any], path: Path, where: str) -> T | None:
        """The value made before from equal settings, or a new one; ``alike`` tells the kinds apart."""
        # With the types: True is 1, but not where an integer is meant.
        sign: object = (alike, *((name, value.__class__, value) for name, value in values.items()))
        try:
            known = self._known.get(sign)
        except TypeError:
            # A list has no hash.
            return self._call(make, values, path, where)
        if known is None:
            known = self._known[sign] = self._call(make, values, path, where)
        return cast("T | None", known)

    def _call(self, make: Callable[..., T], values: dict[str, Any], path: Path, where: str) -> T | None:
        """Call a constructor, and say where the fields were given that it complains about."""
        problems = Problems()
        made = problems.unless_wrong(lambda: make(**values))
        self.problems.found += [_located(problem, self.tables.get(path, {}), where) for problem in problems.found]
        return made


def _value(problems: Problems, key: Key, setting: Setting) -> object:
    """The value, from its text form where the constructor takes none."""
    value = setting.value
    if isinstance(value, str) and value == "off" and key.is_optional:
        return None
    if key.is_codes:
        return named_codes(problems, key.name, value)
    return _number(key, value) if isinstance(value, str) and str not in key.kinds else value


@functools.cache
def _tls_options() -> frozenset[str]:
    """What of TLS a URL can say."""
    return frozenset(name for name, key in keys_of(TLS).items() if key.in_file)


def _moved(text: str, **values: Any) -> Endpoint:
    """The endpoint of a URL, with host, port or path changed."""
    return Endpoint.parse(text).replace(**values)


_NOWHERE = Endpoint("aioconnect.invalid", 1)
"""Stands in where there is no endpoint, and is never dialled. Nobody else's: no such name can exist (RFC 2606)."""


def named_codes(problems: Problems, field: str, value: object) -> object:
    """The entries of a set of errors: named sets and codes; no numbers, which differ between systems."""
    entries = [name for name in value.split(",") if name.strip()] if isinstance(value, str) else value
    if not isinstance(entries, (list, tuple, set, frozenset)):
        entries = [entries]
    found: list[object] = []
    for entry in cast("Iterable[object]", entries):
        name = entry.strip() if isinstance(entry, str) else ""
        if name.isdecimal() or (isinstance(entry, int) and not isinstance(entry, bool)):
            code = codes.code_of(int(name or cast("int", entry)))
            right = "of an error" if code.startswith("ERRNO_") else code
            problems.add(field, entry, f"must be the name {right}: numbers differ between systems")
        else:
            found.append(NAMED.get(name.upper(), name) if name else entry)
    return tuple(found)


def _number(key: Key, text: str) -> object:
    """A number from the text of a variable; any other text is left for the constructor to refuse."""
    for kind in (int, float):
        if kind in key.kinds and re.fullmatch(r"[-+.0-9e]{1,20}", text):
            with contextlib.suppress(ValueError):
                return kind(text)
    return switch(text) if bool in key.kinds and switch(text) is not None else text


def _located(problem: str, given: Mapping[str, Setting], where: str) -> str:
    """A constructor's problem, with where its field was said; ``where`` for a field that was not."""
    name = re.split(r"\W", problem, maxsplit=1)[0]
    setting = given.get(name)
    if setting is None:
        return f"{where}: {problem}"
    mark, rest = problem[len(name) : len(name) + 1], problem[len(name) + 1 :]
    return f"{setting.where}: {rest}" if mark == "." else f"{setting.where}{mark}{rest}"
