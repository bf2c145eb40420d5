"""What a policy does to a server that comes back: fleets of shipped connectors, in virtual time.

    report = aioconnect.simulate(clients=5000, outage="30s", accept_rate=200, compare="full,equal,none")
    print(report)                               # a table, and the attempts of each second as bars
    report["full"].peak_per_second, report["full"].until(0.99)
    report.plot("herd.svg")                     # with the extra `plot`

What is real, and what is a model. The policy, the retry engine, the circuit breaker, the retry budget and the dialer
are those of the package, unchanged; each client has a `Connector` of its own, as a process of its own would. The clock,
the network and the server are models: one server, which takes connections from one queue at a fixed rate; a round trip
that always takes the same time; no loss but that of a full queue; clients that need no processor. A connect is
answered when the server accepts it, as a client that waits for a greeting would see it.

With several ``callers`` in a client, the circuit breaker is at work: they share its one probe, and what it has met. So
a client with a hundred callers knocks as often as one with a single caller, until the server is back.

The same seed gives the same result, to the last digit, on every Python; ``digest`` of an outcome says so. What draws
from the module ``random`` by itself, as tenacity's own jittered waits do, is not seeded: a `Backoff` is.

A fleet of 100,000 takes some 18 kB a client, and one core for two minutes or so. A larger one is simulated in parts,
one after the other or several at once: ``simulate(1_000_000, "20s", 100_000, backlog=64_000, parts=20, processes=2)``
or ``--parts 20 --processes 2``. Each part has its part of the clients, of the accept rate and of the backlog, and a
seed of its own; what they count adds up, so shares and peaks are those of all clients, exactly. As they share no queue,
the figures differ from those of a whole by a per cent or so.

Beware of a queue that takes longer than clients wait, ``(backlog + 1) / accept_rate > connect_timeout``: then the
server accepts those that have left, ``wasted``, and no backoff helps. A report says so.
"""

from aioconnect.simulation.contention import Contention, contend
from aioconnect.simulation.outcome import Outcome
from aioconnect.simulation.report import Report
from aioconnect.simulation.running import Progress, simulate
from aioconnect.simulation.scenario import Scenario
from aioconnect.simulation.waits import CommonWait

__all__ = ("simulate", "Report", "Outcome", "Scenario", "Progress", "CommonWait", "contend", "Contention")
