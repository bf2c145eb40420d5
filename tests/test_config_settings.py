"""The keys of a configuration are those of the signatures, so that nothing goes stale."""

from __future__ import annotations

import doctest

from aioconnect import config_settings as settings
from aioconnect.config_settings import Functions, arguments, endpoint_keys, walked


def test_what_a_type_checker_is_told_of_functions_is_what_the_signatures_say() -> None:
    assert Functions.__annotations__.keys() == arguments().keys()


def test_a_table_of_defaults_is_what_the_constructor_makes_of_nothing() -> None:
    """So that the defaults of its keys are those of its signature."""
    for path, key in walked(endpoint_keys()):
        if key.made is not None and isinstance(key.default, key.made):
            assert key.default == key.made(), path


def test_every_keyword_is_known_to_be_for_a_file_or_an_argument() -> None:
    neither = [path for path, key in walked(endpoint_keys()) if not key.in_file and not key.takes_objects]
    assert neither == []


def test_the_examples() -> None:
    assert doctest.testmod(settings).failed == 0
