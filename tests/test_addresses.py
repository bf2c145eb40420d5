"""The addresses of an endpoint; resolving several targets end to end is in test_connector."""

from __future__ import annotations

import socket

from aioconnect.addresses import AddressBook
from aioconnect.endpoint import Endpoint
from aioconnect.policy import Policy


def test_an_ip_address_and_a_path_are_known_from_the_start() -> None:
    for url, family, place in (
        ("tcp://127.0.0.1:80", socket.AF_INET, ("127.0.0.1", 80)),
        ("tcp://[::1]:80", socket.AF_INET6, ("::1", 80, 0, 0)),
        ("unix:///run/app.sock", socket.AF_UNIX, "/run/app.sock"),
    ):
        book = AddressBook(Endpoint.parse(url), None, Policy())
        for _ in range(2):
            known = book.known(0.0)
            assert known is not None
            assert [(info.family, info.sockaddr) for info in known] == [(family, place)]
            book.forget()


def test_a_name_is_not_known_before_it_was_looked_up() -> None:
    assert AddressBook(Endpoint.parse("tcp://db.internal:80"), None, Policy()).known(0.0) is None
