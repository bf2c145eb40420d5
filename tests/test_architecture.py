"""The rules of the package that a reader may rely on, read off its syntax trees.

Every rule is a function from one module to complaints. Each is also run over a piece of text that breaks
it, since a rule that finds nothing in sound code might find nothing at all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.support.source import FUNCTIONS, PACKAGE, Import, Module, inside, modules

Rule = Callable[[Module], Iterator[str]]

# An import points to a lower row. A new module gets a place here first; the package itself stands for
# `aioconnect/__init__.py`, which nothing but the programs may import from.
LAYERS = (
    ("codes", "explanations", "link_states", "values", "asking"),
    ("explaining",),
    ("errors",),
    ("validation", "events", "limits"),
    ("errnoset", "backoff", "hosts", "urls", "logs", "breaker", "budget", "lookups", "chance"),
    ("endpoint", "gate", "srv"),
    ("retrying",),
    ("policy", "tls", "resolver", "race", "health", "schedule"),
    ("dialer", "connection", "handover", "addresses"),
    ("record", "heartbeat"),
    ("connector",),
    ("link_supervisor", "pool_books"),
    ("pool_line", "pool_hooks"),
    ("pool_dialing",),
    ("pool_lending",),
    ("pool", "link", "functions"),
    ("config_settings",),
    ("config_sources",),
    ("config_making",),
    ("config",),
    ("manager",),
    ("simulation",),
    (PACKAGE,),
    ("testing",),
    ("cli",),
    ("__main__",),
)
LAYER = {unit: number for number, row in enumerate(LAYERS) for unit in row}
# What runs for people or for tests: it may look at the machine's clock, draw, log, and import late.
PROGRAMS = frozenset({"cli", "__main__", "testing", "simulation"})

# Decisions: they take `now` as an argument and do no input or output. Of modules that could do some they
# may use the exceptions and the constants.
PURE = frozenset(
    "codes explanations explaining errors errnoset backoff race breaker budget health chance link_states schedule "
    "pool_books".split()
)
IMPURE = frozenset("asyncio concurrent selectors socket ssl subprocess threading _thread".split())
HARMLESS = re.compile(r"[A-Z][A-Z0-9_]*|[A-Za-z]*[Ee]rror|AddressFamily|SSLErrorNumber")
ASYNCIO_FOR_ITS_EXCEPTIONS = frozenset({"errors"})

CANCEL = frozenset({"BaseException", "CancelledError"})
MAY_CATCH_CANCEL = {
    ("aioconnect.events", "tell"): "an observer is not awaited: what it raises is no cancellation of ours",
    ("aioconnect.handover", "transport"): "uvloop turns ECANCELED into a CancelledError that nobody has sent",
    ("aioconnect.limits", "_resumed"): "a step of `yield from`: what is thrown in is thrown on",
}
MAY_IMPORT_LATE = {
    ("aioconnect.errors", "aioconnect.explaining"): "words for people: 1 ms of each import, and most explain nothing",
}
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MAKES_MUTABLE = frozenset(
    "dict list set bytearray defaultdict deque OrderedDict Counter ChainMap WeakSet WeakKeyDictionary "
    "WeakValueDictionary count cycle Random SystemRandom Lock RLock Condition Event Semaphore local".split()
)


# Imports


def first_party(module: Module) -> Iterator[tuple[Import, str]]:
    """Imports from the package, with the module that each needs."""
    known = {each.name for each in modules()} | {f"{PACKAGE}.{unit}" for unit in LAYER}
    for each in module.imports():
        if each.module.split(".")[0] == PACKAGE:
            submodule = f"{each.module}.{each.name}"
            yield each, submodule if submodule in known else each.module


def imports_point_down(module: Module) -> Iterator[str]:
    """A unit that is not in the table is a complaint too."""
    if module.unit not in LAYER:
        yield f"1: {module.unit} has no place in LAYERS"
        return
    for each, target in first_party(module):
        unit = Module.parse(target, "").unit
        if unit != module.unit and LAYER.get(unit, len(LAYERS)) >= LAYER[module.unit]:
            yield f"{each.line}: {module.unit} imports {unit}, which is not in a lower row of LAYERS"


def imports_are_not_hidden(module: Module) -> Iterator[str]:
    for each, target in first_party(module):
        if each.in_function and module.unit not in PROGRAMS and (module.name, target) not in MAY_IMPORT_LATE:
            yield f"{each.line}: {target} is imported inside a function"


def time_and_chance_come_from_outside(module: Module) -> Iterator[str]:
    """Time is the loop's, whose clock `limits` finds; chance an argument that `backoff` and `addresses` have a default
    for.
    """
    for each in module.imports():
        if each.module == "time" and module.unit not in PROGRAMS | {"limits"}:
            yield f"{each.line}: time is the loop's: loop.time()"
        if each.module in {"random", "secrets"} and module.unit not in PROGRAMS | {"backoff", "addresses"}:
            yield f"{each.line}: only backoff and addresses have a source of chance"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in {"random.seed", "random.setstate"}:
            yield f"{node.lineno}: {ast.unparse(node)} changes what everybody else draws"


def decisions_do_no_io(module: Module) -> Iterator[str]:
    if module.unit not in PURE:
        return
    usable = {"socket", "ssl"} | ({"asyncio"} if module.unit in ASYNCIO_FOR_ITS_EXCEPTIONS else set())
    aliases = set()
    for each in module.imports():
        top = each.module.split(".")[0]
        if top in IMPURE - usable or (each.name and top in IMPURE and not HARMLESS.fullmatch(each.name)):
            yield f"{each.line}: {module.unit} decides, it must not import {each.name or top}"
        elif top in IMPURE and not each.name:
            aliases.add(each.alias)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in aliases:
            if not HARMLESS.fullmatch(node.attr):
                yield f"{node.lineno}: {module.unit} decides, it must not use {ast.unparse(node)}"


def only_logs_logs(module: Module) -> Iterator[str]:
    for each in module.imports():
        if each.module.split(".")[0] == "logging" and module.unit not in PROGRAMS | {"logs"}:
            yield f"{each.line}: logging is the work of logs"


# Exceptions


def caught(node: ast.expr | None) -> Iterator[str]:
    """The last parts of the names in an `except` clause; BaseException where there is none."""
    if node is None:
        yield "BaseException"
    elif isinstance(node, ast.Tuple):
        for element in node.elts:
            yield from caught(element)
    else:
        yield ast.unparse(node).split(".")[-1]


def goes_on(statements: list[ast.stmt]) -> bool:
    """Whether control can leave this block otherwise than by an exception."""
    last = statements[-1]
    if isinstance(last, ast.Raise):
        return False
    if isinstance(last, ast.If):
        return not last.orelse or goes_on(last.body) or goes_on(last.orelse)
    if isinstance(last, (ast.With, ast.AsyncWith)):
        return goes_on(last.body)
    if isinstance(last, (ast.Try, ast.TryStar)):
        if last.finalbody and not goes_on(last.finalbody):
            return False
        return goes_on(last.body) or any(goes_on(handler.body) for handler in last.handlers)
    return True


def jumps_out(statements: Iterable[ast.AST], *, in_loop: bool = False) -> bool:
    """Whether some `return`, `break` or `continue` leaves this block."""
    for node in statements:
        if isinstance(node, ast.Return) or (isinstance(node, (ast.Break, ast.Continue)) and not in_loop):
            return True
        if not isinstance(node, FUNCTIONS):
            loops = in_loop or isinstance(node, (ast.For, ast.AsyncFor, ast.While))
            if jumps_out(ast.iter_child_nodes(node), in_loop=loops):
                return True
    return False


def cancel_is_never_swallowed(module: Module) -> Iterator[str]:
    """A handler that catches a cancel ends by raising the same exception, whatever happens in it."""
    for function, statements in module.scopes():
        if (module.name, function) not in MAY_CATCH_CANCEL:
            yield from swallowed(statements)


def swallowed(statements: Iterable[ast.AST]) -> Iterator[str]:
    for node in inside(statements):
        if isinstance(node, ast.ExceptHandler) and CANCEL & set(caught(node.type)):
            if goes_on(node.body) or jumps_out(node.body):
                yield f"{node.lineno}: this handler swallows a cancel"
            elif any(not is_name(error, node.name) for error in raised(node.body)):
                yield f"{node.lineno}: this handler turns a cancel into something else"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
            if any(CANCEL & set(caught(argument)) for argument in node.args):
                yield f"{node.lineno}: this swallows a cancel"


def raised(statements: Iterable[ast.AST]) -> list[ast.expr]:
    return [node.exc for node in inside(statements) if isinstance(node, ast.Raise) and node.exc is not None]


def is_name(node: ast.expr | None, name: str | None) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def causes_are_kept(module: Module) -> Iterator[str]:
    """No `from None`; and where one error makes way for another, the first is named as its cause."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Raise) and isinstance(node.cause, ast.Constant) and node.cause.value is None:
            yield f"{node.lineno}: `from None` hides what happened"
    yield from without_cause(module.tree, frozenset(), in_handler=False)


def without_cause(node: ast.AST, names: frozenset[str | None], *, in_handler: bool) -> Iterator[str]:
    """`names` are those of the errors being handled here: one of them may be raised as it is."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ExceptHandler):
            yield from without_cause(child, names | {child.name}, in_handler=True)
        elif isinstance(child, FUNCTIONS):
            yield from without_cause(child, frozenset(), in_handler=False)
        else:
            if in_handler and isinstance(child, ast.Raise) and child.exc is not None and child.cause is None:
                if not any(is_name(child.exc, name) for name in names):
                    yield f"{child.lineno}: raised in a handler without `from`"
            yield from without_cause(child, names, in_handler=in_handler)


# State


def is_mutable(value: ast.expr | None) -> bool:
    if isinstance(value, ast.Call):
        return ast.unparse(value.func).split(".")[-1] in MAKES_MUTABLE
    if isinstance(value, ast.Tuple):
        return any(is_mutable(element) for element in value.elts)
    if isinstance(value, ast.IfExp):
        return is_mutable(value.body) or is_mutable(value.orelse)
    return isinstance(value, MUTABLE)


def no_state_in_modules(module: Module) -> Iterator[str]:
    """Neither a module nor a class holds what can change; a table is wrapped in MappingProxyType."""
    for node in inside(module.tree.body):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and is_mutable(node.value):
            yield f"{node.lineno}: mutable state of a module: {ast.unparse(node)[:60]}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Global):
            yield f"{node.lineno}: global {', '.join(node.names)}"


RULES: tuple[Rule, ...] = (
    imports_point_down,
    imports_are_not_hidden,
    time_and_chance_come_from_outside,
    decisions_do_no_io,
    only_logs_logs,
    cancel_is_never_swallowed,
    causes_are_kept,
    no_state_in_modules,
)
rule_by_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@rule_by_rule
def test_the_package_keeps(rule: Rule) -> None:
    complaints = [f"{module.name}:{complaint}" for module in modules() for complaint in rule(module)]
    assert not complaints, "\n".join(complaints)


def cycle(package: Iterable[Module]) -> list[str]:
    """The names of modules that import each other in a circle, typing imports included."""
    graph = {module.name: {target for _, target in first_party(module)} - {module.name} for module in package}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_there_is_no_import_cycle() -> None:
    assert cycle(modules()) == []
    assert cycle([Module.parse("a.b", "")]) == []
    loop = [
        Module.parse("aioconnect.errors", "from aioconnect.codes import Row"),
        Module.parse("aioconnect.codes", "from aioconnect.errors import ConnectError"),
    ]
    assert set(cycle(loop)) == {"aioconnect.codes", "aioconnect.errors"}


def test_an_exception_to_a_rule_is_needed() -> None:
    scopes = {(module.name, function): body for module in modules() for function, body in module.scopes()}
    assert [place for place in MAY_CATCH_CANCEL if not list(swallowed(scopes.get(place, [])))] == []
    late = {(module.name, target) for module in modules() for each, target in first_party(module) if each.in_function}
    assert set(MAY_IMPORT_LATE) <= late


def test_every_unit_has_one_place() -> None:
    assert len(LAYER) == sum(len(row) for row in LAYERS)


BROKEN: tuple[tuple[Rule, str, str], ...] = (
    (imports_point_down, "policy", "from aioconnect.connector import Connector"),
    (imports_point_down, "policy", "from aioconnect import connector"),
    (imports_point_down, "policy", "import aioconnect.connector"),
    (imports_point_down, "policy", "from .connector import Connector"),
    (imports_point_down, "policy", "from . import connector"),
    (imports_point_down, "policy", "from aioconnect.resolver import resolve"),
    (imports_point_down, "policy", "from aioconnect import Endpoint"),
    (imports_point_down, "policy", "def f():\n from aioconnect.connector import Connector"),
    (imports_point_down, "policy", "if TYPE_CHECKING:\n from aioconnect.connector import Connector"),
    (imports_point_down, "policy", "from aioconnect.unheard_of import x"),
    (imports_point_down, "unheard_of", ""),
    (imports_are_not_hidden, "connector", "def f():\n from aioconnect.errors import ConnectError"),
    (imports_are_not_hidden, "connector", "class A:\n async def f(self):\n  import aioconnect.errors"),
    (time_and_chance_come_from_outside, "policy", "import time"),
    (time_and_chance_come_from_outside, "policy", "from time import monotonic"),
    (time_and_chance_come_from_outside, "policy", "import random"),
    (time_and_chance_come_from_outside, "backoff", "import random\nrandom.seed(1)"),
    (decisions_do_no_io, "race", "import asyncio"),
    (decisions_do_no_io, "race", "from asyncio import CancelledError"),
    (decisions_do_no_io, "errors", "import asyncio\nasyncio.get_running_loop()"),
    (decisions_do_no_io, "errors", "from asyncio import sleep"),
    (decisions_do_no_io, "codes", "import socket\nsocket.socket()"),
    (decisions_do_no_io, "codes", "import socket as s\ns.socket()"),
    (decisions_do_no_io, "codes", "from socket import create_connection"),
    (decisions_do_no_io, "codes", "import threading"),
    (only_logs_logs, "connector", "import logging"),
    (only_logs_logs, "connector", "from logging import getLogger"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept: pass"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept BaseException: pass"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept (OSError, asyncio.CancelledError): y"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept CancelledError:\n if y: raise"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept CancelledError:\n if y: return\n raise"),
    (cancel_is_never_swallowed, "dialer", "for i in z:\n try: x\n except CancelledError:\n  if y: break\n  raise"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept CancelledError as e: raise TimeoutError from e"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept CancelledError:\n def f(): raise"),
    (cancel_is_never_swallowed, "dialer", "with suppress(OSError, asyncio.CancelledError): x"),
    (causes_are_kept, "dialer", "raise x from None"),
    (causes_are_kept, "dialer", "try: x\nexcept OSError: raise ConnectError(1)"),
    (causes_are_kept, "dialer", "try: x\nexcept OSError as e:\n if y:\n  raise other"),
    (no_state_in_modules, "dialer", "CACHE = {}"),
    (no_state_in_modules, "dialer", "CACHE: Final[list[int]] = []"),
    (no_state_in_modules, "dialer", "if x:\n CACHE = {a: b for a in c}"),
    (no_state_in_modules, "dialer", "CACHE = weakref.WeakKeyDictionary()"),
    (no_state_in_modules, "dialer", "BOTH = (1, set())"),
    (no_state_in_modules, "dialer", "class A:\n cache = dict()"),
    (no_state_in_modules, "dialer", "def f():\n global cache"),
)

SOUND: tuple[tuple[Rule, str, str], ...] = (
    (imports_point_down, "connector", "from aioconnect import errors\nfrom aioconnect.policy import Policy"),
    (imports_point_down, "connector", "import os\nfrom collections import abc"),
    (imports_point_down, "cli.demo", "from aioconnect import connect\nfrom aioconnect.cli.output import Table"),
    (imports_are_not_hidden, "cli.demo", "def f():\n from aioconnect import connect"),
    (imports_are_not_hidden, "connector", "def f():\n import uvloop"),
    (time_and_chance_come_from_outside, "backoff", "import random\nrandom.uniform"),
    (decisions_do_no_io, "errors", "import asyncio, socket\nasyncio.IncompleteReadError\nsocket.gaierror"),
    (decisions_do_no_io, "codes", "import socket\nfrom ssl import SSLError\nsocket.EAI_AGAIN"),
    (decisions_do_no_io, "dialer", "import asyncio\nasyncio.sleep(0)"),
    (only_logs_logs, "logs", "import logging"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept BaseException:\n sock.close()\n raise"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept CancelledError as e:\n if y: raise e\n else: raise"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept CancelledError:\n with y:\n  raise"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept CancelledError:\n for i in y: break\n raise"),
    (cancel_is_never_swallowed, "dialer", "try: x\nexcept Exception: pass"),
    (causes_are_kept, "dialer", "try: x\nexcept OSError as e: raise ConnectError(1) from e"),
    (causes_are_kept, "dialer", "try: x\nexcept OSError as e:\n try: y\n except ValueError: raise e"),
    (causes_are_kept, "dialer", "try: x\nexcept OSError:\n def f(): raise ValueError"),
    (no_state_in_modules, "dialer", "TABLE = MappingProxyType({})\nNAMES = frozenset([1])\nROWS = (1, 2)"),
    (no_state_in_modules, "dialer", "def f():\n cache = {}\nclass A:\n def g(self): self.cache = {}"),
)


def named(cases: tuple[tuple[Rule, str, str], ...]) -> list[str]:
    return [f"{rule.__name__}-{number}" for number, (rule, _, _) in enumerate(cases)]


@pytest.mark.parametrize(("rule", "unit", "text"), BROKEN, ids=named(BROKEN))
def test_a_rule_sees_what_breaks_it(rule: Rule, unit: str, text: str) -> None:
    assert list(rule(Module.parse(f"{PACKAGE}.{unit}", text)))


@pytest.mark.parametrize(("rule", "unit", "text"), SOUND, ids=named(SOUND))
def test_a_rule_lets_pass_what_keeps_it(rule: Rule, unit: str, text: str) -> None:
    assert not list(rule(Module.parse(f"{PACKAGE}.{unit}", text)))


def test_every_rule_has_its_counterexample() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES) == {rule for rule, _, _ in SOUND}
