"""What the log says: one logger, one line each. When it says so is the connector's."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from aioconnect import logs
from aioconnect.errors import ConfigError, ConnectRefused

ERROR = ConnectRefused(address=("10.0.0.7", 5432))


@pytest.mark.parametrize(
    ("say", "level", "text"),
    [
        (
            lambda: logs.lost("tcp://db:5432", ERROR),
            "WARNING",
            "tcp://db:5432 is not reachable: connect 10.0.0.7:5432: [ECONNREFUSED] connection refused",
        ),
        (
            lambda: logs.restored("tcp://db:5432", 3, 1.26),
            "INFO",
            "tcp://db:5432 is reachable again after 3 failed attempts in 1.3 s",
        ),
        (
            lambda: logs.restored("tcp://db:5432", 1, 0.04),
            "INFO",
            "tcp://db:5432 is reachable again after 1 failed attempt in 0.0 s",
        ),
        (
            lambda: logs.stale_files(ConfigError("ca_file='x': no such file")),
            "WARNING",
            "TLS files were changed and cannot be used, keeping the old ones: ca_file='x': no such file",
        ),
    ],
)
def test_lines(say: Callable[[], None], level: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "aioconnect"):
        say()
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("aioconnect", level, text)


def test_nothing_is_formatted_that_nobody_reads(caplog: pytest.LogCaptureFixture) -> None:
    class Unread(ConnectRefused):
        def __str__(self) -> str:
            raise AssertionError

    with caplog.at_level(logging.CRITICAL, "aioconnect"):
        logs.lost("tcp://db:5432", Unread())
    assert caplog.records == []


def test_the_logger_is_left_as_it_is() -> None:
    logger = logging.getLogger("aioconnect")
    assert logger.handlers == []
    assert (logger.level, logger.propagate, logger.disabled) == (logging.NOTSET, True, False)
