"""From a `TLS` value to an `ssl.SSLContext`, and to a new one whenever its files have been replaced.

Certificates live for weeks or hours, clients for months: whoever renews them writes new files under the same
names and tells nobody. So the files are looked at before each handshake, a stat(2) each, and read again when
they have changed. Connections made before keep what they were made with.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import NoReturn

from aioconnect.endpoint import TLS
from aioconnect.errors import ConfigError

__all__ = ("ContextCache", "build_context")

_FILES = ("ca_file", "cert_file", "key_file")


class ContextCache:
    """The context of one `TLS`: built at the first `get`, and again when one of its files has changed.

    In the middle of a rotation a file may be missing, half written, or not fit the other one. Then the last
    context that worked stays in use, ``problem`` says why, and ``on_problem`` is called with it, once for
    each state of the files. A later state that works clears it.
    """

    __slots__ = ("_context", "_on_problem", "_stamps", "problem", "tls")

    def __init__(self, tls: TLS, on_problem: Callable[[ConfigError], object] | None = None) -> None:
        self.tls = tls
        self._on_problem = on_problem
        self._context: ssl.SSLContext | None = None
        self._stamps: tuple[tuple[int, ...], ...] = ()
        self.problem: ConfigError | None = None

    def get(self) -> ssl.SSLContext:
        """The context for the next handshake; a ``context`` of the `TLS` is given back as it is.

        Files are read on the calling thread. The system's authorities, trusted where no ``ca_file`` is given,
        take some 50 ms with OpenSSL 3; anything else takes about one.

        Raises ConfigError, with the original error as its cause, if there is no context yet to fall back on.
        """
        if self.tls.context is not None:
            return self.tls.context
        # Taken before the files are read: a change in between is then found the next time.
        stamps = tuple(_stamp(path) for _, path in _files_of(self.tls))
        if self._context is not None and stamps == self._stamps:
            return self._context
        self._stamps = stamps
        try:
            self._context = build_context(self.tls)
            self.problem = None
        except ConfigError as error:
            if self._context is None:
                raise
            self._report(error)
        return self._context

    def _report(self, error: ConfigError) -> None:
        # Kept for long, so without the frames and what they hold.
        each: BaseException | None = error
        while each is not None:
            each.__traceback__ = None
            each = each.__cause__
        self.problem = error
        if self._on_problem is not None:
            self._on_problem(error)


def _files_of(tls: TLS) -> list[tuple[str, str]]:
    """Field and path of each file."""
    paths = ((field, getattr(tls, field)) for field in _FILES)
    return [(field, path) for field, path in paths if path is not None]


def _stamp(path: str) -> tuple[int, ...]:
    """What tells one state of a file from another.

    Symbolic links are followed: Kubernetes replaces a mounted secret by moving a link, so the inode changes.
    """
    try:
        status = os.stat(path)  # noqa: PTH116  (the import of pathlib costs 5 ms)
    except OSError as error:
        return (error.errno or 0,)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def build_context(tls: TLS) -> ssl.SSLContext:
    """A new context that verifies the peer, from the files as they are now.

    Raises ConfigError, which names the field, the file and the reason, with the original error as its cause.
    """
    if tls.cert_file is not None:
        # First, into a context of its own: to find a mistake must not cost the loading of the system's authorities.
        _load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls, tls.cert_file)
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.ca_file)
    except OSError as error:
        _fail(error, "ca_file", tls.ca_file, "must be a PEM file of certificates")
    if tls.cert_file is not None:
        _load_certificate(context, tls, tls.cert_file)
    if tls.minimum_version is not None:
        context.minimum_version = ssl.TLSVersion[tls.minimum_version.replace(".", "_")]
    if tls.alpn:
        context.set_alpn_protocols(list(tls.alpn))
    return context


class _PassphraseNeededError(Exception):
    """The private key is encrypted."""


def _refuse_passphrase() -> str:
    # Without a callback OpenSSL asks on the terminal, and the event loop waits for the answer.
    raise _PassphraseNeededError


def _load_certificate(context: ssl.SSLContext, tls: TLS, cert_file: str) -> None:
    key_field, key_path = ("cert_file", cert_file) if tls.key_file is None else ("key_file", tls.key_file)
    try:
        context.load_cert_chain(cert_file, tls.key_file, password=_refuse_passphrase)
    except _PassphraseNeededError as error:
        right = "must be a key without a passphrase; load this one into an SSLContext and give that as context"
        _fail(error, key_field, key_path, right)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            _fail(error, key_field, key_path, f"must hold the key of the certificate in {cert_file!r}")
        if not _holds_certificate(cert_file):
            _fail(error, "cert_file", cert_file, "must be a PEM file with the certificate")
        _fail(error, key_field, key_path, "must be a PEM file with the private key")
    except OSError as error:
        # The error does not say which of the two files it is about.
        cert_fails = tls.key_file is None or not _is_readable(cert_file)
        field, path = ("cert_file", cert_file) if cert_fails else (key_field, key_path)
        _fail(error, field, path, "must be a readable file")


def _holds_certificate(path: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except OSError:
        return False
    return True


def _is_readable(path: str) -> bool:
    return os.access(path, os.R_OK) and not os.path.isdir(path)  # noqa: PTH112


def _fail(error: Exception, field: str, path: str | None, right: str) -> NoReturn:
    # The reason is the system's or OpenSSL's word for it; neither quotes what is in the file.
    reason = getattr(error, "reason" if isinstance(error, ssl.SSLError) else "strerror", None)
    raise ConfigError(f"{field}={path!r}: {right}" + (f" ({reason})" if reason else "")) from error
