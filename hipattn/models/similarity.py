"""Which of many embeddings are most alike."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hipattn.arguments import integer

__all__ = ["Pair", "closest_pairs"]

ROWS = 512  # of the matrix of similarities, in memory at a time


class Pair(NamedTuple):
    """Two rows, the first being the earlier one, and the cosine of the angle between them."""

    cosine: float
    first: int
    second: int


def closest_pairs(embeddings: npt.NDArray[np.float32], count: int) -> list[Pair]:
    """Return the `count` pairs of rows that are most alike, or all if there are fewer, the closest first.

    Parameters
    ----------
    embeddings
        [rows, hidden], each of length 1.
    count
        0 or more.

    Raises
    ------
    ArgumentError
        `count` is no such number.
    """
    count = integer("count", count)
    best: list[Pair] = []
    for start in range(0, len(embeddings), ROWS):
        rows = embeddings[start : start + ROWS]
        cosines = rows @ embeddings[start:].T
        cosines[np.tril_indices(len(rows), m=cosines.shape[1])] = -np.inf  # each pair once, and no row with itself
        pairs = cosines.size - len(rows) * (len(rows) + 1) // 2
        taken = cosines.size - min(count, pairs)
        for place in np.argpartition(cosines, min(taken, cosines.size - 1), axis=None)[taken:]:
            first, second = divmod(int(place), cosines.shape[1])
            best.append(Pair(float(cosines[first, second]), start + first, start + second))
        best = sorted(best, key=lambda pair: (-pair.cosine, pair.first, pair.second))[:count]
    return best
