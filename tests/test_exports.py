"""What is public is what `__all__` says: it is there, it is said once, and the package hands it on."""

from __future__ import annotations

import ast
import importlib
from collections import Counter
from types import ModuleType

import pytest

import aioconnect
from tests.support.source import PACKAGE, Module, modules

LIBRARY = tuple(module for module in modules() if module.name.count(".") < 2 and module.unit != "__main__")
ALL = tuple(module for module in modules() if module.unit != "__main__")
each_module = pytest.mark.parametrize("module", ALL, ids=lambda module: module.name)


def loaded(module: Module) -> ModuleType:
    return importlib.import_module(module.name)


def exported(module: Module) -> tuple[str, ...]:
    names: tuple[str, ...] = loaded(module).__all__
    return names


@each_module
def test_all_is_a_tuple_that_stands_before_the_code(module: Module) -> None:
    for statement in module.tree.body:
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            break
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            assert isinstance(statement.value, ast.Tuple)
            return
    pytest.fail(f"{module.name} has no __all__ before its first class or function")


@each_module
def test_every_name_in_all_exists_once(module: Module) -> None:
    names = exported(module)
    assert [name for name in names if not hasattr(loaded(module), name)] == []
    assert [name for name, count in Counter(names).items() if count > 1] == []


def origins() -> dict[str, list[str]]:
    """The modules that export a name, the package itself left out."""
    found: dict[str, list[str]] = {}
    for module in LIBRARY:
        if module.name != PACKAGE:
            for name in exported(module):
                found.setdefault(name, []).append(module.name)
    return found


def test_a_name_belongs_to_one_module() -> None:
    assert {name: places for name, places in origins().items() if len(places) > 1} == {}


def test_the_package_hands_on_what_its_modules_export() -> None:
    places = origins()
    units = {module.unit for module in LIBRARY}
    for name in aioconnect.__all__:
        if name in units:
            assert isinstance(getattr(aioconnect, name), ModuleType), f"{name} hides the module of its name"
        elif name != "__version__":
            assert name in places, f"no module exports {name}"
            originals = [getattr(importlib.import_module(place), name) for place in places[name]]
            assert any(getattr(aioconnect, name) is original for original in originals), name
