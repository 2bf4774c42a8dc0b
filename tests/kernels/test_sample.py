"""sample against NumPy: the rule of what is kept, Philox, and how often each token is drawn."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import DeviceTensor, Stream
from hipattn.errors import ArgumentError
from hipattn.kernels import sample
from tests.helpers.padded import Padded
from tests.helpers.tolerance import DTYPES

FLOAT32, FLOAT16, BFLOAT16 = DTYPES
LENGTHS = (1, 2, 31, 64, 65, 257, 1000, 4097, 20000)
GUARD = -7


def chosen(stream: Stream, logits: NDArray | DeviceTensor, *, indices: NDArray | None = None, **options: object):
    """Return the tokens, after checking the memory around them."""
    tensor = logits if isinstance(logits, DeviceTensor) else DeviceTensor.from_numpy(logits, stream=stream)
    out = DeviceTensor.from_numpy(np.full(tensor.shape[0] + 2, GUARD, np.int32), stream=stream)
    if indices is not None:
        options["sequences"] = DeviceTensor.from_numpy(indices.astype(np.int32), stream=stream)
    sample.launch(tensor, out[1:-1], stream=stream, **options)
    found = out.numpy()
    assert found[0] == found[-1] == GUARD
    return found[1:-1]


def kept(logits: NDArray, temperature: float, top_k: int, top_p: float) -> NDArray[np.float64]:
    """Return a row's probabilities in float64, 0 for what is not kept."""
    x = logits.astype(np.float64)
    weights = np.exp((x - x.max()) / temperature)
    if top_k:
        weights[x < np.sort(x)[-min(top_k, x.size)]] = 0
    if top_p < 1:
        values, places = np.unique(x, return_inverse=True)
        each = np.bincount(places, weights)
        above = each[::-1].cumsum()[::-1] - each
        weights[x < values[above < top_p * weights.sum()].min()] = 0
    return weights / weights.sum()


def philox(seed: int, step: int, sequence: int) -> int:
    """Return the 64 random bits, by Python's integers."""
    low = 2**32 - 1
    counter = [step & low, step >> 32, sequence & low, sequence >> 32]
    keys = [seed & low, seed >> 32]
    for _ in range(10):
        left, right = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [right >> 32 ^ counter[1] ^ keys[0], right & low, left >> 32 ^ counter[3] ^ keys[1], left & low]
        keys = [(keys[0] + 0x9E3779B9) & low, (keys[1] + 0xBB67AE85) & low]
    return counter[1] << 32 | counter[0]


def test_the_oracle_is_philox() -> None:
    """Known answers of Random123's kat_vectors: philox4x32 10."""
    assert philox(0, 0, 0) == 0xE169C58D_6627E8D5
    assert philox(2**64 - 1, 2**64 - 1, 2**64 - 1) == 0x41C83B0E_408F276D


@pytest.mark.parametrize("columns", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_largest(stream: Stream, dtype: np.dtype, columns: int) -> None:
    x = np.random.default_rng(columns).standard_normal((5, columns)).astype(dtype)
    x[1] = x[1, 0]  # all equal: the first
    x[2, columns // 2 :] = 9  # equals in many threads
    x[3, -1] = np.inf
    x[4] = -np.inf
    x[4, columns // 3] = -60000
    expected = np.argmax(x.astype(np.float32), axis=1)
    for before, after in ((0, 0), (8, -columns % 8 + 8), (1, 2)):
        rows = Padded(stream, x, before=before, after=after)
        assert (chosen(stream, rows.tensor, temperature=0) == expected).all()
        assert (chosen(stream, rows.tensor, top_k=1) == expected).all()
        # What is far less probable than 2^-40 is never drawn.
        assert (chosen(stream, rows.tensor, temperature=1e-6, seed=3)[[3, 4]] == expected[[3, 4]]).all()


@pytest.mark.parametrize("columns", [1, 7, 300, 5000])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 3}, {"top_p": 0.5}, {}], ids=str)
def test_nothing_to_choose(stream: Stream, options: dict, columns: int) -> None:
    x = np.zeros((6, columns), np.float32)
    x[0], x[1], x[2, columns // 2], x[3, -1] = -np.inf, np.nan, np.nan, np.nan
    x[2, 0], x[4] = np.nan, -np.inf
    x[4, columns // 2] = -1e30
    found = chosen(stream, x, **options)
    assert found[:5].tolist() == [-1, -1, -1, -1, columns // 2]
    assert 0 <= found[5] < columns


@pytest.mark.parametrize("columns", [5, 70, 1000, 5000])
@pytest.mark.parametrize("options", [(1.0, 0, 1.0), (0.7, 10, 1.0), (1.3, 0, 0.8), (0.9, 40, 0.6)], ids=str)
def test_draws_what_the_rule_says(stream: Stream, options: tuple[float, int, float], columns: int) -> None:
    """The token is the one in whose part of the cumulated probabilities the random number lies."""
    temperature, top_k, top_p = options
    x = (2 * np.random.default_rng(columns).standard_normal((12, columns))).astype(np.float32)
    named = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    for dtype, (before, after) in product((FLOAT32, FLOAT16), ((0, 8), (1, 2))):
        values = x.astype(dtype)
        rows = Padded(stream, values, before=before, after=-columns % 8 + after)
        found = chosen(stream, rows.tensor, seed=2**40 + 5, step=3, **named)
        for row, token in enumerate(found):
            probabilities = kept(values[row], *options)
            sums = np.cumsum(probabilities)
            drawn = philox(2**40 + 5, 3, row) / 2**64
            assert probabilities[token] > 0
            assert sums[token] - probabilities[token] - 1e-5 <= drawn <= sums[token] + 1e-5


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 2.0}, {"top_k": 7}, {"top_p": 0.7}, {"temperature": 0.5, "top_k": 12, "top_p": 0.9}],
    ids=str,
)
def test_how_often_each_is_drawn(stream: Stream, options: dict) -> None:
    """χ² of 2048 draws stays where it does in all but one of a million tests."""
    logits = np.random.default_rng(3).standard_normal(40).astype(np.float32)
    many = np.repeat(logits[None], 2048, axis=0)
    expected = 2048 * kept(logits, options.get("temperature", 1.0), options.get("top_k", 0), options.get("top_p", 1.0))
    counts = np.bincount(chosen(stream, many, seed=11, **options), minlength=40)
    assert not counts[expected == 0].any()
    some = expected > 0
    squares = float(((counts[some] - expected[some]) ** 2 / expected[some]).sum())
    freedom = int(some.sum()) - 1
    assert squares < freedom + 5 * np.sqrt(2 * freedom) + 10


def test_equals_are_kept_together(stream: Stream) -> None:
    x = np.array([[5, 1, 5, 5, 0, 1, 1, -9]] * 200, np.float32)
    for options, tokens in (({"top_k": 2}, {0, 2, 3}), ({"top_p": 0.1}, {0, 2, 3}), ({"top_k": 4}, {0, 1, 2, 3, 5, 6})):
        assert set(chosen(stream, x, temperature=20.0, **options).tolist()) == tokens


def test_depends_on_seed_step_and_sequence_only(stream: Stream) -> None:
    logits = np.random.default_rng(0).standard_normal((1, 600)).astype(np.float32)
    x = np.repeat(logits, 40, axis=0)
    order = np.random.default_rng(1).permutation(40)
    first = chosen(stream, x, seed=1, step=5)
    assert (chosen(stream, x, seed=1, step=5) == first).all()
    assert (chosen(stream, x, seed=1, step=5, indices=order) == first[order]).all()
    assert (chosen(stream, x[:7], seed=1, step=5, indices=order[:7]) == first[order[:7]]).all()
    steps = DeviceTensor.from_numpy(np.full(40, 5, np.int32), stream=stream)
    assert (chosen(stream, x, seed=1, step=steps) == first).all()
    for other in ({"seed": 2, "step": 5}, {"seed": 1, "step": 6}, {"seed": 1 + 2**32, "step": 5}):
        assert (chosen(stream, x, **other) != first).sum() > 30
    assert len(set(first.tolist())) > 20


def test_the_length_of_the_block_changes_nothing(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((9, 3000)).astype(np.float32)
    options = {"top_k": 500, "top_p": 0.9, "seed": 4}
    first = chosen(stream, x, **options)
    monkeypatch.setattr(sample, "LONG_ROW", 10)
    monkeypatch.setattr(sample, "MAX_BLOCKS", 2)
    sample._plan.cache_clear()
    assert (chosen(stream, x, **options) == first).all()
    assert (chosen(stream, x, temperature=0) == x.argmax(axis=1)).all()
    sample._plan.cache_clear()


def test_empty(stream: Stream) -> None:
    assert chosen(stream, np.zeros((0, 5), np.float32)).size == 0
    for options in ({}, {"temperature": 0}, {"top_k": 4, "top_p": 0.5}):
        assert (chosen(stream, np.zeros((3, 0), np.float32), **options) == -1).all()


def test_refuses(stream: Stream) -> None:
    x = DeviceTensor.from_numpy(np.zeros((4, 6), np.float32), stream=stream)
    out = DeviceTensor.from_numpy(np.zeros((4, 2), np.int32), stream=stream)
    good = out.reshape(8)[:4]
    for arguments, options, message in (
        ((x[0], good), {}, "logits has shape"),
        ((out, good), {}, "logits's dtype is int32"),
        ((x[:, ::2], good), {}, "logits has strides"),
        ((x, good[:3]), {}, "out is int32"),
        ((x, out[:, 0]), {}, "out is int32"),
        ((x, x[:, 0]), {}, "out is float32"),
        ((x, good), {"step": good[:2]}, "step is int32"),
        ((x, good), {"sequences": x[:, 0]}, "sequences is float32"),
        ((x, good), {"temperature": -1.0}, "temperature is -1"),
        ((x, good), {"temperature": 1e-31}, "temperature is 1e-31"),
        ((x, good), {"top_k": -1}, "top_k is -1"),
        ((x, good), {"top_p": 0.0}, "top_p is 0"),
        ((x, good), {"top_p": 1.5}, "top_p is 1.5"),
        ((x, good), {"seed": 2**63}, "seed is 9223372036854775808"),
    ):
        with pytest.raises(ArgumentError, match=message):
            sample.launch(*arguments, stream=stream, **options)
