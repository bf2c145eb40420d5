"""The examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest

from tests.support.source import Module, modules

SHOWN = tuple(module for module in modules() if module.unit != "__main__")


@pytest.mark.parametrize("module", SHOWN, ids=lambda module: module.name)
def test_examples(module: Module) -> None:
    failed, _ = doctest.testmod(importlib.import_module(module.name), optionflags=doctest.ELLIPSIS)
    assert not failed
