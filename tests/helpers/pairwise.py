"""Few combinations of many options, among which every pair of choices occurs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

__all__ = ["pairwise"]

Choice = tuple[int, int]  # the option's place, the choice's place


def pairwise(options: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return combinations in which each two choices of two different options stand together at least once.

    Each starts from a pair that is still missing, and takes for the other options the choice that brings the most
    missing pairs. The result depends on the arguments only.
    """
    choices = [[(place, i) for i in range(len(values))] for place, values in enumerate(options.values())]
    missing = {pair for one, other in combinations(choices, 2) for pair in product(one, other)}
    rows = []
    while missing:
        row = dict(min(missing))
        for place, candidates in enumerate(choices):
            if place not in row:
                taken = list(row.items())
                # Among equals another one each time, so that no choice is the rule.
                turn = len(rows) % len(candidates)
                brings = [
                    (sum(tuple(sorted((choice, at))) in missing for at in taken), choice)
                    for choice in candidates[turn:] + candidates[:turn]
                ]
                row[place] = max(brings, key=lambda pair: pair[0])[1][1]
        missing -= set(combinations(sorted(row.items()), 2))
        rows.append({name: values[row[place]] for place, (name, values) in enumerate(options.items())})
    return rows
