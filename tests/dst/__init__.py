"""Deterministic simulation: worlds made from a seed, in which everything goes wrong, and what has to hold in them.

    python -m tests.dst --seed 7                    one world, with its story
    python -m tests.dst --seeds 10000 --start 0     ten thousand of them, on two processes
    python -m tests.dst --mutations                 planted faults, and how many worlds it takes to find each

The package runs unchanged, on a simulated network in virtual time. A seed tells the same story, byte for byte, on
every Python and with any hash seed.
"""
