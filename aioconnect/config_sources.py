"""Where settings come from: a TOML file, a mapping, the environment, arguments.

Each is read into levels, one of defaults and one for each endpoint, in which every setting knows where it was said.
What is unknown or in the wrong place is noted here; whether a value can work is for its constructor to say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, cast

from aioconnect.config_settings import PLACE, ROOT, Key, Path, arguments, endpoint_keys, walked
from aioconnect.validation import Problems, did_you_mean, nearest, switch

__all__ = ("TABLE", "Level", "Setting", "Sources", "read_toml", "switched")

TABLE = "aioconnect"
"""The table of a file that is ours."""


class Setting(NamedTuple):
    """A value as it was given, and where: ``service.toml: endpoints.db.policy.timeout``."""

    value: Any
    where: str


Level = dict[Path, Setting]
"""Settings by path. That of a table stands for the table as a whole: True, False, or an object in its place."""


class _Spelling(NamedTuple):
    """How one source writes the path of a setting."""

    label: str
    """A file's name, the prefix of variables, or the whole name of an argument."""
    kind: Literal["file", "variables", "argument"] = "file"

    def where(self, path: Path) -> str:
        """What messages call it: ``service.toml: endpoints.db.url``, or ``AIOCONNECT__ENDPOINTS__DB__URL``."""
        if self.kind == "argument":
            return self.label
        if self.kind == "variables":
            return "__".join((self.label, *(name.upper().replace("-", "_") for name in path)))
        return ": ".join(filter(None, (self.label, ".".join(path))))

    def short(self, path: Path, scope: Path, within: Path) -> str:
        """The name to suggest, relative to a scope; a variable is always called by its whole name."""
        if self.kind == "variables":
            return self.where((*scope, *path))
        return path[-1] if path[:-1] == within else ".".join(path)


def read_toml(problems: Problems, path: str | os.PathLike[str]) -> tuple[str, Mapping[str, object]]:
    """The file's name, and its table ``aioconnect``; the other tables are somebody else's."""
    # Only files need it, and its import costs 5 ms.
    import tomllib  # noqa: PLC0415

    label = os.fsdecode(path)
    fault, tree = f"must have a table [{TABLE}]", dict[str, Any]()
    try:
        with open(label, "rb") as file:  # noqa: PTH123  (the import of pathlib costs 5 ms)
            tree = tomllib.load(file)
    except OSError as error:
        fault = f"must be a file that can be read ({error.strerror})"
    except tomllib.TOMLDecodeError as error:
        fault = f"must be TOML: {error}"
    except UnicodeDecodeError as error:
        fault = f"must be UTF-8, and is not at byte {error.start}"
    except (ValueError, RecursionError):
        fault = "must be the path of a TOML file"
    found = tree.get(TABLE)
    if isinstance(found, Mapping):
        return label, cast("Mapping[str, object]", found)
    # Not in a handler: the error there may hold the whole text, and whatever password is in it.
    problems.found.append(f"{label}: {fault}")
    return label, {}


class Sources:
    """Read one after the other; what is said again wins."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.root: Level = {}
        self.defaults: Level = {}
        self.endpoints: dict[str, Level] = {}
        self.where: dict[str, str] = {}
        """Where each endpoint was named first."""

    def mapping(self, tree: object, label: str = "") -> None:
        """The tables ``defaults`` and ``endpoints``, and the settings beside them."""
        spelling = _Spelling(label)
        for name, value in self._items(tree, label or "configuration"):
            where = spelling.where((str(name),))
            if name in ROOT:
                scope = _Scope(self.problems, spelling, ())
                scope.table(ROOT, (), ((name, value),))
                self._merge(scope)
            elif name == "defaults":
                self._mapped(value, _Scope(self.problems, spelling, (name,)))
            elif name == "endpoints":
                for each, given in self._items(value, where):
                    if self._is_name(each, where):
                        self._mapped(given, _Scope(self.problems, spelling, (name, each)))
            else:
                hint = "give the table inside it" if name == TABLE else _root_hint(name)
                self.problems.add(": ".join(filter(None, (label, "key"))), name, f"is unknown; {hint}")

    def _mapped(self, given: object, scope: _Scope) -> None:
        if isinstance(given, str) and not scope.is_defaults:
            scope.leaf(("url",), scope.keys["url"], given, scope.where(("url",)))
        elif isinstance(given, Mapping):
            scope.table(scope.keys, (), _items(cast("object", given)))
        else:
            self.problems.add(scope.where(()), given, "must be a table")
            return
        self._merge(scope)

    def _items(self, tree: object, where: str) -> Iterable[tuple[str, object]]:
        if isinstance(tree, Mapping):
            return _items(cast("object", tree))
        self.problems.add(where, tree, "must be a table")
        return ()

    def _is_name(self, name: object, where: str) -> bool:
        """Whether an endpoint may have that name: one that a file and a variable can say without quotes."""
        if isinstance(name, str) and re.fullmatch("[A-Za-z0-9_-]+", name):
            return True
        self.problems.add(f"{where}: key", name, "must be of letters, digits, - and _")
        return False

    def environment(self, environ: Mapping[str, str], prefix: str = TABLE.upper()) -> None:
        """``AIOCONNECT__ENDPOINTS__DB__POLICY__TIMEOUT=30s``, and ``AIOCONNECT__ENDPOINTS__DB=tcp://db:5432``."""
        spelling, scopes, start = _Spelling(prefix, "variables"), dict[Path, _Scope](), f"{prefix}__"
        for variable in sorted(name for name in environ if isinstance(name, str) and name.startswith(start)):
            names = tuple(variable.removeprefix(start).lower().split("__"))
            place, path = self._spoken_of(names, variable)
            if place and place[0] not in ("defaults", "endpoints"):
                self.problems.add(f"{variable}: key", names[0], f"is unknown; {_root_hint(names[0])}")
            elif not path:
                self.problems.add(f"{variable}: key", names[0], "must go on with __ and a name")
            elif len(place) < 2 or self._is_name(place[1], variable):
                scope = scopes.setdefault(place, _Scope(self.problems, spelling, place))
                scope.variable(path, variable, environ[variable])
        for scope in scopes.values():
            self._merge(scope)

    def _spoken_of(self, names: Path, variable: str) -> tuple[Path, Path]:
        """What a variable speaks of (an endpoint, the defaults, or the whole), and the path there."""
        if names[0] in ROOT:
            return (), names
        if names[0] == "endpoints" and len(names) > 1:
            return ("endpoints", self._endpoint_of(names[1], variable)), names[2:] or ("url",)
        return names[:1], names[1:]

    def _endpoint_of(self, token: str, variable: str) -> str:
        """The endpoint that a variable speaks of: what a file calls ``user-db`` a variable calls ``USER_DB``."""
        alike = [name for name in self.endpoints if name.lower().replace("-", "_") == token]
        if len(alike) > 1:
            self.problems.add(f"{variable}: endpoint", token, f"could be {' or '.join(alike)}")
        return alike[0] if alike else token

    def arguments(self, given: Mapping[str, object]) -> None:
        """Functions and other objects: one for all endpoints, or a mapping by endpoint."""
        known = arguments()
        for name, value in given.items():
            if name not in known:
                self.problems.add("argument", name, f"is unknown; {did_you_mean(name, sorted(known))}")
            elif not isinstance(value, Mapping):
                self._argument(("defaults",), name, name, value)
            else:
                for each, one in _items(cast("object", value)):
                    if each in self.endpoints:
                        self._argument(("endpoints", each), name, f"{name}[{each!r}]", one)
                    else:
                        right = f"is no endpoint; {did_you_mean(str(each), self.endpoints)}"
                        self.problems.add(f"{name}: key", each, right)

    def _argument(self, path: Path, name: str, where: str, value: object) -> None:
        scope = _Scope(self.problems, _Spelling(where, "argument"), path)
        for each in arguments()[name] if value is not None else ():
            scope.put(each, Setting(value, where))
        self._merge(scope)

    def _merge(self, scope: _Scope) -> None:
        scope.check_place()
        if len(scope.path) < 2:
            into = self.defaults if scope.is_defaults else self.root
            into |= scope.level
            return
        name = scope.path[1]
        self.where.setdefault(name, scope.where(()))
        before = self.endpoints.get(name, {})
        if ("url",) in scope.level:
            # It says the whole place anew.
            before = {path: setting for path, setting in before.items() if path[0] not in PLACE}
        self.endpoints[name] = before | scope.level


class _Scope:
    """The settings that one source has for one endpoint, for the defaults, or for the configuration as a whole."""

    def __init__(self, problems: Problems, spelling: _Spelling, path: Path) -> None:
        self.problems = problems
        self.spelling = spelling
        self.path = path
        self.is_defaults = path == ("defaults",)
        self.keys = endpoint_keys() if path else ROOT
        self.level: Level = {}

    def where(self, path: Path) -> str:
        """What messages call a path within the scope."""
        return self.spelling.where((*self.path, *path))

    def table(self, keys: Mapping[str, Key], path: Path, items: Iterable[tuple[str, object]]) -> None:
        """Take a table."""
        for name, value in items:
            key = keys.get(name) if isinstance(name, str) else None
            if key is None or not key.in_file:
                self._unknown(keys, path, name, self.where(path))
                continue
            inner = (*path, key.name)
            if key.made is not None and isinstance(value, Mapping):
                self._enter(inner, key, self.where(inner))
                self.table(key.table, inner, _items(cast("object", value)))
            else:
                self.leaf(inner, key, value, self.where(inner))

    def variable(self, path: Path, variable: str, value: object) -> None:
        """Take an environment variable, whose name spells the path."""
        keys = self.keys
        for depth, name in enumerate(path, 1):
            key, inner = keys.get(name), path[:depth]
            if key is None or not key.in_file or (key.made is None and depth < len(path)):
                self._unknown(keys, path[: depth - 1], name, variable)
                return
            if depth < len(path):
                self._enter(inner, key, variable)
                keys = key.table
            else:
                self.leaf(inner, key, value, variable)

    def leaf(self, path: Path, key: Key, value: object, where: str) -> None:
        """Take a value."""
        if isinstance(value, Mapping):
            self.problems.add(where, {}, "must be a value, not a table")
        elif self.is_defaults and path[0] in ("url", *PLACE):
            self.problems.add(where, value, "is for one endpoint, and cannot be a default")
        elif self.is_defaults and path == ("tls",):
            self.problems.add(where, value, "is for an endpoint to say, by tls:// or tls = true")
        elif key.made is None:
            self.level[path] = Setting(value, where)
        elif key.is_switch and (isinstance(switched(value), bool) or (isinstance(value, str) and str in key.kinds)):
            self.level[path] = Setting(switched(value), where)
        else:
            self.problems.add(where, value, f"must be a table{', true or false' if key.is_switch else ''}")

    def put(self, path: Path, setting: Setting) -> None:
        """Take an object that no file can hold."""
        keys = self.keys
        for depth, name in enumerate(path[:-1], 1):
            self._enter(path[:depth], keys[name], setting.where)
            keys = keys[name].table
        self.level[path] = setting

    def check_place(self) -> None:
        """Note a place that one source gives twice, as ``url`` and in parts."""
        for name in PLACE:
            setting = self.level.get((name,))
            if setting is not None and ("url",) in self.level:
                self.problems.add(setting.where, setting.value, "must not be given together with url")

    def _enter(self, path: Path, key: Key, where: str) -> None:
        """Note that this table was given: that alone switches on what it is for, except among the defaults."""
        if not self.is_defaults or (path != ("tls",) and key.is_complete):
            self.level.setdefault(path, Setting(True, where))  # noqa: FBT003  (a switch)

    def _unknown(self, keys: Mapping[str, Key], path: Path, name: object, where: str) -> None:
        if self.path and isinstance(name, str) and name in arguments():
            right = f"must be given as an argument, {name}={{{self.path[-1]!r}: ...}}"
        else:
            meant = [self.spelling.short(each, self.path, path) for each in _meant(self.keys, keys, path, str(name))]
            known = [each for each, key in keys.items() if key.in_file]
            hint = f"did you mean {' or '.join(meant)}?" if meant else f"must be one of {', '.join(known)}"
            right = f"is unknown; {hint}"
        self.problems.add(f"{where}: key", name, right)


def _meant(every: Mapping[str, Key], keys: Mapping[str, Key], path: Path, name: str) -> list[Path]:
    """The keys that an unknown one may stand for: of that name in another table, or spelled alike, here or there."""
    elsewhere: dict[str, list[Path]] = {}
    for each, key in walked(every):
        if key.in_file:
            elsewhere.setdefault(each[-1], []).append(each)
    if name in elsewhere:
        return elsewhere[name]
    near = nearest(name, [each for each, key in keys.items() if key.in_file])
    if near is not None:
        return [(*path, near)]
    other = nearest(name, elsewhere)
    return [] if other is None else elsewhere[other]


def _items(tree: object) -> Iterable[tuple[str, object]]:
    """The items of a mapping, whose keys may be of any type: an unknown one is refused later."""
    return cast("Mapping[str, object]", tree).items()


def switched(value: object) -> object:
    """True or False, if a value that stands in place of a table is a switch (``tls = "on"``); else the value itself."""
    state = False if value is None else switch(value)
    return value if state is None else state


def _root_hint(name: object) -> str:
    return did_you_mean(str(name), ("defaults", "endpoints", *ROOT))
