"""A small network made of kernel namespaces, in which every way of failing to connect really happens.

    near ---- wan ---- far          two hosts; `far` filters by port, answers with chosen ICMP, and routes on
    plain                           a host without IPv6 and without a DNS server
    narrow()                        hosts with one single ephemeral port, and IPv6 off on the loopback

Nothing outside the namespaces made here is touched, except for `/etc/netns/NAME`, where `ip netns exec` looks
for the files it is to show inside a namespace. The names are random, so labs may run side by side; they are
removed when the block is left, however it is left.

Made for the kernel's own answers: no errno in the tables that use this is simulated. Two settings make it
quick: `tcp_syn_retries=1` (a kernel time-out takes 3 s and not 134) and a neighbour discovery that gives up
after 0.6 s. The second one also decides a race: with the defaults an unanswered ARP request and the SYN
time-out both end after three seconds, so the errno would be a matter of luck.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self

from tests.support.dns import NOERROR, REFUSED, SERVFAIL, SRV, Alias, DNSServer, Zone

CLONE_NEWNET: Final = 0x40000000  # sched.h; os.CLONE_NEWNET and os.setns need Python 3.12
ETH_P_IP: Final = 0x0800  # linux/if_ether.h; not in the socket module before 3.12
TOOLS: Final = ("ip", "iptables-restore", "ip6tables-restore", "sysctl", "ss")
ETC_NETNS: Final = Path("/etc/netns")

ROUTED_ON: Final = (1, 2, 9)  # 10.97.N.0/24 is where `far` sends packets on, and finds no way
NEAR4, FAR4, NEAR6, FAR6 = "10.99.0.1", "10.99.0.2", "fd99::1", "fd99::2"
LINK6: Final = "fe80::2"  # `far`, for those who name the interface
WAN_INDEX: Final = 99  # of the interface `wan` on `near`, which is the scope id of a link-local address

# Ports of `far`, by the way its firewall (INPUT) treats a SYN. REJECT is named as iptables names it.
REJECTED4: Final = {
    7001: "tcp-reset",
    7002: "icmp-port-unreachable",
    7003: "icmp-host-unreachable",
    7004: "icmp-net-unreachable",
    7005: "icmp-admin-prohibited",
    7006: "icmp-host-prohibited",
    7007: "icmp-net-prohibited",
    7008: "icmp-proto-unreachable",
}
REJECTED6: Final = {
    7001: "tcp-reset",
    7002: "icmp6-port-unreachable",
    7003: "icmp6-addr-unreachable",
    7004: "icmp6-no-route",
    7005: "icmp6-adm-prohibited",
    7009: "icmp6-policy-fail",
    7010: "icmp6-reject-route",
}
DROPPED4: Final = (7000, 7011)
DROPPED6: Final = (7000, 7012)
# Ports for which `near` rejects its own SYN on the way out (OUTPUT).
REJECTED_OUT: Final = {
    7101: "tcp-reset",
    7102: "icmp-port-unreachable",
    7103: "icmp-host-unreachable",
    7105: "icmp-admin-prohibited",
}
DROPPED_OUT: Final = 7100
# Ports at which a SYN is answered with this ICMP type and code, which no REJECT target can produce.
ICMP: Final = {7200 + code: (3, code) for code in range(16)} | {7300: (11, 0), 7400: (12, 0), 7401: (4, 0)}
# Ports of `far` that accept a connection, and then spoil it: by what happens to data, to keepalive answers, or
# not at all.
SWALLOWS_DATA: Final = 7500
SWALLOWS_ACKS: Final = 7501
LISTENS: Final = 7502
RESETS_DATA: Final = 7503
REJECTS_DATA: Final = 7504
NARROW_LISTENS: Final = 7600
NARROW_PORT: Final = 61000  # the only ephemeral port of `narrow`

HOSTS: Final = f"""\
127.0.0.1 localhost
::1 localhost
{FAR4} two-answers.test
{FAR6} two-answers.test
{FAR4} no-route-to-v6.test
fd98:9::1 no-route-to-v6.test
{FAR4} denied-and-refused.test
fd98:2::1 denied-and-refused.test
{FAR4} only-v4.test
"""

SERVICES: Final[Mapping[str, list[SRV] | Alias | int]] = {
    "_reserve._tcp.test": [SRV(20, 0, LISTENS, "only-v4.test"), SRV(10, 0, 7001, "only-v4.test")],
    "_refused._tcp.test": [SRV(10, 0, 7001, "only-v4.test"), SRV(20, 0, 7003, "only-v4.test")],
    "_nobody._tcp.test": [SRV(10, 0, 80, "nxdomain.test"), SRV(20, 0, 81, "servfail.test")],
    "_none._tcp.test": [SRV(0, 0, 0, "")],
    "_empty._tcp.test": NOERROR,
    "_servfail._tcp.test": SERVFAIL,
    "_notforyou._tcp.test": REFUSED,
}
"""What the name server of `near` knows besides."""


class LabUnavailable(Exception):
    """This machine cannot make the lab; the text says why."""


def reason_to_skip() -> str | None:
    """Why the lab cannot be made here, or None."""
    if sys.platform != "linux":
        return "network namespaces exist on Linux only"
    if os.geteuid() != 0:
        return "making network namespaces takes root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return None


def command(*argv: str, text: str | None = None) -> str:
    """Run a command to its end and return its output; its error text is the exception's text."""
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


class Namespace:
    """One network namespace, as a host of the lab."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._held: list[socket.socket] = []
        command("ip", "netns", "add", name)

    def __repr__(self) -> str:
        return f"Namespace({self.name!r})"

    def argv(self, *argv: str) -> tuple[str, ...]:
        """The command line that runs `argv` as a process of this host."""
        return ("ip", "netns", "exec", self.name, *argv)

    def ip(self, *lines: str) -> None:
        """Run `ip` sub-commands, one per line, in one process."""
        command("ip", "-n", self.name, "-batch", "-", text="\n".join(lines) + "\n")

    def sysctl(self, **settings: object) -> None:
        """Set kernel settings of this host; `__` in a name stands for the dot."""
        pairs = (f"{key.replace('__', '.')}={value}" for key, value in settings.items())
        command(*self.argv("sysctl", "-q", "-w", *pairs))

    def filter(self, tool: str, *rules: str) -> None:
        """Load firewall rules; `tool` is "iptables" or "ip6tables"."""
        table = "\n".join(("*filter", *rules, "COMMIT", ""))
        command(*self.argv(f"{tool}-restore"), text=table)

    def etc(self, **files: str) -> None:
        """Show these files to processes of this host as `/etc/...`; `_` in a name stands for the dot."""
        folder = ETC_NETNS / self.name
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("_", ".")).write_text(text)

    def open_socket(self, family: int, kind: int, proto: int = 0) -> socket.socket:
        """A socket of this host for the calling process.

        A socket belongs for good to the namespace of the thread that made it, and setns(2) changes the
        calling thread only. So a thread that ends right afterwards changes nothing for the others.
        """
        made: list[socket.socket | OSError] = []
        thread = threading.Thread(target=self._make_socket, args=(made, family, kind, proto))
        thread.start()
        thread.join()
        result = made[0]
        if isinstance(result, OSError):
            raise result
        return result

    def _make_socket(self, made: list[socket.socket | OSError], family: int, kind: int, proto: int) -> None:
        try:
            with Path("/run/netns", self.name).open("rb") as handle:
                libc = ctypes.CDLL(None, use_errno=True)
                if libc.setns(handle.fileno(), CLONE_NEWNET) != 0:
                    code = ctypes.get_errno()
                    raise OSError(code, f"setns: {os.strerror(code)}")
            made.append(socket.socket(family, kind, proto))
        except OSError as exc:
            made.append(exc)

    def listen(self, address: str, port: int) -> None:
        """Accept connections into the kernel's queue, where they stay: nobody ever calls accept()."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = self.open_socket(family, socket.SOCK_STREAM)
        self._held.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(100)

    def remove(self) -> None:
        """Take the host down. Never fails: it runs on the way out of failures."""
        for sock in self._held:
            sock.close()
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True, timeout=30, check=False)
        shutil.rmtree(ETC_NETNS / self.name, ignore_errors=True)


class ICMPResponder:
    """Answers each SYN to one of the given ports with the ICMP error chosen for that port.

    It reads below the firewall (a packet socket) because the firewall has to drop those SYNs: otherwise the
    kernel would answer with a reset as well.
    """

    def __init__(self, host: Namespace, answers: Mapping[int, tuple[int, int]]) -> None:
        self._answers = answers
        self._sniffer = host.open_socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP))
        self._sender = host.open_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="icmp", daemon=True)

    def __enter__(self) -> Self:
        self._sniffer.settimeout(0.1)  # how long leaving the block may take
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._sniffer.close()
        self._sender.close()

    def _serve(self) -> None:
        while not self._stopping.is_set():
            try:
                packet = self._sniffer.recv(2048)
            except TimeoutError:
                continue
            self._answer(packet)

    def _answer(self, packet: bytes) -> None:
        header = (packet[0] & 15) * 4
        if packet[9] != socket.IPPROTO_TCP or len(packet) < header + 14:
            return
        (port,) = struct.unpack_from("!H", packet, header + 2)
        is_syn = packet[header + 13] & 0x12 == 0x02
        if is_syn and port in self._answers:
            error = icmp_error(*self._answers[port], packet[: header + 8])
            self._sender.sendto(error, (socket.inet_ntoa(packet[12:16]), 0))


def icmp_error(kind: int, code: int, quoted: bytes) -> bytes:
    """An ICMP error (RFC 792): type, code, checksum, four unused bytes, then the packet it is about."""
    body = struct.pack("!BBHI", kind, code, 0, 0) + quoted
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!BBH", kind, code, ~total & 0xFFFF) + body[4:]


class Lab:
    """The hosts of the lab. Use as a context manager; raises LabUnavailable where it cannot be made."""

    near: Namespace
    far: Namespace
    plain: Namespace

    def __init__(self) -> None:
        self.tag = f"aioconnect-{os.getpid():x}-{secrets.token_hex(4)}"
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        reason = reason_to_skip()
        if reason is not None:
            raise LabUnavailable(reason)
        try:
            self._build()
        except BaseException:
            self._undo.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._undo.close()

    def _build(self) -> None:
        if not ETC_NETNS.exists():
            ETC_NETNS.mkdir(parents=True)
            self._undo.callback(remove_if_empty, ETC_NETNS)
        try:
            self.near = self._host("near")
        except RuntimeError as exc:  # a container without CAP_SYS_ADMIN: root, but not allowed to
            raise LabUnavailable(str(exc)) from exc
        self.far, self.plain = self._host("far"), self._host("plain")
        self._wire()
        self._set_up_near()
        self._set_up_far()
        self._set_up_plain()

    def _host(self, role: str) -> Namespace:
        host = Namespace(f"{self.tag}-{role}")
        self._undo.callback(host.remove)
        # ICMP errors are rate limited by default, which would turn answers into time-outs.
        host.sysctl(
            net__ipv4__tcp_syn_retries=1,
            net__ipv4__icmp_ratelimit=0,
            net__ipv6__icmp__ratelimit=0,
        )
        return host

    def _wire(self) -> None:
        """Both ends are made inside: nothing of the lab is ever seen in the machine's own namespace."""
        far_end = f"peer name wan netns {self.far.name}"
        command("ip", *f"link add wan index {WAN_INDEX} netns {self.near.name} type veth {far_end}".split())
        for host in (self.near, self.far):
            # Set before the interface is up and used: a neighbour entry keeps the settings it was made with.
            host.sysctl(net__ipv4__neigh__wan__retrans_time_ms=200, net__ipv6__neigh__wan__retrans_time_ms=200)

    def _set_up_near(self) -> None:
        self.near.ip(
            "link add cut type veth peer name cut-end",
            "link add dark type veth peer name dark-end",
            "link set lo up",
            "link set wan up",
            "link set cut up",
            "link set dark-end up",
            f"addr add {NEAR4}/24 brd + dev wan",
            f"addr add {NEAR6}/64 dev wan nodad",
            "addr add fe80::1/64 dev wan nodad",  # the kernel's own link-local address is usable only later
            "addr add 10.96.0.1/24 dev cut",
            "addr add 10.95.0.1/24 dev dark",
            # Neighbours that are known and do not exist: pure silence, unlike an unanswered ARP request.
            "neigh add 10.99.0.78 lladdr 02:00:00:00:00:99 nud permanent dev wan",
            "neigh add fd99::78 lladdr 02:00:00:00:00:99 nud permanent dev wan",
            "route add unreachable 10.98.1.0/24",
            "route add prohibit 10.98.2.0/24",
            "route add blackhole 10.98.3.0/24",
            "route add throw 10.98.4.0/24",
            f"route add 10.97.3.0/24 via {FAR4}",
            # A router answers a source address with five ICMP errors and then one a second (linux
            # net/ipv4/route.c, ip_error; not per namespace). So each of these has a source of its own.
            *(f"addr add 10.99.0.1{net}/24 dev wan" for net in ROUTED_ON),
            *(f"route add 10.97.{net}.0/24 via {FAR4} src 10.99.0.1{net}" for net in ROUTED_ON),
            "route add unreachable fd98:1::/32",
            "route add prohibit fd98:2::/32",
            "route add blackhole fd98:3::/32",
            "route add throw fd98:4::/32",
            f"route add fd97::/16 via {FAR6}",
        )
        self.near.sysctl(net__ipv4__neigh__cut__retrans_time_ms=200)
        self.near.filter(
            "iptables",
            f"-A OUTPUT -p tcp --dport {DROPPED_OUT} -j DROP",
            *rejecting("OUTPUT", REJECTED_OUT),
        )
        self.near.etc(
            hosts=HOSTS,
            resolv_conf="nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
            nsswitch_conf="hosts: files dns\n",
        )
        server = self.near.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.1", 53))
        self._undo.enter_context(DNSServer(server, zone=Zone(services=dict(SERVICES))))

    def _set_up_far(self) -> None:
        self.far.ip(
            "link set lo up",
            "link set wan up",
            f"addr add {FAR4}/24 brd + dev wan",
            f"addr add {FAR6}/64 dev wan nodad",
            f"addr add {LINK6}/64 dev wan nodad",
            "route add unreachable 10.97.1.0/24",
            "route add prohibit 10.97.2.0/24",
            "route add blackhole 10.97.3.0/24",
            "route add unreachable fd97:1::/32",
            "route add prohibit fd97:2::/32",
            "route add blackhole fd97:3::/32",
        )
        self.far.sysctl(net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)
        self.far.filter(
            "iptables",
            *(f"-A INPUT -p tcp --dport {port} -j DROP" for port in (*DROPPED4, *ICMP)),
            *rejecting("INPUT", REJECTED4),
            f"-A INPUT -p tcp --dport {SWALLOWS_DATA} --tcp-flags PSH PSH -j DROP",
            f"-A INPUT -p tcp --dport {RESETS_DATA} --tcp-flags PSH PSH -j REJECT --reject-with tcp-reset",
            f"-A INPUT -p tcp --dport {REJECTS_DATA} --tcp-flags PSH PSH -j REJECT --reject-with icmp-host-prohibited",
            f"-A OUTPUT -p tcp --sport {SWALLOWS_ACKS} --tcp-flags ALL ACK -j DROP",
        )
        self.far.filter(
            "ip6tables",
            *(f"-A INPUT -p tcp --dport {port} -j DROP" for port in DROPPED6),
            *rejecting("INPUT", REJECTED6),
            f"-A INPUT -p tcp --dport {REJECTS_DATA} --tcp-flags PSH PSH -j REJECT --reject-with icmp6-adm-prohibited",
        )
        for port in (SWALLOWS_DATA, SWALLOWS_ACKS, LISTENS, RESETS_DATA, REJECTS_DATA):
            self.far.listen(FAR4, port)
        self.far.listen(FAR6, REJECTS_DATA)
        self._undo.enter_context(ICMPResponder(self.far, ICMP))

    def _set_up_plain(self) -> None:
        self.plain.ip("link set lo up")
        self.plain.sysctl(net__ipv6__conf__all__disable_ipv6=1)
        self.plain.etc(
            hosts=HOSTS,
            resolv_conf="nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
            nsswitch_conf="hosts: files dns\n",
        )

    def narrow(self) -> Namespace:
        """A new host with one ephemeral port. One per use: a port outlives its user, in TIME_WAIT."""
        host = self._host(f"narrow-{secrets.token_hex(2)}")
        host.ip(
            "link set lo up",
            # Without any IPv6 address ::1 would fail for another reason (EADDRNOTAVAIL, as on `plain`).
            "link add stub type veth peer name stub-end",
            "link set stub up",
            "link set stub-end up",
            "addr add fd99::9/64 dev stub nodad",
        )
        host.sysctl(
            net__ipv6__conf__lo__disable_ipv6=1,
            net__ipv4__ip_local_port_range=f"{NARROW_PORT} {NARROW_PORT}",
        )
        host.etc(hosts=HOSTS)
        host.listen("0.0.0.0", NARROW_LISTENS)
        return host


def rejecting(chain: str, ports: Mapping[int, str]) -> list[str]:
    return [f"-A {chain} -p tcp --dport {port} -j REJECT --reject-with {how}" for port, how in ports.items()]


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # another lab is in it, or has removed it already
        folder.rmdir()
