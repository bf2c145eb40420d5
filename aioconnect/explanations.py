"""What each code means, for people: who said so, what usually is the matter, what to do."""

from __future__ import annotations

from types import MappingProxyType
from typing import NamedTuple

__all__ = ("EXPLANATIONS", "Explanation")


class Explanation(NamedTuple):
    """One code in words."""

    meaning: str
    said_by: str
    causes: tuple[str, ...]
    advice: str


EXPLANATIONS = MappingProxyType(
    {
        "ECONNREFUSED": Explanation(
            "nothing listens on that port, or a firewall says so",
            "the host itself, by a TCP reset, or a firewall, by ICMP port-unreachable",
            (
                "the service is starting, restarting or has crashed",
                "the port is wrong, or the service listens on another address",
                "a Kubernetes Service without ready endpoints",
            ),
            "retried by default; if it lasts, look at the port and at the service's log",
        ),
    }
)
