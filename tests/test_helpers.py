"""The tests' own tools, where they could let something pass."""

from __future__ import annotations

from itertools import combinations

from tests.helpers.pairwise import pairwise


def test_every_pair_occurs() -> None:
    options = {"a": range(5), "b": "xyz", "c": (False, True), "d": (0.5, None), "e": (False, True), "f": range(3)}
    rows = pairwise(options)
    for one, other in combinations(options, 2):
        pairs = {(row[one], row[other]) for row in rows}
        assert pairs == {(i, j) for i in options[one] for j in options[other]}
    assert len(rows) <= 18
