"""The plan over a paged cache: every sequence gives what it gives alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import ArgumentError, ClosedError, HipError, PagedKVCache, PagedPlan, Stream
from hipattn.attn.options import plan_decode
from hipattn.errors import OutOfPagesError
from tests.helpers.layer_oracle import random_weights, upload_layers
from tests.helpers.tolerance import DTYPES
from tests.kernels.test_paged_append import quantised, same_floats
from tests.test_plan import LLAMA, check, embeddings

FLOAT32 = DTYPES[0]


@contextmanager
def planned(
    stream: Stream, weights: list[Any], *, pages: int = 40, page_size: int = 4, **options: Any
) -> Iterator[PagedPlan]:
    """A plan whose cache is full of NaN."""
    on_device = upload_layers(stream, weights)
    sizes = len(weights), pages, page_size, LLAMA.heads_kv, LLAMA.head_dim
    options = {"dtype": weights[0]["qkv"].dtype} | options
    with PagedKVCache(*sizes, **options, stream=stream) as cache:
        for layer in range(cache.layers):
            for pool in (cache.keys(layer), cache.values(layer)):
                nan = np.full(pool.shape, np.nan, np.float32).astype(cache.dtype)
                pool.copy_from(nan.view(pool.dtype), stream=stream)
        with PagedPlan(LLAMA, on_device, cache, batch=4, tokens=80, stream=stream) as plan:
            yield plan
    for each in on_device:
        each.close()


def run(plan: PagedPlan, sequences: list[int], x: NDArray[Any]) -> NDArray[Any]:
    plan.extend(sequences, x.shape[1])
    hidden = plan.hidden(*x.shape[:2])
    hidden.copy_from(x, stream=plan.stream)
    return plan.run(hidden).numpy(stream=plan.stream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequences_that_come_and_go(stream: Stream, dtype: np.dtype[Any]) -> None:
    weights = [random_weights(LLAMA, dtype, seed) for seed in range(2)]
    x = embeddings(3, 12, dtype)
    with planned(stream, weights) as plan:
        first, second = plan.pages.new(), plan.pages.new()
        parts: list[list[NDArray[Any]]] = [[], [], []]
        parts[0].append(run(plan, [first], x[:1, :7]))
        parts[1].append(run(plan, [second], x[1:2, :2]))
        for at in range(3):  # one token each, at different positions
            both = run(plan, [first, second], np.stack([x[0, 7 + at], x[1, 2 + at]])[:, None])
            parts[0].append(both[:1])
            parts[1].append(both[1:])
        third = plan.pages.fork(first, 5)  # begins as the first does
        x[2, :5] = x[0, :5]
        plan.pages.free(second)
        both = run(plan, [third, first], np.stack([x[2, 5:7], x[0, 10:12]]))
        parts[2].append(both[:1])
        parts[0].append(both[1:])
        check(np.concatenate(parts[0], axis=1), LLAMA, weights, x[:1])
        check(np.concatenate(parts[1], axis=1), LLAMA, weights, x[1:2, :5])
        third_alone = np.concatenate([parts[0][0][:, :5], parts[2][0]], axis=1)
        check(third_alone, LLAMA, weights, x[2:, :7])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cache_of_eight_bits(stream: Stream, dtype: np.dtype[Any]) -> None:
    """It holds what the other does, quantised by each head's scale; and what comes of it is near."""
    weights = [random_weights(LLAMA, dtype, seed) for seed in range(2)]
    x = embeddings(2, 9, dtype)
    per_head = np.arange(1, LLAMA.heads_kv + 1)
    scales = [np.stack([per_head / first, per_head / (2 * first)]) for first in (37, 5)]
    options: Any = {"dtype": "float8_e4m3", "k_scales": scales[0], "v_scales": scales[1]}
    with planned(stream, weights) as plain, planned(stream, weights, **options) as plan:
        results = []
        for each in (plain, plan):
            sequences = [each.pages.new(), each.pages.new()]
            results.append([run(each, sequences, x[:, :5])])
        for layer, (name, at) in product(range(2), (("keys", 0), ("values", 1))):  # both begin with the same
            kept, stored = (getattr(each.pages, name)(layer).numpy() for each in (plain, plan))
            expected = quantised(kept, scales[at][layer].astype(np.float32), plan.pages.dtype)
            assert np.isfinite(kept.astype(np.float32)).sum() == 2 * 5 * LLAMA.heads_kv * LLAMA.head_dim
            assert same_floats(stored.view(plan.pages.dtype), expected)
        for each, parts in zip((plain, plan), results, strict=True):
            sequences = list(each.pages.sequences)
            parts.extend(run(each, sequences, x[:, at : at + 1]) for at in range(5, 9))
    wanted, found = (np.concatenate(parts, axis=1).astype(np.float64) for parts in results)
    assert np.array_equal(found[:, :5], wanted[:, :5])  # sees no cache
    errors = np.abs(found - wanted)[:, 5:].max() / np.abs(wanted).max()
    assert 1e-3 < errors < 0.05, errors


def test_a_call_is_planned_once(stream: Stream) -> None:
    """Not for each token, while the block table keeps its width."""
    weights = [random_weights(LLAMA, FLOAT32, 0)]
    with planned(stream, weights) as plan:
        sequence = plan.pages.new()
        run(plan, [sequence], embeddings(1, 6, FLOAT32))
        plan_decode.cache_clear()
        for _ in range(2):
            run(plan, [sequence], embeddings(1, 1, FLOAT32))
        assert plan_decode.cache_info()[:2] == (1, 1)


def test_long_beginnings(stream: Stream) -> None:
    weights = [random_weights(LLAMA, FLOAT32, 0)]
    x = embeddings(1, 80)
    with planned(stream, weights) as plan:
        check(run(plan, [plan.pages.new()], x), LLAMA, weights, x)
        with pytest.raises(ArgumentError, match="tokens is 65; sequences that have tokens already get at most 64"):
            plan.extend([plan.pages.sequences[0]], 65)


def test_too_few_pages(stream: Stream) -> None:
    weights, x = [random_weights(LLAMA, FLOAT32, 0)], embeddings(1, 13)
    with planned(stream, weights, pages=3) as plan:
        sequence = plan.pages.new()
        first = run(plan, [sequence], x[:, :12])
        with pytest.raises(OutOfPagesError):
            run(plan, [sequence], x[:, 12:])
        assert (plan.pages.length(sequence), plan.pages.free_pages) == (12, 0)
        check(first, LLAMA, weights, x[:, :12])


def test_a_failed_launch_leaves_the_sequences_as_they_were(stream: Stream, fail: Any) -> None:
    weights, x = [random_weights(LLAMA, FLOAT32, seed) for seed in range(2)], embeddings(1, 6)
    with planned(stream, weights) as plan:
        sequence = plan.pages.new()
        first = run(plan, [sequence], x[:, :5])
        for call in ("hipModuleLaunchKernel:1", "hipModuleLaunchKernel:8", "hipblasGemmStridedBatchedEx:6"):
            plan.extend([sequence], 1)
            hidden = plan.hidden(1, 1)
            hidden.copy_from(x[:, 5:], stream=stream)
            with fail(call), pytest.raises(HipError):
                plan.run(hidden)
            assert plan.pages.length(sequence) == 5
        with pytest.raises(ArgumentError, match=r"hidden has shape .* 0 sequences were extended by 0 tokens"):
            plan.run(hidden)
        check(np.concatenate([first, run(plan, [sequence], x[:, 5:])], axis=1), LLAMA, weights, x)


def test_bad_arguments(stream: Stream) -> None:
    weights = upload_layers(stream, [random_weights(LLAMA, FLOAT32, 0)])
    with PagedKVCache(1, 4, 4, 2, 16, dtype=np.float16, stream=stream) as cache:
        with pytest.raises(
            ArgumentError, match=r"cache has .*\(1, 2, 16, 16, 'float16'\); the layers take .*'float32'"
        ):
            PagedPlan(LLAMA, weights, cache, stream=stream)
        with pytest.raises(ArgumentError, match="spec is not causal"):
            PagedPlan(replace(LLAMA, causal=False), weights, cache, stream=stream)
    with pytest.raises(ClosedError, match="cache is closed"):
        PagedPlan(LLAMA, weights, cache, stream=stream)
    with pytest.raises(ArgumentError, match="cache is int; it takes a PagedKVCache"):
        PagedPlan(LLAMA, weights, 3, stream=stream)  # type: ignore[arg-type]
    with (
        PagedKVCache(1, 9, 4, 2, 16, dtype=np.float32, stream=stream) as cache,
        PagedPlan(LLAMA, weights, cache, batch=2, tokens=4, stream=stream) as plan,
    ):
        sequences = [cache.new() for _ in range(3)]
        with pytest.raises(ArgumentError, match="extend has 3 sequences of 1 tokens; the plan takes 1 to 2 of 1 to 4"):
            plan.extend(sequences, 1)
        with pytest.raises(ArgumentError, match="has 1 sequences of 5 tokens"):
            plan.extend(sequences[:1], 5)
        plan.extend(sequences[:2], 3)
        with pytest.raises(ArgumentError, match="2 sequences were extended by 3 tokens"):
            plan.run(plan.hidden(2, 2))
