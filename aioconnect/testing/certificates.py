"""Certificates for fault servers with TLS, made on the spot: needs the extra ``aioconnect[testing]``."""

from __future__ import annotations

import datetime as dt
import importlib
import os
import ssl
import tempfile
from typing import Any

from aioconnect.errors import ConfigError

__all__ = ("Authority",)


class Authority:
    """A certificate authority in a temporary file; one that no system trusts. `close` removes the file.

    Raises `ConfigError` if ``trustme`` is not installed.
    """

    def __init__(self) -> None:
        try:
            trustme: Any = importlib.import_module("trustme")
        except ImportError as exc:
            raise ConfigError("tls=True: needs trustme: pip install 'aioconnect[testing]'") from exc
        self._ca: Any = trustme.CA()
        handle, self.ca_file = tempfile.mkstemp(prefix="aioconnect-ca-", suffix=".pem")
        with os.fdopen(handle, "wb") as file:
            file.write(self._ca.cert_pem.bytes())

    def server_context(self, *names: str, days: tuple[float, float] = (-1, 30)) -> ssl.SSLContext:
        """For a server with a certificate of these names, valid between now and these numbers of days."""
        now = dt.datetime.now(dt.UTC)
        begin, end = (now + dt.timedelta(days=day) for day in days)
        leaf = self._ca.issue_cert(*names, not_before=begin, not_after=end)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        return context

    def close(self) -> None:
        """Remove the file."""
        if self.ca_file:
            os.unlink(self.ca_file)  # noqa: PTH108  (a text)
            self.ca_file = ""
