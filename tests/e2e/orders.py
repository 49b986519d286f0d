"""Few orders of a set in which every few of its members come in every order: sequence covering arrays.

Source: Kuhn, Higdon, Lawrence, Kacker, Lei, "Combinatorial methods for event sequence testing" (2012).
"""

from collections.abc import Sequence
from itertools import combinations, permutations


def covering(parts: Sequence[str], *, strength: int) -> list[tuple[str, ...]]:
    """Orders of all parts, so that any `strength` of them come in each of their orders at least once. Greedy: the
    order that covers most of what is left is next, and its reverse after it.
    """
    left = set(permutations(parts, strength))
    candidates = list(permutations(parts))
    chosen: list[tuple[str, ...]] = []
    while left:
        best = max(candidates, key=lambda order: sum(part in left for part in combinations(order, strength)))
        for order in (best, best[::-1]):
            covered = left.intersection(combinations(order, strength))
            if covered:
                chosen.append(order)
                left -= covered
    return chosen
