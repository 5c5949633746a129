"""The subsets of {0, …, items − 1} of certain sizes: counted, listed, found by place, in order of a sum.

They are listed size by size, as the sizes are given, those of one size in lexicographic order.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from itertools import count as counter


def count(items: int, sizes: Sequence[int]) -> int:
    """How many there are; exact."""
    return sum(math.comb(items, size) for size in sizes)


def listed(items: int, sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """All of them, one after the other."""
    return (each for size in sizes for each in combinations(range(items), size))


def at(place: int, items: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """The one that `listed` comes to after `place` others, but at once: places may have any length.

    Raises `IndexError` for a place that is not below `count`.
    """
    for size in sizes:
        ways = math.comb(items, size)
        if place < ways:
            return _of_size(place, items, size, ways)
        place -= ways
    raise IndexError(place)


def _of_size(place: int, items: int, size: int, ways: int) -> tuple[int, ...]:
    """The subset at a place among the `ways` of one size: long integers times short ones."""
    chosen: list[int] = []
    for position in range(items):
        # Of the ways to complete what is chosen from the positions left, those that take this one.
        taking = ways * (size - len(chosen)) // (items - position)
        if place < taking:
            chosen.append(position)
            ways = taking
        else:
            place, ways = place - taking, ways - taking
    return tuple(chosen)


def drawn(seed: int, total: int, number: int) -> list[int]:
    """`number` different integers from 0 to `total` − 1, each set equally likely, ascending.

    All of them if there are no more. `total` may have any number of digits. Equal seeds give equal
    integers.
    """
    generator = random.Random(seed)
    kept: set[int] = set()
    # Floyd's algorithm: each last integer is replaced by one drawn up to it, unless that is taken.
    for last in range(max(0, total - number), total):
        each = generator.randrange(last + 1)
        kept.add(last if each in kept else each)
    return sorted(kept)


def by_sum(weights: Sequence[float], sizes: Sequence[int]) -> Iterator[tuple[float, tuple[int, ...]]]:
    """The subsets of these sizes in increasing order of their weights' sums: (sum, positions).

    The weights are ascending, of any sign. From the first subset of a size all others come by moving
    its last element up, then the one before, and so on: each in one way, and no sum is below the one
    it came from. A heap of at most one entry more than there were subsets and sizes.
    """
    # The ticket decides between equal sums, so that no tuples are compared.
    ticket = counter()
    heap = [(sum(weights[:size]), next(ticket), tuple(range(size)), size - 1) for size in sizes]
    heapq.heapify(heap)
    while heap:
        total, _, places, moving = heapq.heappop(heap)
        yield total, places
        for element in (moving, moving - 1):
            limit = (*places, len(weights))[element + 1]
            if element < 0 or (place := places[element] + 1) >= limit:
                continue
            moved = (*places[:element], place, *places[element + 1 :])
            heapq.heappush(heap, (total + weights[place] - weights[place - 1], next(ticket), moved, element))
