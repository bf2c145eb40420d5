"""Orders drawn by chance, whose source is passed in: ``uniform(low, high)``, as ``random.uniform`` is one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import TypeVar

__all__ = ("Uniform", "shuffled", "weighted")

T = TypeVar("T")

Uniform = Callable[[float, float], float]


def shuffled(items: Iterable[T], uniform: Uniform) -> list[T]:
    """The items in any order.

    >>> shuffled("abc", uniform=lambda low, high: low)
    ['a', 'b', 'c']
    """
    return sorted(items, key=lambda _: uniform(0, 1))


def weighted(items: Iterable[T], weight: Callable[[T], int], uniform: Uniform) -> list[T]:
    """The items, each in front of those left with a chance by its weight: the algorithm of RFC 2782.

    Those of weight 0 have a small chance beside others, and an equal one among themselves.

    >>> weighted([3, 0, 1], weight=int, uniform=lambda low, high: high)
    [1, 3, 0]
    """
    # "In any order, except that all those with weight 0 are placed at the beginning of the list".
    left = sorted(shuffled(items, uniform), key=lambda item: weight(item) > 0)
    chosen: list[T] = []
    while left:
        sums = list(accumulate(map(weight, left)))
        # A whole number "between 0 and the sum computed (inclusive)", and the first whose running sum reaches it. The 0
        # is for a weight of 0; without one it would only favour whoever comes first.
        least = min(sums[0], 1)
        draw = min(int(uniform(least, sums[-1] + 1)), sums[-1])
        chosen.append(left.pop(bisect_left(sums, draw)))
    return chosen
