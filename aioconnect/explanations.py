"""What each code means, for people: who said so, what usually is the matter, what to do.

One entry for each member of the code table, and for the few errnos beside it that a connection can meet. Sources:
connect(2), unix(7), tcp(7), getaddrinfo(3), Linux ``net/ipv4/icmp.c`` for who sends what by ICMP, RFC 8446 section 6
for alerts.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ("CERTIFICATE_PROBLEMS", "EXPLANATIONS", "Explanation")


class Explanation(NamedTuple):
    """One code in words."""

    meaning: str
    said_by: str
    causes: tuple[str, ...]
    advice: str


_KERNEL = "this host's kernel; nothing was sent"
_LOCAL_KERNEL = "this host's kernel"
_RESOLVER = "the resolver of this host (getaddrinfo)"
_ARGUMENTS = "the resolver of this host (getaddrinfo), about what it was asked"
_PEER_ALERT = "the peer, by a TLS alert"
_OWN = "aioconnect itself"
_OUR_TLS = "the TLS library on this side (OpenSSL)"

_ROUTES = Explanation(
    "no route to that network",
    "this host's kernel at once, or a router by ICMP",
    (
        "the network is not up yet: a container before its CNI is ready, a laptop asleep, an interface that is down",
        "the name has an IPv6 address and this host or pod has no IPv6 route; then another address decides",
        "a default route is missing, or a router on the way lost one",
    ),
    "retried by default; look at `ip route get ADDRESS` here",
)

_NETWORK: Mapping[str, Explanation] = MappingProxyType(
    {
        "ECONNREFUSED": Explanation(
            "nothing listens on that port, or a firewall says so",
            "the host itself, by a TCP reset, or a firewall, by ICMP port-unreachable",
            (
                "the service is starting, restarting or has crashed",
                "it listens on another port or only on 127.0.0.1; inside a container that is not the host's loopback",
                "a Kubernetes Service without ready endpoints: kube-proxy rejects for it",
                "a firewall with REJECT as its default answer",
                "a UNIX socket file that an earlier server left behind",
            ),
            "retried by default; if it lasts, look at the port (`ss -ltn` there) and at the service's log",
        ),
        "ETIMEDOUT": Explanation(
            "no answer in time",
            "nobody: a timer ran out, the error's `source` says whose (kernel, attempt or call)",
            (
                "packets are dropped without a word: a cloud security group, a NetworkPolicy, a blackhole route",
                "the host is gone, or its accept queue is full, and drops what comes",
                "DNS is slow (phase resolve), or the peer accepts and then says nothing (phase tls or prepare)",
                "on an established connection: what was sent was never acknowledged, or keepalive found nobody",
            ),
            "retried by default; a firewall looks just the same, so try from another host; keep attempt_timeout short, "
            "since the kernel alone would wait for two minutes",
        ),
        "EHOSTUNREACH": Explanation(
            "no way to that host, or a firewall on the way says so",
            "a router or firewall by ICMP; or this host's kernel after about 3 s, when nobody answers ARP",
            (
                "the host, VM or node is down, or is in another VLAN",
                "the address of a pod whose node has died",
                "a firewall that answers admin-prohibited or host-prohibited, as firewalld and RHEL do",
                "macOS 15 and later: the program was denied access to the local network",
            ),
            "retried by default; a firewall's answer will not heal, so look at the rules if the host is up",
        ),
        "EHOSTDOWN": Explanation(
            "the host is down",
            "on Linux a router, by ICMP host-unknown; on macOS and BSD this host, when nobody answers ARP",
            ("the machine is off or has another address",),
            "retried by default; see whether the host is up and the address still its own",
        ),
        "ENONET": Explanation(
            "the host is cut off from its network",
            "a router, by ICMP host-isolated",
            ("old or odd equipment on the way: hardly anything sends this any more",),
            "retried by default; look at who sends the ICMP (`tcpdump icmp`)",
        ),
        "ENOPROTOOPT@connect": Explanation(
            "the host says that it does not speak TCP",
            "the host or a firewall, by ICMP protocol-unreachable",
            ("a firewall rule that rejects with icmp-proto-unreachable",),
            "retried by default; look at the firewall",
        ),
        "ENOPROTOOPT@socket": Explanation(
            "this kernel does not know a socket option",
            _KERNEL,
            ("an option such as TCP_USER_TIMEOUT on a system, or in a sandbox such as gVisor, that lacks it",),
            "leave the option out of the endpoint",
        ),
        "ENETUNREACH": _ROUTES,
        "ENETDOWN": _ROUTES._replace(
            meaning="the network interface is down",
            said_by=_LOCAL_KERNEL,
            causes=(
                "the interface went down, at suspend or while a container's network was being set up",
                "local_addr belongs to an interface that is down",
            ),
            advice="retried by default; look at `ip link`",
        ),
        "ECONNRESET": Explanation(
            "the peer broke the connection off",
            "the host, or a proxy or load balancer in its place, by a TCP reset; inside a handshake also by a close",
            (
                "the service crashed, was killed, or closed with our bytes unread",
                "a load balancer without a healthy backend, or docker-proxy before its container, accepts and hangs up",
                "an idle limit of a load balancer, NAT or conntrack on the way",
                "TLS spoken to something that wants none, or a middlebox that dislikes the server name",
            ),
            "retried by default while connecting; on an established connection reconnect, and resend only what may be "
            "done twice",
        ),
        "ENETRESET": Explanation(
            "the network dropped the connection",
            _LOCAL_KERNEL,
            ("keepalive found the path gone (Windows)",),
            "retried by default; reconnect",
        ),
        "EPIPE": Explanation(
            "written after the peer had closed",
            _LOCAL_KERNEL,
            (
                "the peer closed an idle connection, and this side found out by writing",
                "the service was restarted",
            ),
            "reconnect; read until the end first if the peer may have said why",
        ),
        "ENOTCONN": Explanation(
            "the socket is not connected, or not any more",
            _LOCAL_KERNEL,
            (
                "the peer's reset came between two calls (macOS)",
                "a socket was handed over before it was connected",
            ),
            "reconnect",
        ),
        "ECONNABORTED": Explanation(
            "this host gave the connection up",
            _LOCAL_KERNEL,
            (
                "somebody destroyed the socket: `ss -K`, or Cilium, when a backend goes away",
                "Windows: retransmissions ran out, or a VPN was switched on or off",
            ),
            "retried by default; reconnect",
        ),
        "ECANCELED": Explanation(
            "the operation was called off below the program",
            "the event loop or the kernel",
            ("the socket was closed while it was being connected",),
            "retried by default; if it lasts, somebody else closes this socket",
        ),
        "EAGAIN@unix": Explanation(
            "the backlog of the UNIX socket is full",
            _LOCAL_KERNEL,
            (
                "the server does not accept as fast as clients come",
                "the server is blocked or stopped",
                "a small listen()",
            ),
            "retried by default; give the server a larger backlog, or connect less often",
        ),
        "EAGAIN@inet": Explanation(
            "this host could not begin to connect just now",
            _KERNEL,
            ("a shortage in the routing or neighbour table, or a firewall hook of this host",),
            "retried by default; look at the kernel log",
        ),
        "EINVAL": Explanation(
            "the kernel calls an argument invalid",
            _KERNEL,
            (
                "a blackhole route: `ip route` shows it",
                "a link-local IPv6 address without its interface, fe80::1%eth0",
                "macOS: a socket that the peer had already reset",
                "Windows: a placeholder; the error's winerror says what it was",
            ),
            "not retried by default; look at the address and the routes",
        ),
        "EPROTO": Explanation(
            "a protocol error on the way",
            "a router, by ICMP parameter-problem, or a virtual network",
            ("odd equipment, vsock or gVisor",),
            "not retried by default; look at who sends the ICMP",
        ),
        "EOPNOTSUPP": Explanation(
            "the operation is not supported on that socket",
            "this host's kernel; from connect also a router, by ICMP source-route-failed",
            ("a socket of another type than a stream",),
            "not retried by default",
        ),
        "EPROTOTYPE": Explanation(
            "another type of socket is at that path",
            _LOCAL_KERNEL,
            (
                "the path is that of a datagram socket, such as /dev/log",
                "macOS: written while the connection was torn down",
            ),
            "not retried by default; look at `ss -xl`",
        ),
        "EISCONN": Explanation(
            "the socket is connected already",
            _LOCAL_KERNEL,
            ("it was connected twice",),
            "a mistake in the program",
        ),
        "EALREADY": Explanation(
            "the socket is being connected already",
            _LOCAL_KERNEL,
            ("it was connected twice",),
            "a mistake in the program",
        ),
        "EINPROGRESS": Explanation(
            "the connect has only begun",
            _LOCAL_KERNEL,
            ("a non-blocking socket was connected by something that expected a blocking one",),
            "a mistake in the program: wait until the socket is writable",
        ),
    }
)

_SHORTAGES: Mapping[str, Explanation] = MappingProxyType(
    {
        "EMFILE": Explanation(
            "this process has no file descriptor left",
            _KERNEL,
            (
                "connections or files are opened and never closed",
                "a low limit: 1024 is the default in many containers and systemd units",
                "too many connects at once",
            ),
            "retried by default; count them (`ls /proc/PID/fd | wc -l`), raise LimitNOFILE, or set max_connecting",
        ),
        "ENFILE": Explanation(
            "this host has no file descriptor left",
            _KERNEL,
            ("some process on the host leaks them", "fs.file-max is low"),
            "retried by default; look for the process that holds most (`lsof`)",
        ),
        "ENOBUFS": Explanation(
            "the kernel has no buffer or queue space left",
            _KERNEL,
            (
                "memory pressure",
                "a full neighbour table in a large cluster",
                "Windows: ephemeral ports ran out",
            ),
            "retried by default; connect less at once, look at the kernel log",
        ),
        "ENOMEM": Explanation(
            "the kernel has no memory left for a socket",
            _KERNEL,
            ("the memory limit of the container", "a full table of an eBPF network such as Cilium's"),
            "retried by default; look at the container's limit and the kernel log",
        ),
        "THREADS_EXHAUSTED": Explanation(
            "no thread could be started to resolve the name",
            _LOCAL_KERNEL,
            (
                "the pids limit of the container or systemd unit (TasksMax)",
                "the process has started too many threads",
            ),
            "retried by default; raise the pids limit",
        ),
        "EADDRNOTAVAIL@inet": Explanation(
            "no ephemeral port is left towards that address",
            _KERNEL,
            (
                "many short connections to one address: closed ones stay in TIME_WAIT for a minute",
                "a proxy or sidecar through which everything goes",
            ),
            "retried by default; keep connections open for longer, or widen net.ipv4.ip_local_port_range",
        ),
        "EADDRNOTAVAIL@inet6": Explanation(
            "this host has no IPv6 address to connect from",
            _KERNEL,
            ("IPv6 is switched off (net.ipv6.conf.all.disable_ipv6=1), and the name has an IPv6 address",),
            "another address of the name decides if there is one; otherwise set family to inet",
        ),
        "EADDRNOTAVAIL@bind": Explanation(
            "local_addr is not an address of this host",
            _KERNEL,
            (
                "the pod or host has a new address",
                "a virtual address that has moved to another host",
                "a typing error",
            ),
            "not retried by default; see `ip addr`",
        ),
        "EADDRINUSE@port": Explanation(
            "the local port is taken",
            _KERNEL,
            ("another process listens there (`ss -ltnp`)", "the last instance has not gone yet"),
            "not retried by default; add EADDRINUSE to retry_on where the port will be freed, as at a restart",
        ),
        "EADDRINUSE@ephemeral": Explanation(
            "every ephemeral port of that local address is taken",
            _KERNEL,
            ("many connections from one local_addr with port 0",),
            "retried by default; leave local_addr out, or widen net.ipv4.ip_local_port_range",
        ),
    }
)

_NAMES: Mapping[str, Explanation] = MappingProxyType(
    {
        "EAI_NONAME": Explanation(
            "no such name",
            "the DNS (NXDOMAIN), or /etc/hosts and the search list of this host",
            (
                "a typing error, or a name that only resolves in another namespace, network or VPN",
                "a Kubernetes Service or a record that is not there yet; the answer is then cached for a while",
                "a headless Service without a ready pod",
                "a name with addresses of one family, asked for in the other",
            ),
            "not retried by default, since a typing error never heals; add STARTING to retry_on where a deployment may "
            "still bring it",
        ),
        "EAI_NODATA": Explanation(
            "the name exists and has no address",
            "the DNS",
            ("only records of another kind (MX, TXT)", "a headless Kubernetes Service without a ready pod"),
            "not retried by default; add STARTING to retry_on where a deployment may still bring it",
        ),
        "EAI_AGAIN": Explanation(
            "no name server gave a useful answer",
            f"{_RESOLVER}: SERVFAIL, REFUSED, no reply, or no name server at all",
            (
                "the name server is down, overloaded (CoreDNS) or out of reach",
                "the network of the container is not up yet, or /etc/resolv.conf is empty",
                "a NetworkPolicy that forgets UDP port 53",
            ),
            "retried by default; try `getent ahosts NAME` here, and look at /etc/resolv.conf",
        ),
        "EAI_FAIL": Explanation(
            "the name server gave an answer that ends the matter",
            _RESOLVER,
            ("a broken zone or delegation", "DNSSEC validation failed"),
            "not retried by default; ask with `dig NAME`",
        ),
        "EAI_MEMORY": Explanation(
            "the resolver had no memory",
            _RESOLVER,
            ("the memory limit of the container",),
            "retried by default",
        ),
        "EAI_SERVICE": Explanation(
            "no such service name",
            _ARGUMENTS,
            ("a port given by a name that /etc/services lacks",),
            "give the number",
        ),
        "EAI_FAMILY": Explanation(
            "that address family is not supported",
            _ARGUMENTS,
            ("a wrong family",),
            "leave family to its default",
        ),
        "EAI_ADDRFAMILY": Explanation(
            "the host has no address in that family",
            _ARGUMENTS,
            ("an IPv4 address with family inet6, or the other way round",),
            "leave family to its default",
        ),
        "EAI_SOCKTYPE": Explanation(
            "that socket type does not go with the rest", _ARGUMENTS, ("a wrong proto",), "leave proto at 0"
        ),
        "EAI_BADFLAGS": Explanation("invalid flags", _ARGUMENTS, ("a wrong value of flags",), "leave flags at 0"),
        "EAI_BADHINTS": Explanation("invalid hints", _ARGUMENTS, ("a wrong family, proto or flags",), "leave them out"),
        "EAI_PROTOCOL": Explanation("unknown protocol", _ARGUMENTS, ("a wrong proto",), "leave proto at 0"),
        "EAI_OVERFLOW": Explanation("an answer is too long", _RESOLVER, ("an absurdly long name",), "look at the name"),
        "EAI_SYSTEM": Explanation(
            "a system call of the resolver failed",
            _RESOLVER,
            ("a shortage on this host, such as of file descriptors",),
            "Python raises the errno behind it instead, so this code is rarely met",
        ),
    }
)

_NO_SUCH_SOCKET = Explanation(
    "this host or sandbox does not offer that kind of socket",
    _KERNEL,
    ("a wrong proto or family", "a protocol, such as MPTCP, that is switched off"),
    "not retried by default; leave proto and family at their defaults",
)

_PLACES: Mapping[str, Explanation] = MappingProxyType(
    {
        "ENOENT": Explanation(
            "nothing is at that socket path",
            _KERNEL,
            (
                "the server has not started yet; a sidecar starts beside its peer",
                "the volume with the socket is not mounted here, or mounted elsewhere",
            ),
            "not retried by default; add STARTING to retry_on where the server may still come",
        ),
        "ENOTDIR": Explanation(
            "part of the socket path is no directory",
            _KERNEL,
            ("a wrong path",),
            "not retried by default; see `namei -l`",
        ),
        "ELOOP": Explanation(
            "the socket path goes round in symbolic links",
            _KERNEL,
            ("a link that leads to itself",),
            "not retried by default; see `namei -l`",
        ),
        "ENAMETOOLONG": Explanation(
            "the socket path is too long",
            "this host's kernel, or Python before it asks",
            ("more than 107 bytes on Linux, 103 on macOS: temporary directories are long",),
            "not retried by default; use a shorter path or a relative one",
        ),
        "EACCES@inet": Explanation(
            "a rule on the way forbids it",
            "a firewall or router by ICMPv6 (administratively prohibited), or this host's own prohibit route",
            (
                "a firewall that rejects IPv6; over IPv4 the same rule gives EHOSTUNREACH",
                "`ip route` has a prohibit entry",
            ),
            "not retried by default; add DENIED to retry_on where a roll-out may lift the rule",
        ),
        "EACCES@local": Explanation(
            "this process may not do that here",
            _KERNEL,
            (
                "the mode or owner of the socket file, or of a directory above it",
                "a local port below 1024",
                "SELinux, AppArmor, Landlock or another sandbox; on Windows a reserved port range",
            ),
            "not retried by default; look at `namei -l PATH`, the user, and the audit log",
        ),
        "EPERM@inet": Explanation(
            "an eBPF program or a sandbox forbids it",
            "this host's kernel, on behalf of such a program",
            (
                "Cilium: a Service without a backend, which heals",
                "a seccomp profile or a network policy of this host",
            ),
            "not retried by default; add DENIED to retry_on where a Service may still get its backends",
        ),
        "EPERM@local": Explanation(
            "this process may not do that here",
            _KERNEL,
            ("a seccomp profile or another sandbox",),
            "not retried by default; look at the security settings of the container",
        ),
        "EAFNOSUPPORT": Explanation(
            "this host or sandbox does not offer that address family",
            _KERNEL,
            (
                "IPv6 is switched off in the kernel",
                "RestrictAddressFamilies= of a systemd unit, seccomp, gVisor",
            ),
            "another address of the name decides if there is one; otherwise set family, or allow it",
        ),
        "EBADF": Explanation(
            "the socket was closed while in use",
            _LOCAL_KERNEL,
            (
                "somebody else in this process closed the descriptor",
                "a socket that two owners believe to be theirs",
            ),
            "a mistake in the program; uvloop before 0.23 can cause it",
        ),
        **dict.fromkeys(("EPFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT"), _NO_SUCH_SOCKET),
        "ENOTSOCK": Explanation(
            "the descriptor is no socket any more",
            _LOCAL_KERNEL,
            ("it was closed, and its number given to a file",),
            "a mistake in the program; uvloop before 0.23 can cause it",
        ),
        "ESHUTDOWN": Explanation(
            "written after this side had closed for writing",
            _LOCAL_KERNEL,
            ("write after write_eof",),
            "reconnect",
        ),
    }
)
_OURS: Mapping[str, Explanation] = MappingProxyType(
    {
        "NOT_READY": Explanation(
            "connected, and the service is not serving yet",
            "the prepare hook, which raised NotReady",
            ("the service is loading or recovering", "the server is a replica where a primary is wanted"),
            "not retried by default; add STARTING to retry_on to wait for it",
        ),
        "CIRCUIT_OPEN": Explanation(
            "refused without dialing",
            f"{_OWN}: the last dials to that endpoint failed",
            ("whatever the error's cause says",),
            "look at the cause; retry_in says when the next dial is due",
        ),
        "POOL_TIMEOUT": Explanation(
            "no connection of the pool became free in time",
            _OWN,
            ("connections are kept for too long, or lost", "the pool is too small", "the peer is slow"),
            "look at how long connections are held before making the pool larger",
        ),
        "POOL_FULL": Explanation(
            "too many callers wait for the pool already",
            _OWN,
            ("more load than the peer can take",),
            "refuse work earlier, or let more callers wait",
        ),
        "EOF": Explanation(
            "the peer closed in the middle of a message",
            "the host, by an orderly close (FIN)",
            (
                "the service was stopped or restarted",
                "it did not like what it was sent",
                "an idle limit on the way",
            ),
            "reconnect; resend only what may be done twice",
        ),
        "ALREADY_CLOSED": Explanation(
            "used after this side had closed it",
            _OWN,
            ("a task that still uses a connection which another one closed",),
            "a mistake in the program, or a race at shutdown",
        ),
        "LOST": Explanation(
            "the established connection is dead",
            "this host's kernel or the event loop",
            ("any errno that is not one of the usual ones; the error keeps its number and words",),
            "reconnect; resend only what may be done twice",
        ),
        "UNKNOWN": Explanation(
            "an error without a number",
            "whoever raised it; the error's words are all there is",
            ("a library that raises a connection error of its own",),
            "not retried by default; look at the exception it came from",
        ),
    }
)

_NOT_TLS = Explanation(
    "the peer does not speak TLS on that port",
    f"{_OUR_TLS}: what came is no TLS record",
    (
        "the plain port instead of the TLS one (80 for 443, 5432 before the STARTTLS-like request)",
        "TLS is not switched on in the server, or is ended by a proxy before it",
        "a proxy that answers in plain HTTP",
    ),
    "not retried by default; look at the port, or drop tls:// if the peer wants none",
)

_TLS: Mapping[str, Explanation] = MappingProxyType(
    {
        "CERTIFICATE_VERIFY_FAILED": Explanation(
            "the certificate does not prove who the peer is",
            f"{_OUR_TLS}; verify_message says why",
            (
                "it has expired, or the clock of this host is wrong",
                "it is for another name: the host is dialed by an alias or by its address (server_hostname=...)",
                "its authority is not known here: a private CA (ca_file=...), or an image without ca-certificates",
                "the server does not send its intermediate certificates",
                "somebody is in between: a corporate proxy, or an attacker",
            ),
            "not retried by default; no reason to switch verification off: `aioconnect probe tls://HOST:PORT` shows it",
        ),
        **dict.fromkeys(
            ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"),
            _NOT_TLS,
        ),
        "HTTPS_PROXY_REQUEST": _NOT_TLS._replace(causes=("a request to an HTTP proxy arrived where TLS was due",)),
        "TLSV1_ALERT_INTERNAL_ERROR": Explanation(
            "the peer failed while it shook hands",
            f"{_PEER_ALERT} (80, internal_error)",
            ("a fault or overload of the server", "a CDN or proxy that does not know the server name"),
            "retried by default; if it lasts, look at server_hostname and the server's log",
        ),
        "TLSV1_ALERT_USER_CANCELLED": Explanation(
            "the peer called the handshake off",
            f"{_PEER_ALERT} (90, user_canceled)",
            ("the server is shutting down",),
            "retried by default",
        ),
        "UNEXPECTED_EOF_WHILE_READING": Explanation(
            "the peer closed without saying goodbye in TLS",
            f"{_OUR_TLS}: a close without close_notify",
            ("the server crashed or was killed", "a load balancer without a healthy backend"),
            "retried by default",
        ),
        "ZERO_RETURN": Explanation(
            "the peer said goodbye instead of shaking hands",
            "the peer, by close_notify",
            ("the server or a load balancer is shutting down",),
            "retried by default",
        ),
        "TLS_FAILURE": Explanation(
            "the TLS handshake failed",
            "one of the two TLS libraries; the error's reason and words say more",
            ("the two sides have no version, cipher or certificate in common",),
            "not retried by default; try `openssl s_client -connect HOST:PORT`",
        ),
    }
)

_CLIENT_CERTIFICATE = "the server wants a client certificate, or another one than it got (cert_file=..., key_file=...)"
_NO_COMMON = "the two sides have no version, cipher or curve in common: one of them is old, or strict"
_BROKEN_PEER = "a fault in one of the TLS libraries, or a middlebox that changes what it forwards"
_FOR_THE_NAME = "the server does not serve the name it was asked for; look at server_hostname and the host"

# Alerts are one-liners: number in RFC 8446 section 6, meaning, usual cause.
_ALERTS = (
    ("SSLV3_ALERT_UNEXPECTED_MESSAGE", 10, "the peer did not expect that message", _BROKEN_PEER),
    ("SSLV3_ALERT_BAD_RECORD_MAC", 20, "the peer could not authenticate a record", _BROKEN_PEER),
    (
        "SSLV3_ALERT_HANDSHAKE_FAILURE",
        40,
        "the peer found no acceptable terms",
        f"{_NO_COMMON}; or {_CLIENT_CERTIFICATE}",
    ),
    ("SSLV3_ALERT_NO_CERTIFICATE", 41, "the peer got no certificate", _CLIENT_CERTIFICATE),
    ("SSLV3_ALERT_BAD_CERTIFICATE", 42, "the peer calls our certificate bad", _CLIENT_CERTIFICATE),
    (
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        43,
        "the peer does not take that kind of certificate",
        _CLIENT_CERTIFICATE,
    ),
    ("SSLV3_ALERT_CERTIFICATE_REVOKED", 44, "our certificate has been revoked", "it has to be issued anew"),
    (
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        45,
        "our certificate has expired",
        "it was not renewed, or a clock is wrong",
    ),
    ("SSLV3_ALERT_CERTIFICATE_UNKNOWN", 46, "the peer does not accept our certificate", _CLIENT_CERTIFICATE),
    ("SSLV3_ALERT_ILLEGAL_PARAMETER", 47, "the peer calls a value illegal", _BROKEN_PEER),
    (
        "TLSV1_ALERT_UNKNOWN_CA",
        48,
        "the peer does not know the authority of our certificate",
        "the client certificate is from another CA, or its intermediate certificates are not in cert_file",
    ),
    (
        "TLSV1_ALERT_ACCESS_DENIED",
        49,
        "the certificate is good, and may not do that",
        "the server's access rules",
    ),
    ("TLSV1_ALERT_DECODE_ERROR", 50, "the peer could not read a message", _BROKEN_PEER),
    (
        "TLSV1_ALERT_DECRYPT_ERROR",
        51,
        "a signature did not verify at the peer",
        "key and certificate do not fit",
    ),
    ("TLSV1_ALERT_PROTOCOL_VERSION", 70, "the peer does not speak our TLS versions", _NO_COMMON),
    ("TLSV1_ALERT_INSUFFICIENT_SECURITY", 71, "the peer wants stronger ciphers", _NO_COMMON),
    (
        "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
        86,
        "the peer refuses a fallback to an older version",
        _BROKEN_PEER,
    ),
    ("TLSV1_ALERT_NO_RENEGOTIATION", 100, "the peer refuses to renegotiate", _BROKEN_PEER),
    ("TLSV13_ALERT_MISSING_EXTENSION", 109, "the peer misses an extension", _NO_COMMON),
    ("TLSV1_UNSUPPORTED_EXTENSION", 110, "the peer got an extension it had not asked for", _BROKEN_PEER),
    ("TLSV1_CERTIFICATE_UNOBTAINABLE", 111, "the peer could not fetch our certificate", _CLIENT_CERTIFICATE),
    ("TLSV1_UNRECOGNIZED_NAME", 112, "the peer does not know the server name", _FOR_THE_NAME),
    (
        "TLSV1_BAD_CERTIFICATE_STATUS_RESPONSE",
        113,
        "the peer did not like an OCSP answer",
        "stapling is broken",
    ),
    (
        "TLSV1_BAD_CERTIFICATE_HASH_VALUE",
        114,
        "a certificate's hash was wrong at the peer",
        _CLIENT_CERTIFICATE,
    ),
    (
        "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
        115,
        "the peer does not know that key identity",
        "a wrong pre-shared key",
    ),
    ("TLSV13_ALERT_CERTIFICATE_REQUIRED", 116, "the peer wants a client certificate", _CLIENT_CERTIFICATE),
    (
        "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        120,
        "the peer speaks none of the protocols offered",
        "alpn=... names protocols that the server does not have",
    ),
)

_OUR_TLS_REASONS = (
    ("UNEXPECTED_MESSAGE", "the peer sent a message out of turn", _BROKEN_PEER),
    (
        "NO_PROTOCOLS_AVAILABLE",
        "no TLS version is left to offer",
        "minimum_version, or the system's policy, is strict",
    ),
    (
        "NO_CIPHERS_AVAILABLE",
        "no cipher is left to offer",
        "the context, or the system's policy, is too strict",
    ),
    (
        "UNSUPPORTED_PROTOCOL",
        "the peer's TLS version is too old",
        "the server speaks less than minimum_version",
    ),
    ("VERSION_TOO_LOW", "the peer's TLS version is too old", "the server speaks less than minimum_version"),
    (
        "DH_KEY_TOO_SMALL",
        "the peer's Diffie-Hellman key is too small",
        "an old server, or its old configuration",
    ),
    (
        "BAD_SIGNATURE",
        "a signature of the peer did not verify",
        "key and certificate of the server do not fit",
    ),
    ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", "a record of the peer could not be authenticated", _BROKEN_PEER),
    (
        "APPLICATION_DATA_AFTER_CLOSE_NOTIFY",
        "the peer went on after its goodbye",
        "bytes were unread at the close",
    ),
)

_TLS_REASONS: Mapping[str, Explanation] = MappingProxyType(
    {
        code: Explanation(
            meaning,
            f"{_PEER_ALERT} ({number}, {(code.partition('ALERT_')[2] or code.partition('_')[2]).lower()})",
            (cause,),
            "not retried by default; the server's log usually says more",
        )
        for code, number, meaning, cause in _ALERTS
    }
    | {
        code: Explanation(
            meaning, _OUR_TLS, (cause,), "not retried by default; try `openssl s_client -connect HOST:PORT`"
        )
        for code, meaning, cause in _OUR_TLS_REASONS
    }
)

EXPLANATIONS: Mapping[str, Explanation] = MappingProxyType(
    {**_NETWORK, **_SHORTAGES, **_NAMES, **_PLACES, **_OURS, **_TLS, **_TLS_REASONS}
)
"""By member of the code table: ``"ECONNREFUSED"``, ``"EACCES@inet"``."""

CERTIFICATE_PROBLEMS: Mapping[str, str] = MappingProxyType(
    {
        "has expired": "it has expired, or the clock of this host is wrong",
        "not yet valid": "it is not valid yet: the clock of this host or of the issuer is wrong",
        "self-signed certificate in certificate chain": "its root is not known here: a private CA, or a proxy in "
        "between; give the CA as ca_file",
        "self-signed certificate": "the server made it itself; give it as ca_file if you trust it",
        "unable to get local issuer certificate": "its authority is not known here, or the server does not send its "
        "intermediate certificates; give the CA as ca_file",
        "unable to verify the first certificate": "the server does not send its intermediate certificates",
        "hostname mismatch": "it is for another name; dial that one, or give it as server_hostname",
        "ip address mismatch": "it is not for that address; dial the name, or give it as server_hostname",
        "revoked": "it has been revoked",
        "too weak": "its key or its digest is too weak for this host's policy",
        "too small": "its key is too small for this host's policy",
    }
)
"""What OpenSSL's words about a certificate mean; the first that occurs in them, in lower case, holds."""
