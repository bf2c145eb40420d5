"""The package as text: its modules, their syntax trees and what they import."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ("FUNCTIONS", "PACKAGE", "Import", "Module", "inside", "modules")

PACKAGE = "aioconnect"
ROOT = Path(__file__).parents[2] / PACKAGE

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Import:
    """One import: of `name` from `module`, or of `module` itself, known by `alias`."""

    module: str
    name: str | None
    alias: str
    line: int
    in_function: bool


@dataclass(frozen=True)
class Module:
    """`name` is dotted, the package itself `aioconnect`. Equal only to itself: trees are not compared."""

    name: str
    tree: ast.Module
    is_package: bool = False

    @classmethod
    def parse(cls, name: str, text: str, *, is_package: bool = False) -> Module:
        return cls(name, ast.parse(text), is_package)

    @property
    def unit(self) -> str:
        """The name that has a place in the layers: `cli` for `aioconnect.cli.demo`."""
        return self.name.split(".")[1] if "." in self.name else PACKAGE

    def imports(self) -> Iterator[Import]:
        yield from self._imports(self.tree, in_function=False)

    def _imports(self, node: ast.AST, *, in_function: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, None, alias.asname or alias.name, child.lineno, in_function)
            elif isinstance(child, ast.ImportFrom):
                for alias in child.names:
                    known_as = alias.asname or alias.name
                    yield Import(self._origin(child), alias.name, known_as, child.lineno, in_function)
            else:
                yield from self._imports(child, in_function=in_function or isinstance(child, FUNCTIONS))

    def scopes(self) -> Iterator[tuple[str, list[ast.stmt]]]:
        """Every function with its body, and the module itself under an empty name."""
        yield "", self.tree.body
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node.name, node.body

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        steps = self.name.split(".")
        base = steps[: len(steps) - node.level + self.is_package]
        return ".".join([*base, *([node.module] if node.module else [])])


def inside(statements: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All that runs where these statements run: functions that are only defined there are left out."""
    for node in statements:
        yield node
        if not isinstance(node, FUNCTIONS):
            yield from inside(ast.iter_child_nodes(node))


@cache
def modules() -> tuple[Module, ...]:
    """Every module of the package, by name."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        steps = [PACKAGE, *path.relative_to(ROOT).with_suffix("").parts]
        is_package = steps[-1] == "__init__"
        name = ".".join(steps[:-1] if is_package else steps)
        found.append(Module.parse(name, path.read_text(encoding="utf-8"), is_package=is_package))
    return tuple(found)
