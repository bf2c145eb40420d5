"""The one place that logs: a line when an endpoint is lost, and one when it is back. Logger ``aioconnect``."""

from __future__ import annotations

import logging

from aioconnect.errors import ConfigError, Holder, NetworkError

__all__ = ("lost", "opened", "restored", "stale_files", "stragglers")

logger = logging.getLogger("aioconnect")


def lost(endpoint: str, error: NetworkError) -> None:
    """The endpoint worked, or was never tried, and now an attempt has failed."""
    logger.warning("%s is not reachable: %s", endpoint, error)


def restored(endpoint: str, failures: int, seconds: float) -> None:
    """The endpoint works again."""
    attempts = "attempt" if failures == 1 else "attempts"
    logger.info("%s is reachable again after %d failed %s in %.1f s", endpoint, failures, attempts, seconds)


def opened(endpoint: str, failures: int, seconds: float, error: NetworkError | None) -> None:
    """The circuit has opened."""
    logger.warning(
        "%s: the circuit is open after %d failures, next probe in %.1f s: %s", endpoint, failures, seconds, error
    )


def stragglers(endpoint: str, holders: tuple[Holder, ...]) -> None:
    """The pool was closed, and they still had connections of it."""
    logger.warning("closed the pool of %s, aborting what is in use by %s", endpoint, ", ".join(map(str, holders)))


def stale_files(error: ConfigError) -> None:
    """TLS files have changed and cannot be loaded; those loaded before stay in use."""
    logger.warning("TLS files were changed and cannot be used, keeping the old ones: %s", error)
