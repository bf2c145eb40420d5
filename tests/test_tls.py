"""The context of a `TLS`: built once, built anew when its files change, kept while they are broken."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import ssl
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from aioconnect import tls as module
from aioconnect.endpoint import TLS
from aioconnect.errors import ConfigError
from aioconnect.tls import ContextCache, build_context

PASSPHRASE = b"hunter2"
NO_CERTIFICATES = "must be a PEM file of certificates"
NO_CERTIFICATE = "must be a PEM file with the certificate"
NO_KEY = "must be a PEM file with the private key"
LOCKED = "must be a key without a passphrase; load this one into an SSLContext and give that as context"


class Store:
    """A directory of PEM files, each set from its own authority."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ca, self.cert, self.key = path / "ca.pem", path / "cert.pem", path / "key.pem"

    def issue(self) -> trustme.CA:
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost")
        self.ca.write_bytes(authority.cert_pem.bytes())
        self.cert.write_bytes(leaf.cert_chain_pems[0].bytes())
        self.key.write_bytes(leaf.private_key_pem.bytes())
        return authority

    def tls(self, **options: Any) -> TLS:
        return TLS(ca_file=self.ca, cert_file=self.cert, key_file=self.key, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two sets of files; making keys takes longer than the rest of these tests."""
    first, second = tmp_path_factory.mktemp("first"), tmp_path_factory.mktemp("second")
    for path in (first, second):
        Store(path).issue()
    return first, second


@pytest.fixture
def store(made: tuple[Path, Path], tmp_path: Path) -> Store:
    shutil.copytree(made[0], tmp_path, dirs_exist_ok=True)
    return Store(tmp_path)


def problem(make: Callable[[], object]) -> tuple[str, BaseException | None]:
    with pytest.raises(ConfigError) as caught:
        make()
    assert len(caught.value.problems) == 1
    return caught.value.problems[0], caught.value.__cause__


def trusted(context: ssl.SSLContext) -> list[bytes]:
    return context.get_ca_certs(binary_form=True)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> ssl.SSLObject:
    """A handshake through memory; raises what the client or the server finds wrong."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    waiting = list(ends)
    for _ in range(10):
        for end in list(waiting):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            waiting.remove(end)
    assert not waiting
    return ends[0]


def server_context(store: Store) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(store.cert, store.key)
    return context


# Building


def test_the_default_verifies() -> None:
    context = build_context(TLS())
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    default = ssl.create_default_context()
    assert context.minimum_version == default.minimum_version
    assert context.verify_flags == default.verify_flags
    assert context.options == default.options


def test_the_files_are_used(store: Store) -> None:
    server = server_context(store)
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_verify_locations(store.ca)
    server.set_alpn_protocols(["h2"])
    client = build_context(store.tls(alpn=("h2", "http/1.1"), minimum_version="TLSv1.3"))
    assert client.minimum_version is ssl.TLSVersion.TLSv1_3
    connection = handshake(client, server)
    assert connection.selected_alpn_protocol() == "h2"
    assert connection.version() == "TLSv1.3"


def test_an_authority_replaces_those_of_the_system(store: Store) -> None:
    assert trusted(build_context(TLS(ca_file=store.ca))) == [ssl.PEM_cert_to_DER_cert(store.ca.read_text())]
    handshake(build_context(TLS(ca_file=store.ca)), server_context(store))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(build_context(TLS()), server_context(store))


def test_a_combined_file_needs_no_key_file(store: Store) -> None:
    store.cert.write_bytes(store.key.read_bytes() + store.cert.read_bytes())
    build_context(TLS(ca_file=store.ca, cert_file=store.cert))


def test_minimum_version(store: Store) -> None:
    context = build_context(TLS(ca_file=store.ca, minimum_version="TLSv1.2"))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


# What is wrong with a file


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:120])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def scribble(path: Path) -> None:
    path.write_bytes(b"\x00\x01 no PEM file")


def to_der(path: Path) -> None:
    path.write_bytes(ssl.PEM_cert_to_DER_cert(path.read_text()))


def missing(path: Path) -> None:
    path.unlink()


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("field", "damage", "right"),
    [
        ("ca_file", missing, f"{NO_CERTIFICATES} (No such file or directory)"),
        ("ca_file", directory, f"{NO_CERTIFICATES} (Is a directory)"),
        ("ca_file", empty, f"{NO_CERTIFICATES} (NO_CERTIFICATE_OR_CRL_FOUND)"),
        ("ca_file", scribble, f"{NO_CERTIFICATES} (NO_CERTIFICATE_OR_CRL_FOUND)"),
        ("ca_file", to_der, f"{NO_CERTIFICATES} (NO_CERTIFICATE_OR_CRL_FOUND)"),
        ("ca_file", cut, NO_CERTIFICATES),
        ("cert_file", missing, "must be a readable file (No such file or directory)"),
        ("cert_file", directory, "must be a readable file (Is a directory)"),
        ("cert_file", empty, NO_CERTIFICATE),
        ("cert_file", scribble, NO_CERTIFICATE),
        ("cert_file", to_der, NO_CERTIFICATE),
        ("cert_file", cut, NO_CERTIFICATE),
        ("key_file", missing, "must be a readable file (No such file or directory)"),
        ("key_file", directory, "must be a readable file (Is a directory)"),
        ("key_file", empty, NO_KEY),
        ("key_file", scribble, NO_KEY),
        ("key_file", cut, NO_KEY),
    ],
)
def test_broken_files(store: Store, field: str, damage: Callable[[Path], None], right: str) -> None:
    path = {"ca_file": store.ca, "cert_file": store.cert, "key_file": store.key}[field]
    damage(path)
    text, cause = problem(ContextCache(store.tls()).get)
    # OpenSSL 3.2 and later find other words for an empty file than those before.
    assert text.partition(" (")[0] == f"{field}={str(path)!r}: {right}".partition(" (")[0]
    if isinstance(cause, ssl.SSLError):
        assert cause.reason is None or text.endswith(f"({cause.reason})")
    else:
        assert isinstance(cause, OSError)
        assert text.endswith(f"({cause.strerror})")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs another user to become")
def test_unreadable_files(store: Store) -> None:
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from aioconnect.endpoint import TLS; from aioconnect.tls import build_context\n"
        "os.seteuid(65534)\n"
        "try: build_context(TLS(cert_file=sys.argv[2], key_file=sys.argv[3]))\n"
        "except ValueError as error: print(error, repr(error.__cause__))"
    )
    package = str(Path(module.__file__).parents[1])
    # Not in tmp_path, which only its owner may enter.
    with tempfile.TemporaryDirectory() as name:
        place = Store(Path(shutil.copytree(store.path, name, dirs_exist_ok=True)))
        place.path.chmod(0o755)
        place.cert.chmod(0o644)
        place.key.chmod(0o600)
        arguments = [sys.executable, "-c", program, package, str(place.cert), str(place.key)]
        ran = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert ran.stdout == (
        f"key_file={str(place.key)!r}: must be a readable file (Permission denied) "
        "PermissionError(13, 'Permission denied')\n"
    )


def test_a_key_of_another_certificate(store: Store, made: tuple[Path, Path]) -> None:
    shutil.copy(made[1] / "key.pem", store.key)
    text, cause = problem(lambda: build_context(store.tls()))
    right = f"must hold the key of the certificate in {str(store.cert)!r} (KEY_VALUES_MISMATCH)"
    assert text == f"key_file={str(store.key)!r}: {right}"
    assert isinstance(cause, ssl.SSLError)


def test_a_combined_file_without_the_key(store: Store) -> None:
    text, _ = problem(lambda: build_context(TLS(cert_file=store.cert)))
    assert text == f"cert_file={str(store.cert)!r}: {NO_KEY}"
    store.cert.unlink()
    text, _ = problem(lambda: build_context(TLS(cert_file=store.cert)))
    assert text == f"cert_file={str(store.cert)!r}: must be a readable file (No such file or directory)"


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize(
    "form",
    [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL],
    ids=["pkcs8", "openssl"],
)
def test_nobody_is_asked_for_a_passphrase(store: Store, combined: bool, form: serialization.PrivateFormat) -> None:
    key = serialization.load_pem_private_key(store.key.read_bytes(), None)
    locked = key.private_bytes(serialization.Encoding.PEM, form, serialization.BestAvailableEncryption(PASSPHRASE))
    store.key.write_bytes(locked)
    if combined:
        store.cert.write_bytes(locked + store.cert.read_bytes())
        tls, field, path = TLS(cert_file=store.cert), "cert_file", store.cert
    else:
        tls, field, path = store.tls(), "key_file", store.key
    text, _ = problem(lambda: build_context(tls))
    assert text == f"{field}={str(path)!r}: {LOCKED}"


def test_nothing_of_a_key_is_shown(store: Store) -> None:
    lines = store.key.read_text().splitlines()
    store.key.write_text("\n".join(lines[: len(lines) // 2]))
    with pytest.raises(ConfigError) as caught:
        build_context(store.tls())
    said = repr((caught.value, caught.value.__cause__, pickle.dumps(caught.value)))
    assert not any(line in said for line in lines[1:-1])


# Keeping, and building anew


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[TLS]:
    """Every `TLS` that a context was built from, or was to be."""
    found: list[TLS] = []
    original = module.build_context

    def build(tls: TLS) -> ssl.SSLContext:
        found.append(tls)
        return original(tls)

    monkeypatch.setattr(module, "build_context", build)
    return found


def put(source: Path, target: Path) -> None:
    """Replace a file at once, as renewal tools do."""
    new = target.with_suffix(".new")
    shutil.copy(source, new)
    new.replace(target)


def test_a_context_is_built_once(store: Store, builds: list[TLS]) -> None:
    for tls in (store.tls(), TLS(ca_file=store.ca), TLS()):
        builds.clear()
        cache = ContextCache(tls)
        assert builds == []
        assert cache.get() is cache.get() is cache.get()
        assert builds == [tls]
        assert cache.problem is None


def test_a_context_of_your_own_is_not_touched(builds: list[TLS]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    before = (context.verify_mode, context.check_hostname, context.minimum_version, context.options)
    cache = ContextCache(TLS(context=context, handshake_timeout=1))
    assert cache.get() is context
    assert (context.verify_mode, context.check_hostname, context.minimum_version, context.options) == before
    assert builds == []


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
def test_a_touched_file_is_read_again(store: Store, builds: list[TLS], name: str) -> None:
    cache = ContextCache(store.tls())
    before = cache.get()
    path = store.path / name
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert cache.get() is not before
    assert cache.get() is cache.get()
    assert len(builds) == 2


def test_a_file_replaced_by_one_as_old_and_as_long_is_read_again(store: Store, builds: list[TLS]) -> None:
    cache = ContextCache(store.tls())
    cache.get()
    status = store.ca.stat()
    put(store.ca, store.ca)
    os.utime(store.ca, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.ca.stat().st_ino != status.st_ino
    cache.get()
    assert len(builds) == 2


def test_a_moved_link_is_followed(made: tuple[Path, Path], tmp_path: Path) -> None:
    """As Kubernetes does it: files are links into a directory that is itself a link, and that one moves."""
    (tmp_path / "..data").symlink_to(made[0])
    (tmp_path / "ca.pem").symlink_to("..data/ca.pem")
    cache = ContextCache(TLS(ca_file=tmp_path / "ca.pem"))
    before = cache.get()
    (tmp_path / "..new").symlink_to(made[1])
    (tmp_path / "..new").replace(tmp_path / "..data")
    after = cache.get()
    assert trusted(before) == [ssl.PEM_cert_to_DER_cert((made[0] / "ca.pem").read_text())]
    assert trusted(after) == [ssl.PEM_cert_to_DER_cert((made[1] / "ca.pem").read_text())]


def test_a_rotation_is_lived_through(store: Store, made: tuple[Path, Path], builds: list[TLS]) -> None:
    reported: list[ConfigError] = []
    cache = ContextCache(store.tls(), reported.append)
    before = cache.get()

    put(made[1] / "cert.pem", store.cert)  # the old key does not fit
    assert cache.get() is before
    assert cache.get() is before
    assert len(builds) == 2
    assert reported == [cache.problem]
    assert str(reported[0]).startswith(f"key_file={str(store.key)!r}: must hold the key of")

    store.key.unlink()
    assert cache.get() is before
    assert cache.get() is before
    assert str(reported[1]) == f"key_file={str(store.key)!r}: must be a readable file (No such file or directory)"
    assert cache.problem is reported[1]

    put(made[1] / "key.pem", store.key)
    put(made[1] / "ca.pem", store.ca)
    after = cache.get()
    assert after is not before
    assert cache.problem is None
    assert len(reported) == 2
    assert trusted(after) != trusted(before)


def test_a_file_put_back_ends_the_problem(store: Store) -> None:
    cache = ContextCache(store.tls())
    cache.get()
    store.ca.rename(store.path / "away")
    cache.get()
    assert cache.problem is not None
    (store.path / "away").rename(store.ca)
    cache.get()
    assert cache.problem is None


def test_without_a_first_context_each_call_says_why(store: Store, builds: list[TLS]) -> None:
    key = store.key.read_bytes()
    store.key.unlink()
    cache = ContextCache(store.tls())
    for _ in range(2):
        with pytest.raises(ConfigError, match="key_file="):
            cache.get()
    assert cache.problem is None
    store.key.write_bytes(key)
    assert cache.get() is cache.get()
    assert len(builds) == 3


def test_a_change_during_the_reading_is_found_the_next_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    original = module.build_context

    def build(tls: TLS) -> ssl.SSLContext:
        context = original(tls)
        put(store.ca, store.ca)
        return context

    cache = ContextCache(store.tls())
    monkeypatch.setattr(module, "build_context", build)
    before = cache.get()
    monkeypatch.setattr(module, "build_context", original)
    after = cache.get()
    assert after is not before
    assert cache.get() is after


def test_a_problem_holds_on_to_nothing(store: Store) -> None:
    cache = ContextCache(store.tls())
    cache.get()
    store.key.unlink()
    cache.get()
    assert cache.problem is not None
    assert cache.problem.__traceback__ is None
    assert isinstance(cache.problem.__cause__, FileNotFoundError)
    assert cache.problem.__cause__.__traceback__ is None


def test_an_old_context_is_let_go(store: Store, made: tuple[Path, Path]) -> None:
    cache = ContextCache(TLS(ca_file=store.ca))
    before = weakref.ref(cache.get())
    put(made[1] / "ca.pem", store.ca)
    cache.get()
    gc.collect()
    assert before() is None
