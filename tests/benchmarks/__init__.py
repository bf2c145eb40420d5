"""What aioconnect costs, beside what it replaces: `python -m tests.benchmarks`. Not collected by pytest.

The unit is CPU time of this process, user and system, not time on the clock: that of a loopback connect says more
about what else the machine is doing. Every number stands beside a peer measured in the same run, in alternating
batches, and what counts is their ratio. The details of the method are at `measure.alternate`.
"""
