"""attention_decode(): few queries over caches that each sequence fills to its own length, in one piece and in pages."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import hipattn
from hipattn import ArgumentError, DeviceTensor, Graph, PagedKVCache, Stream, attention_decode
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from tests.helpers.decode import Caches, check_decode, decode
from tests.helpers.features import FEATURES, Sizes, of_reference
from tests.helpers.inputs import poisoned, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import same_bits
from tests.helpers.pairwise import pairwise
from tests.helpers.tolerance import DTYPES

# Heads of queries and of keys, queries of a sequence, and more of what is decided when a kernel is compiled.
SHAPES = pairwise(
    {
        "heads": [(2, 2), (8, 2), (7, 1), (8, 1), (16, 1)],
        "dim": [64, 96, 128, 256],
        "seq_q": [1, 2, 5, 64],
        "dtype": DTYPES,
        "page_size": [None, 1, 8, 16, 128],
        "num_splits": [None, 1, 3],
        "lengths": [(0, 1, 15, 16, 17), (255,), (130, 64, 0, 33), (7, 150)],
        "causal": [True, False],
    }
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(str(x) for x in shape.values()))
def test_each_shape(stream: Stream, shape: dict[str, Any]) -> None:
    lengths = shape["lengths"] if shape["seq_q"] < 64 else shape["lengths"][-2:]
    caches = Caches.random(lengths, shape["seq_q"], shape["heads"], (shape["dim"],) * 2, shape["dtype"])
    if shape["page_size"]:
        caches = caches.paged(shape["page_size"])
    check_decode(stream, caches, num_splits=shape["num_splits"], causal=shape["causal"])


LENGTHS = (70, 0, 5, 133)


def sizes(caches: Caches) -> Sizes:
    batch, seq_q, heads, _ = caches.q.shape
    return Sizes(batch, heads, seq_q, caches.capacity, caches.q.dtype)


@pytest.mark.parametrize("number", range(1, len(FEATURES)), ids=list(FEATURES)[1:])
def test_each_option(stream: Stream, number: int) -> None:
    """In one piece and in pages by turns."""
    feature, page_size = list(FEATURES)[number], (None, 16)[number % 2]
    caches = Caches.random(LENGTHS, 5)
    caches = caches if page_size is None else caches.paged(page_size)
    check_decode(stream, caches, **{"causal": False} | FEATURES[feature](sizes(caches)), num_splits=3)


NAMES = (
    "causal",
    "left",
    "softcap",
    "alibi of batch",
    "sinks",
    "bias",
    "mask",
    "score_mod",
    "mask_mod",
    "negative scale",
)
TOGETHER = pairwise({**dict.fromkeys(NAMES, (False, True)), "form": [(None, 3), (16, 1), (7, 3)]})


@pytest.mark.parametrize("chosen", TOGETHER, ids=lambda chosen: "-".join(name for name in NAMES if chosen[name]))
def test_options_together(stream: Stream, chosen: dict[str, Any]) -> None:
    page_size, num_splits = chosen["form"]
    caches = Caches.random(LENGTHS, 5)
    caches = caches if page_size is None else caches.paged(page_size)
    options: dict[str, Any] = {"causal": False}
    for name in NAMES:
        options |= FEATURES[name](sizes(caches)) if chosen[name] else {}
    check_decode(stream, caches, **options, num_splits=num_splits)


@pytest.mark.parametrize("num_splits", [1, 2, 3, 4, 5, 6, 7, 9, 16, 256, None])
def test_splits(stream: Stream, num_splits: int | None) -> None:
    """As many as there are tiles, more, and one: the last has a sink, which counts once."""
    caches = Caches.random((300, 0, 1, 97), 2)
    check_decode(stream, caches, num_splits=num_splits, sinks=np.array([1, -2, 0, 4], np.float32), window=(120, None))


def test_a_workspace(stream: Stream) -> None:
    """Into memory of the caller's, which a graph can launch again: lengths and keys are read anew."""
    caches = Caches.random(LENGTHS).paged(16)
    q, k, v, lengths, table = upload(stream, caches.q, caches.k, caches.v, np.zeros(4, np.int32), caches.table)
    out = poisoned(stream, (4, 1, 4, 24), np.float16)
    workspace = poisoned(stream, (4 * 4 * (3 * 25 + 1) + 4,), np.float32)
    options: dict[str, Any] = {"block_table": table, "num_splits": 3, "out": out, "stream": stream}
    with pytest.raises(ArgumentError, match=r"workspace has shape \(1215,\) .* 3 splits it takes .* 1216 or more"):
        attention_decode(q, k, v, lengths, workspace=workspace[:1215], **options)
    with pytest.raises(ArgumentError, match=r"workspace .* a multiple of 4 bytes; .* a multiple of 16 bytes"):
        attention_decode(q, k, v, lengths, workspace=workspace[1:], **options)
    with pytest.raises(ArgumentError, match="workspace is in host memory"):
        attention_decode(q, k, v, lengths, workspace=np.zeros(1216, np.float32), **options)
    options["workspace"] = workspace[4:]
    attention_decode(q, k, v, lengths, **options)
    assert not out.numpy().any()
    with bindings.record() as calls:
        attention_decode(q, k, v, lengths, **options)
    assert not [name for name, _ in calls if "Malloc" in name]
    graph = Graph(stream, lambda: attention_decode(q, k, v, lengths, **options))
    lengths.copy_from(caches.lengths, stream=stream)
    graph.launch()
    assert same_bits(out.numpy(stream=stream), decode(stream, caches, num_splits=3)[0])
    assert np.isnan(workspace.numpy()[:4]).all()


@pytest.mark.parametrize(
    ("dims", "dtype", "num_splits"),
    [((16, 7), DTYPES[2], 5), ((40, 300), DTYPES[0], 9), ((64, 256), DTYPES[1], 64), ((16, 33), DTYPES[0], 256)],
    ids=lambda value: str(value),
)
def test_results_of_parts(stream: Stream, dims: tuple[int, int], dtype: np.dtype[Any], num_splits: int) -> None:
    """Of any width, with weights far apart, more parts than keys, and in memory of a call of another shape."""
    for lengths, heads in (((290, 0, 40), (4, 2)), ((65, 300), (3, 3))):
        caches = Caches.random(lengths, 2, heads, dims, dtype)
        caches.k[0, ::50] *= 8
        check_decode(stream, caches, num_splits=num_splits, sinks=np.linspace(-4, 9, heads[0], dtype=np.float32))


def test_long_sequences(stream: Stream) -> None:
    caches = Caches.random((5000, 1030), 1, (4, 1), (64, 64))
    check_decode(stream, caches)
    check_decode(stream, caches.paged(16))


@pytest.mark.parametrize("seq_q", [1, 3])
def test_other_sequences_and_pages_do_not_change_a_bit(stream: Stream, seq_q: int) -> None:
    caches = Caches.random(LENGTHS, seq_q)
    together = decode(stream, caches, num_splits=3)
    for other in (caches.paged(16), caches.paged(16, seed=1)):
        assert all(same_bits(x, y) for x, y in zip(decode(stream, other, num_splits=3), together, strict=True))
        for b in range(len(LENGTHS)):
            alone = decode(stream, other.sequence(b), num_splits=3)
            assert all(same_bits(x[0], y[b]) for x, y in zip(alone, together, strict=True))


@pytest.mark.parametrize("num_splits", [1, 4])
@pytest.mark.parametrize("page_size", [None, 8])
def test_what_is_not_finite_stays_where_it_is_seen(stream: Stream, num_splits: int, page_size: int | None) -> None:
    caches = Caches.random((100, 90), 4)
    clean = [x.copy() for x in (caches.q, caches.k, caches.v)]
    caches.q[0, 1, 2] = np.nan  # a query of a head
    caches.v[1, 89, 1, 5] = np.nan  # a column, for the last query
    caches.v[1, 3, 0, 7] = np.inf  # a column, for all queries of its heads
    plain, _ = decode(stream, replace(caches, q=clean[0], k=clean[1], v=clean[2]), num_splits=num_splits)
    out, lse = decode(stream, caches if page_size is None else caches.paged(page_size), num_splits=num_splits)
    wrong = np.zeros(out.shape, bool)
    wrong[0, 1, 2] = wrong[1, 3, 2:, 5] = wrong[1, :, :2, 7] = True
    assert np.isnan(out[0, 1, 2]).all()
    assert np.isnan(out[1, 3, 2:, 5]).all()
    assert np.isinf(out[1, :, :2, 7]).all()
    assert same_bits(out[~wrong], plain[~wrong])
    assert np.argwhere(~np.isfinite(lse)).tolist() == [[0, 2, 1]]


def test_any_strides(stream: Stream) -> None:
    """Heads before keys, as other caches have them, and rows that are not aligned."""
    caches = Caches.random((40, 33), 3, dims=(40, 24))
    expected = decode(stream, caches, num_splits=2)[0]
    q, k, v = (
        upload(stream, np.ascontiguousarray(np.pad(x, [(0, 0)] * 3 + [(1, 2)]).swapaxes(1, 2)))[0]
        for x in (caches.q, caches.k, caches.v)
    )
    views = [x.transpose(0, 2, 1, 3)[..., 1:-2] for x in (q, k, v)]
    out = attention_decode(*views, caches.lengths, num_splits=2, stream=stream)
    assert same_bits(out.numpy(), expected)


@pytest.mark.parametrize("paged", [False, True])
def test_without_lengths_a_sequence_fills_its_cache(stream: Stream, paged: bool) -> None:
    caches = Caches.random((48, 48), 2, spare=0)
    caches = caches.paged(16) if paged else caches
    table = None if caches.table is None else upload(stream, caches.table)[0]
    out = attention_decode(*upload(stream, caches.q, caches.k, caches.v), block_table=table, stream=stream)
    assert_close(out.numpy(), caches.reference(causal=True), atol=2e-3)


@pytest.mark.parametrize("shape", [(0, 1, 9), (2, 1, 0)], ids=["no sequence", "no key"])
def test_nothing(stream: Stream, shape: tuple[int, int, int]) -> None:
    batch, seq_q, capacity = shape
    q, k = np.ones((batch, seq_q, 4, 40), np.float16), np.ones((batch, capacity, 2, 40), np.float16)
    out, lse = attention_decode(*upload(stream, q, k, k), return_lse=True, stream=stream)
    assert not out.numpy().any()
    assert (lse.numpy() == -np.inf).all()
    table = DeviceTensor.from_numpy(np.zeros((batch, 0), np.int32), stream=stream)
    pool = upload(stream, np.full((1, 16, 2, 40), np.nan, np.float16))[0]
    out = attention_decode(upload(stream, q)[0], pool, pool, block_table=table, stream=stream)
    assert not out.numpy().any()


@pytest.mark.parametrize("paged", [False, True])
def test_arrays_of_the_host(paged: bool) -> None:
    caches = Caches.random(LENGTHS, 2)
    caches = caches.paged(8) if paged else caches
    expected, expected_lse = caches.reference(causal=True, return_lse=True)
    target = np.full(expected.shape, np.nan, np.float16)
    table = None if caches.table is None else caches.table.astype(np.int64)
    arrays = caches.q, caches.k, caches.v
    out, lse = attention_decode(*arrays, caches.lengths.tolist(), block_table=table, out=target, return_lse=True)
    assert out is target
    assert_close(out, expected, atol=2e-3)
    assert_close(lse, expected_lse, atol=1e-5, rtol=1e-5)


def test_tensors_on_the_device_are_used_in_place(stream: Stream) -> None:
    caches = Caches.random(LENGTHS).paged(16)
    q, k, v, lengths, table = upload(stream, caches.q, caches.k, caches.v, caches.lengths, caches.table)
    options: dict[str, Any] = {"block_table": table, "num_splits": 2, "stream": stream}
    attention_decode(q, k, v, lengths, **options)
    with bindings.record() as calls:
        attention_decode(q, k, v, lengths, **options)
    assert not [name for name, _ in calls if "Memcpy" in name or "Synchronize" in name]


@pytest.mark.parametrize("paged", [False, True])
def test_the_reference_takes_all(stream: Stream, paged: bool) -> None:
    caches = Caches.random(LENGTHS, 3)
    caches = caches.paged(16) if paged else caches
    options: dict[str, Any] = {}
    for name in ("softcap", "alibi of batch", "sinks", "bias", "mask", "score_mod", "mask_mod"):
        options |= FEATURES[name](sizes(caches))
    expected = caches.reference(causal=True, **of_reference(options)).astype(np.float16)
    tensors = upload(stream, caches.q, caches.k, caches.v, caches.lengths)
    out = attention_decode(*tensors, block_table=caches.table, method="reference", stream=stream, **options)
    assert isinstance(out, DeviceTensor)
    assert same_bits(out.numpy(), expected)


def test_sequences_of_a_paged_cache(stream: Stream) -> None:
    """A prompt and a fork of its beginning, each with a draft of three tokens."""
    prompt, *drafts = (
        [np.random.default_rng(seed).standard_normal((1, tokens, 2, dim)).astype(np.float16) for dim in (40, 24)]
        for seed, tokens in enumerate((21, 3, 3))
    )
    q = np.random.default_rng(9).standard_normal((2, 3, 4, 40)).astype(np.float16)
    with PagedKVCache(2, 9, 8, 2, 40, value_dim=24, dtype=np.float16, stream=stream) as cache:
        for pool in (cache.keys(1), cache.values(1)):
            pool.copy_from(np.full(pool.shape, np.nan, np.float16), stream=stream)
        first = cache.new()
        cache.extend([first], 21, stream=stream)
        cache.append(1, [first], *upload(stream, *prompt), stream=stream)
        both = [first, cache.fork(first, 13)]
        cache.extend(both, 3, stream=stream)
        cache.append(1, both, *upload(stream, *map(np.concatenate, zip(*drafts, strict=True))), stream=stream)
        pools, beside = (cache.keys(1), cache.values(1)), (cache.lengths(both), cache.block_table(both))
        out = attention_decode(*upload(stream, q), *pools, beside[0], block_table=beside[1], stream=stream).numpy()
    for b, length in enumerate((21, 13)):
        k, v = (np.concatenate([old[:, :length], new], axis=1) for old, new in zip(prompt, drafts[b], strict=True))
        expected = hipattn.attn.reference.attention(q[b : b + 1], k, v, causal=True)[0]
        assert_close(out[b], expected, atol=2e-3)


def test_a_sequence_is_attention_of_its_keys() -> None:
    """The reference's own property."""
    caches = Caches.random((33, 20), 3, dtype=np.float32)
    expected = [
        hipattn.attn.reference.attention(
            caches.q[b : b + 1], caches.k[b : b + 1, :n], caches.v[b : b + 1, :n], causal=True
        )
        for b, n in enumerate(caches.lengths)
    ]
    for each in (caches, caches.paged(1), caches.paged(16)):
        assert np.array_equal(each.reference(causal=True), np.concatenate(expected))


def bad_arguments() -> dict[str, tuple[bool, dict[str, Any], str]]:
    """What is wrong → (whether in pages, the arguments that differ, what the message names)."""
    caches = Caches.random(LENGTHS, 2)
    pages = caches.paged(16)
    q, k, v = caches.q, caches.k, caches.v
    table = np.where(pages.table < 0, 0, pages.table)
    outside, before = table.copy(), table.copy()
    outside[3, 8], before[0, 0] = len(pages.k), -1
    return {
        "rank": (False, {"q": q[0]}, r"q has shape \(2, 4, 40\); it takes 4 dimensions"),
        "queries": (False, {"q": np.repeat(q, 33, 1)}, r"q has shape \(4, 66, 4, 40\); decoding takes 1 to 64 queries"),
        "no query": (False, {"q": q[:, :0]}, "decoding takes 1 to 64 queries"),
        "batch": (False, {"k": k[1:]}, "k has shape"),
        "heads": (False, {"v": v[:, :, :1]}, "v has shape"),
        "dtype": (False, {"k": k.astype(np.float32)}, "k is float32; q is float16"),
        "too long": (False, {"lengths": [70, 0, 5, 137]}, r"lengths is \[ 70   0   5 137\]; a sequence has 0 to 136"),
        "negative": (False, {"lengths": [70, 0, -1, 133]}, "lengths is .* a sequence has 0 to 136"),
        "some lengths": (False, {"lengths": [70, 0]}, r"lengths has shape \(2,\); .* \(4,\)"),
        "floats": (False, {"lengths": [1.0] * 4}, "lengths is .* it takes an array of integers"),
        "number": (False, {"lengths": 7}, r"lengths has shape \(\)|lengths is 7"),
        "table is a list": (True, {"block_table": [1, 2, 3, 4]}, r"block_table has shape \(4,\); it takes \[batch"),
        "some tables": (True, {"block_table": table[1:]}, r"block_table has shape \(3, 9\); .* 4 sequences"),
        "outside": (True, {"block_table": outside}, r"block_table\[3, 8\] is 38; the pool has pages 0 to 37"),
        "before": (True, {"block_table": before}, r"block_table\[0, 0\] is -1; the pool has pages"),
        "beyond the table": (True, {"lengths": [70, 0, 5, 145]}, "lengths is .* a sequence has 0 to 144"),
        "no rows": (True, {"k": pages.k[:, :0], "v": pages.v[:, :0]}, r"k has shape .*; a page takes 1 to 256 rows"),
        "page size": (True, {"v": pages.v[:, :8]}, "v has shape .*; k has 38 pages of 16 rows"),
        "large pages": (
            True,
            {"k": np.zeros((1, 257, 2, 40), np.float16), "v": np.zeros((1, 257, 2, 24), np.float16)},
            "a page takes 1 to 256 rows",
        ),
        "no splits": (False, {"num_splits": 0}, "num_splits is 0"),
        "splits": (False, {"num_splits": 257}, "num_splits is 257; it takes 1 to 256"),
        "half a split": (False, {"num_splits": 1.5}, "num_splits is 1.5"),
        "bias": (False, {"bias": np.zeros(7, np.float32)}, r"bias has shape \(7,\); .* \(4, 4, 2, 136\)"),
        "slopes": (False, {"alibi_slopes": np.zeros(3, np.float32)}, "alibi_slopes has shape"),
        "staged": (False, {"method": "staged"}, "method is 'staged'; decoding takes"),
        "stream": (False, {"stream": 0}, "stream is int"),
        "out": (False, {"out": q}, r"out is float16 \(4, 2, 4, 40\); it takes float16 \(4, 2, 4, 24\)"),
    }


@pytest.mark.parametrize("case", bad_arguments())
@pytest.mark.parametrize("place", ["host", "device"])
def test_bad_arguments(stream: Stream, case: str, place: str) -> None:
    paged, changed, message = bad_arguments()[case]
    caches = Caches.random(LENGTHS, 2)
    caches = caches.paged(16) if paged else caches
    given: dict[str, Any] = {"q": caches.q, "k": caches.k, "v": caches.v, "lengths": caches.lengths}
    given |= {"block_table": caches.table} | changed
    if place == "device":
        for name in ("q", "k", "v", "out"):
            if given.get(name) is not None:
                given[name] = upload(stream, given[name])[0]
    before = live()
    with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
        attention_decode(**given)
    assert live() == before
    assert not [name for name, _ in calls if "Malloc" in name or "Launch" in name]


def test_numbers_on_the_device_are_of_int32_and_contiguous(stream: Stream) -> None:
    caches = Caches.random(LENGTHS).paged(16)
    q, k, v = upload(stream, caches.q, caches.k, caches.v)
    twice = upload(stream, np.repeat(caches.lengths, 2), np.repeat(caches.table, 2, axis=1))
    with pytest.raises(ArgumentError, match=r"lengths has strides \(2,\); it takes a contiguous tensor"):
        attention_decode(q, k, v, twice[0][::2], block_table=caches.table, stream=stream)
    with pytest.raises(ArgumentError, match=r"block_table has strides \(18, 2\); its last dimension"):
        attention_decode(q, k, v, caches.lengths, block_table=twice[1][:, ::2], stream=stream)
    floats = upload(stream, caches.lengths.astype(np.float32))[0]
    with pytest.raises(ArgumentError, match="lengths is float32; accepted: int32"):
        attention_decode(q, k, v, floats, block_table=caches.table, stream=stream)


def test_a_failed_launch_leaves_nothing(stream: Stream, fail: Any) -> None:
    """Nothing of the call stays allocated but what is kept, nothing is recomputed in silence, and the next is right."""
    caches = Caches.random(LENGTHS)
    expected = decode(stream, caches, num_splits=2)[0]
    tensors = upload(stream, caches.q, caches.k, caches.v, caches.lengths)
    before = live()
    with fail("hipModuleLaunchKernel:1"), pytest.raises(hipattn.HipError, match="flash_decode"):
        attention_decode(*tensors, num_splits=2, stream=stream)
    gc.collect()  # the traceback holds what the call had
    assert live() == before
    assert same_bits(attention_decode(*tensors, num_splits=2, stream=stream).numpy(), expected)
