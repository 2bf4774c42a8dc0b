"""The most similar rows, against all pairs sorted."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from hipattn.errors import ArgumentError
from hipattn.models import similarity
from hipattn.models.similarity import closest_pairs


def unit(rows: int, seed: int = 0) -> np.ndarray:
    made = np.random.default_rng(seed).standard_normal((rows, 5)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 7, 8, 25])
@pytest.mark.parametrize("count", [0, 1, 4, 1000])
@pytest.mark.parametrize("block", [1, 4, 512])
def test_all_pairs_sorted(rows: int, count: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "ROWS", block)
    embeddings = unit(rows)
    pairs = sorted(combinations(range(rows), 2), key=lambda pair: -(embeddings[pair[0]] @ embeddings[pair[1]]))
    found = closest_pairs(embeddings, count)
    assert [(pair.first, pair.second) for pair in found] == pairs[:count]
    for cosine, first, second in found:
        assert cosine == pytest.approx(embeddings[first] @ embeddings[second], abs=1e-6)


def test_rows_that_are_equal() -> None:
    assert [pair[1:] for pair in closest_pairs(np.eye(1, 3, dtype=np.float32).repeat(3, axis=0), 3)] == [
        *((0, 1), (0, 2), (1, 2)),
    ]


def test_bad_count() -> None:
    with pytest.raises(ArgumentError, match="count is -1"):
        closest_pairs(unit(3), -1)
