"""Sets of errors to retry on: immutable, combinable, and unable to hold a typo.

>>> from aioconnect.errors import ConnectRefused
>>> retry_on = (TRANSIENT | {"EAI_NONAME"}) - {ConnectionResetError}
>>> ConnectRefused() in retry_on
True
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import cast

from aioconnect import codes, errors
from aioconnect.errors import ConfigError, NetworkError
from aioconnect.validation import did_you_mean, shown

__all__ = ("DENIED", "LOCAL", "NAMED", "STARTING", "TRANSIENT", "ErrnoSet")

Entry = str | int | type[BaseException]


class ErrnoSet:
    """An immutable set of errors, by code, by errno number, or by exception class (anybody's).

    Takes code names (``"ECONNREFUSED"``, ``"EAI_AGAIN"``, ``"CERTIFICATE_VERIFY_FAILED"``), errno numbers of this
    system, exception classes and other sets, and so do its operators ``|``, ``-`` and ``&``. Where one errno means
    different things by phase or family, the set has a member for each, such as ``"EACCES@inet"``, and the plain
    name stands for all of them. Our own error classes become the members they are raised for, but for those that
    are also raised for codes without a row, such as `ConnectError`.

    Raises `ConfigError` for a name, a number or a thing that can be no error.

    >>> ErrnoSet({"ECONNREFUSED", errno.ETIMEDOUT}) - {"ETIMEDOUT"}
    ErrnoSet({'ECONNREFUSED'})
    """

    __slots__ = ("classes", "members")

    # A tuple, as isinstance takes it, without repeats and in no meaningful order.
    classes: tuple[type[BaseException], ...]
    members: frozenset[str]

    def __init__(self, entries: ErrnoSet | Entry | Iterable[Entry] = ()) -> None:
        members, classes = _normalised(entries)
        object.__setattr__(self, "members", members)
        object.__setattr__(self, "classes", tuple(classes))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an ErrnoSet is immutable; cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an ErrnoSet is immutable; cannot delete {name}")

    def __contains__(self, item: object) -> bool:
        if isinstance(item, NetworkError):
            return item.member in self.members or (bool(self.classes) and self._has_class_of(item))
        if isinstance(item, Exception):
            if isinstance(item, self.classes):
                return True
            failure = errors.classify(item)
            return failure is not None and failure.error in self
        if isinstance(item, (str, int, type)):
            members, classes = _normalised(item)
            return all(map(self._covers, members)) and all(map(self._covers, classes))
        # A cancellation is in no set, whatever error was being handled when it came.
        return False

    def _has_class_of(self, error: NetworkError) -> bool:
        """Whether a class of the set is the error's own, or that of what it was made of: a foreign class, usually."""
        seen: set[int] = set()
        each: BaseException | None = error
        while isinstance(each, NetworkError) and id(each) not in seen:
            if isinstance(each, self.classes):
                return True
            seen.add(id(each))
            each = each.__cause__
        return isinstance(each, self.classes)

    def _covers(self, entry: str | type[BaseException]) -> bool:
        """Whether a member or a class is in the set, or under a class that is."""
        if isinstance(entry, str):
            return entry in self.members or any(_raises(cls, entry) for cls in self.classes)
        return issubclass(entry, self.classes)

    def __or__(self, other: ErrnoSet | Iterable[Entry]) -> ErrnoSet:
        members, classes = _normalised(other)
        return _made(self.members | members, classes.union(self.classes))

    __ror__ = __or__

    def __sub__(self, other: ErrnoSet | Iterable[Entry]) -> ErrnoSet:
        members, classes = _normalised(other)
        kept = frozenset(cls for cls in self.classes if not issubclass(cls, tuple(classes)))
        # Of the table's rows, and of our own codes that have none: a class covers what is raised as it.
        gone = members.union(*map(_members_under, classes))
        gone |= {member for member in self.members if any(_raises(cls, member) for cls in classes)}
        for cls in kept:
            if _raises(cls, *gone) or any(issubclass(each, cls) for each in classes):
                raise ConfigError(f"class={cls.__name__}: stays whole; name what to leave out in never_retry_on")
        return _made(self.members - gone, kept)

    def __rsub__(self, other: Iterable[Entry]) -> ErrnoSet:
        return ErrnoSet(other) - self

    def __and__(self, other: ErrnoSet | Iterable[Entry]) -> ErrnoSet:
        theirs = ErrnoSet(other)
        classes = {cls for cls in (*self.classes, *theirs.classes) if self._covers(cls) and theirs._covers(cls)}
        # Of two classes neither of which is under the other, what is raised as both.
        raised = {row.member for row in codes.rows() if not any(_raises(cls, row.member) for cls in classes)}
        members = self.members | theirs.members | raised
        both = {member for member in members if self._covers(member) and theirs._covers(member)}
        return _made(frozenset(both), frozenset(classes))

    __rand__ = __and__

    def parts(self) -> tuple[frozenset[str], frozenset[type[BaseException]]]:
        """The members of the code table, and the foreign classes."""
        return self.members, frozenset(self.classes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ErrnoSet):
            return self.parts() == other.parts()
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.parts())

    def __iter__(self) -> Iterator[str | type[BaseException]]:
        """The plain codes where all their members are in, else the members; then the classes."""
        names = {code for member in self.members if self.issuperset_of(code := member.partition("@")[0])}
        names |= {member for member in self.members if member.partition("@")[0] not in names}
        yield from sorted(names)
        yield from sorted(self.classes, key=lambda cls: cls.__qualname__)

    def named(self) -> Iterator[str]:
        """The names of the sets that are in it, the codes that are left, and the names of the classes.

        >>> list((STARTING | {"ECONNREFUSED", KeyError}).named())
        ['STARTING', 'ECONNREFUSED', 'KeyError']
        """
        rest = self.members
        for name, each in NAMED.items():
            if each.members <= self.members:
                rest -= each.members
                yield name
        for entry in _made(rest, frozenset(self.classes)):
            yield entry if isinstance(entry, str) else entry.__qualname__

    def issuperset_of(self, code: str) -> bool:
        """Whether every member that a plain code stands for is in the set."""
        return self.members.issuperset(codes.members_of(code))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return bool(self.members or self.classes)

    def __repr__(self) -> str:
        inside = ", ".join(repr(each) if isinstance(each, str) else each.__qualname__ for each in self)
        return f"ErrnoSet({{{inside}}})" if inside else "ErrnoSet()"

    def __reduce__(self) -> tuple[object, ...]:
        return _made, self.parts()


def _made(members: frozenset[str], classes: frozenset[type[BaseException]]) -> ErrnoSet:
    new = ErrnoSet.__new__(ErrnoSet)
    object.__setattr__(new, "members", members)
    object.__setattr__(new, "classes", tuple(classes))
    return new


def _normalised(entries: object) -> tuple[frozenset[str], frozenset[type[BaseException]]]:
    if isinstance(entries, ErrnoSet):
        return entries.parts()
    # The items of bytes are numbers too.
    if isinstance(entries, (str, bytes, bytearray, type)) or not isinstance(entries, Iterable):
        entries = (entries,)
    members: set[str] = set()
    classes: set[type[BaseException]] = set()
    problems: list[str] = []
    for entry in cast(Iterable[object], entries):
        if isinstance(entry, ErrnoSet):
            members |= entry.members
            classes.update(entry.classes)
        elif isinstance(entry, type):
            _add_class(entry, members, classes, problems)
        elif isinstance(entry, str):
            _add_code(entry, members, problems)
        elif isinstance(entry, int) and not isinstance(entry, bool) and _is_errno(entry):
            members.update(codes.members_of(codes.code_of(entry)))
        else:
            problems.append(f"entry={shown(entry)}: must be a code name, an errno number or an exception class")
    if problems:
        raise ConfigError(*problems)
    return frozenset(members), frozenset(classes)


def _is_errno(number: int) -> bool:
    # Linux keeps errno below 4096 (MAX_ERRNO); numbers it has no name for come from sandboxes and drivers.
    return 0 < number < 4096 or number in codes.WINERRORS or number in errno.errorcode


def _add_class(cls: type, members: set[str], classes: set[type[BaseException]], problems: list[str]) -> None:
    if not issubclass(cls, Exception):
        # CancelledError is none: a cancellation is never retried, whatever a policy says.
        problems.append(f"class={cls.__name__}: must be a subclass of Exception")
    elif issubclass(cls, NetworkError) and not _raises(cls, "TLS_FAILURE", "UNKNOWN") and (own := _members_under(cls)):
        members |= own
    else:
        classes.add(cls)


def _add_code(code: str, members: set[str], problems: list[str]) -> None:
    name = code.partition("@")[0]
    if name in codes.KNOWN or re.fullmatch("ERRNO_[1-9][0-9]{0,3}", name):
        standing_for = codes.members_of(name)
        if code == name:
            members.update(standing_for)
        elif code in standing_for:
            members.add(code)
        else:
            right = " or ".join(dict.fromkeys((name, *standing_for)))
            problems.append(f"code={code!r}: must be {right}")
    else:
        alike = sorted(known for known in codes.KNOWN if known[:2] == code[:2].upper())
        hint = f"; {did_you_mean(code.upper(), alike)}" if alike else ""
        problems.append(f"code={shown(code)}: is no known code{hint}")


def _raises(cls: type[BaseException], *members: str) -> bool:
    """Whether any of these members is raised as a class or a subclass of it; one without a row is a ConnectError."""
    return any(issubclass(errors.class_of(codes.row(member)), cls) for member in members)


def _members_under(cls: type[BaseException]) -> frozenset[str]:
    """The members of the table that are raised as a class or a subclass of it."""
    return frozenset(entry.member for entry in codes.rows() if issubclass(errors.class_of(entry), cls))


def _of_kind(kind: codes.Kind) -> ErrnoSet:
    return _made(frozenset(entry.member for entry in codes.rows() if entry.kind == kind), frozenset())


TRANSIENT = _of_kind("transient")
"""The same call may succeed later without anybody changing a thing."""

LOCAL = _of_kind("local")
"""This host is short of something; the peer is not at fault."""

STARTING = _of_kind("starting")
"""Not there yet: a name, a socket path or a service that a deployment may still bring."""

DENIED = _of_kind("denied")
"""Refused by a rule on the way, which a roll-out may lift: ``EACCES`` and ``EPERM`` on inet."""

NAMED: Mapping[str, ErrnoSet] = MappingProxyType(
    {"TRANSIENT": TRANSIENT, "LOCAL": LOCAL, "STARTING": STARTING, "DENIED": DENIED}
)
"""The sets above by their names, which is how text speaks of them."""
