"""attention_decode(): few queries over caches that each sequence fills to its own length, in one piece and in pages."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import hipattn
from hipattn import ArgumentError, DeviceTensor, Graph, KVCache, PagedKVCache, Stream, attention_decode
from hipattn.attn.options import plan_decode
from hipattn.kernels import flash_decode, float8
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from tests.helpers.decode import Caches, check_decode, decode
from tests.helpers.features import FEATURES, Sizes, of_reference
from tests.helpers.inputs import poisoned, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import same_bits
from tests.helpers.pairwise import pairwise
from tests.helpers.tolerance import BFLOAT16, DTYPES

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


@pytest.mark.parametrize("dims", [(320, 320), (512, 40), (512, 512)], ids=str)
@pytest.mark.parametrize("heads", [(4, 2), (16, 2)], ids=str)
def test_heads_above_256(stream: Stream, dims: tuple[int, int], heads: tuple[int, int]) -> None:
    """Of 10 rows and of 40, among several waves or tiles of them."""
    if flash_decode.supports(stream.device, np.dtype(np.float16), *dims, 5):
        pytest.skip(f"{dims} do not fit {stream.device.arch}")
    check_decode(stream, Caches.random((40, 23), 5, heads, dims), num_splits=2)


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
    caches = Caches.random((131072, 1030), 1, (4, 1), (16, 16))
    check_decode(stream, caches)
    check_decode(stream, caches.paged(16))


@pytest.mark.skipif(bindings.platform().simulated, reason="takes long on a simulated device")
@pytest.mark.parametrize("page_size", [None, 1, 128])
def test_long_sequences_of_large_heads(stream: Stream, page_size: int | None) -> None:
    caches = Caches.random((131072, 70001), 1, (8, 2), (128, 128))
    caches = caches if page_size is None else caches.paged(page_size)
    check_decode(stream, caches)
    check_decode(stream, caches.in_float8(float8.e4m3(stream.device.arch)))


FLOAT8_SHAPES = pairwise(
    {
        "dims": [(64, 64), (128, 128), (7, 256)],
        "heads": [(2, 2), (8, 2), (7, 1)],
        "seq_q": [1, 5],
        "dtype": DTYPES,
        "page_size": [None, 1, 16],
        "num_splits": [1, 3],
        "lengths": [(0, 1, 15, 17), (130, 64, 0, 33)],
    }
)


@pytest.mark.parametrize("shape", FLOAT8_SHAPES, ids=lambda shape: "-".join(str(x) for x in shape.values()))
def test_float8(stream: Stream, shape: dict[str, Any]) -> None:
    caches = Caches.random(shape["lengths"], shape["seq_q"], shape["heads"], shape["dims"], shape["dtype"])
    caches = caches if shape["page_size"] is None else caches.paged(shape["page_size"])
    check_decode(stream, caches.in_float8(float8.e4m3(stream.device.arch)), num_splits=shape["num_splits"])


def test_float8_with_options(stream: Stream) -> None:
    """Scores that are changed before the softmax are those of the keys that the bits stand for."""
    caches = Caches.random(LENGTHS, 5).paged(16).in_float8(float8.e4m3(stream.device.arch))
    for names in (("softcap", "alibi of batch", "sinks"), ("left", "bias", "score_mod", "negative scale")):
        options: dict[str, Any] = {"causal": False}
        for name in names:
            options |= FEATURES[name](sizes(caches))
        check_decode(stream, caches, **options, num_splits=3)


@pytest.mark.parametrize("dim", [8, 3], ids=["at once", "one by one"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_float8(stream: Stream, dtype: np.dtype[Any], dim: int) -> None:
    """Of one key: its score is the LSE, and its value the output."""
    kind = float8.e4m3(stream.device.arch)
    codes = np.arange(256, dtype=np.uint8)
    numbers = codes.view(kind).astype(np.float32)
    nan = np.isnan(numbers)
    q, k = np.zeros((256, 1, 1, dim), dtype), np.zeros((256, 1, 1, dim), np.uint8)
    q[..., 1], k[:, 0, 0, 1] = 1, codes
    v = np.tile(codes, (256, 1))[:, None, None, : 256 if dim == 8 else 255]
    scales = np.array([0.5], np.float32), np.array([1], np.float32)
    caches = Caches(q, k, v, np.ones(256, np.int32), scales=scales, float8=kind)
    out, lse = decode(stream, caches, scale=1.0, num_splits=1)
    assert_close(lse[:, 0, 0], numbers / 2, rtol=2e-6, atol=1e-7)
    expected = np.where(nan[:, None], np.nan, numbers[: v.shape[3]])
    assert_close(out[:, 0, 0], expected, rtol=2e-7, atol=0)


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
def test_any_address_in_float8(stream: Stream, offset: int) -> None:
    caches = Caches.random((40, 7), dims=(32, 24), dtype=DTYPES[offset % 2 * 2]).in_float8(
        float8.e4m3(stream.device.arch)
    )
    expected = decode(stream, caches, num_splits=2)[0]
    moved = [
        DeviceTensor.from_numpy(np.pad(x.ravel(), (offset, 0)), stream=stream)[offset:].reshape(*x.shape)
        for x in (caches.k, caches.v)
    ]
    assert caches.scales is not None
    scales = dict(zip(("k_scales", "v_scales"), caches.scales, strict=True))
    q = upload(stream, caches.q)[0]
    out = attention_decode(q, *moved, caches.lengths, **scales, num_splits=2, method="flash", stream=stream)
    assert_close(out.numpy(), expected, atol=1e-6)


def test_what_is_no_number_in_float8_stays_where_it_is_seen(stream: Stream) -> None:
    caches = Caches.random((100, 90), 4)
    caches.v[1, 89, 1, 5] = np.nan  # for the last query
    for each in (caches, caches.paged(8)):
        out, lse = decode(stream, each.in_float8(float8.e4m3(stream.device.arch)), num_splits=2)
        assert np.argwhere(np.isnan(out)).tolist() == [[1, 3, 2, 5], [1, 3, 3, 5]]
        assert np.isfinite(lse).all()


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


@pytest.mark.parametrize("at", [0, 300, 639])
@pytest.mark.parametrize("num_splits", [1, 2, 17, 40])
def test_nan_reaches_a_row_that_hardly_sees_it(stream: Stream, num_splits: int, at: int) -> None:
    """The weight of its key is 0 in float32, wherever its part stands among the parts."""
    caches = Caches.random((640,), 1)
    caches.q[:], caches.k[:] = 1, 0
    caches.k[:, 320:336] = 200 * caches.k.shape[-1] ** -0.5  # a score of 200
    clean, _ = decode(stream, caches, num_splits=num_splits)
    caches.v[0, at, 0, 3] = np.nan
    out, _ = decode(stream, caches, num_splits=num_splits)
    wrong = np.zeros(out.shape, bool)
    wrong[0, 0, :2, 3] = True
    assert np.isnan(out[wrong]).all()
    assert same_bits(out[~wrong], clean[~wrong])


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


def test_the_reference_takes_float8(stream: Stream) -> None:
    caches = Caches.random(LENGTHS, 3).paged(16).in_float8(float8.e4m3(stream.device.arch))
    assert caches.scales is not None
    expected = caches.reference(causal=True).astype(np.float16)
    scales = dict(zip(("k_scales", "v_scales"), caches.scales, strict=True))
    for arrays in ((caches.q, caches.k, caches.v), upload(stream, caches.q, caches.k, caches.v)):
        options = {"block_table": caches.table, "stream": stream} | scales
        out = attention_decode(*arrays, caches.lengths, method="reference", **options)
        assert same_bits(out.numpy() if isinstance(out, DeviceTensor) else out, expected)


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


@pytest.mark.parametrize("dtype", ["float8_e4m3", "bfloat16"])
def test_a_paged_cache_as_it_is(stream: Stream, dtype: str) -> None:
    """Its sequences in an order of the caller's, with no copy of what they hold."""
    rng = np.random.default_rng(0)
    scales = {"k_scales": [[1, 1], [0.02, 0.01]], "v_scales": [[1, 1], [0.03, 0.02]]} if "8" in dtype else {}
    with PagedKVCache(2, 30, 8, 2, 40, value_dim=24, dtype=dtype, stream=stream, **scales) as cache:  # type: ignore[arg-type]
        poison = 0x80 if cache.dtype == float8.E4M3_FNUZ else 0x7F
        for pool in (cache.keys(1), cache.values(1)):
            pool.copy_from(np.full(pool.shape, poison if "8" in dtype else np.nan), stream=stream)
        all_of = {cache.new(): tokens for tokens in (33, 5, 64)}
        for sequence, tokens in all_of.items():
            new = (rng.standard_normal((1, tokens, 2, dim)).astype(BFLOAT16) for dim in (40, 24))
            cache.extend([sequence], tokens, stream=stream)
            cache.append(1, [sequence], *upload(stream, *new), stream=stream)
        chosen = list(all_of)[::-2]
        q = rng.standard_normal((3, 2, 4, 40)).astype(BFLOAT16)
        held = Caches(q[:2], cache.keys(1).numpy(), cache.values(1).numpy(), cache.lengths(chosen).numpy())
        held = replace(held, table=cache.block_table(chosen).numpy())
        if "8" in dtype:
            k_scales, v_scales = cache.scales(1) or ()
            held = replace(held, scales=(k_scales.numpy(), v_scales.numpy()), float8=cache.dtype)
        expected = held.reference(causal=True)
        assert held.lengths.tolist() == [64, 33]
        with bindings.record() as calls:
            out = attention_decode(upload(stream, q[:2])[0], cache, layer=1, sequences=chosen, stream=stream).numpy()
        assert len([name for name, _ in calls if "Memcpy" in name]) == 2  # q there, and the result back
        assert_close(out, expected, atol=2.0**-7)
        every = attention_decode(q, cache, layer=1)  # from the host, and all sequences
        assert_close(every[::-2], attention_decode(q[::-2], cache, layer=1, sequences=chosen), atol=0)
        on_host = attention_decode(q[:2], cache, layer=1, sequences=chosen, method="reference")
        assert_close(on_host, expected, atol=2.0**-8)


def test_a_cache_in_one_piece_as_it_is(stream: Stream) -> None:
    q, k, v = (np.random.default_rng(n).standard_normal((2, 20, 4 >> (n > 0), 24)) for n in range(3))
    q, k, v = (x.astype(np.float16) for x in (q[:, :3], k, v))
    with KVCache(2, 2, 50, 2, 24, dtype=np.float16, stream=stream) as cache:
        assert not attention_decode(q, cache).any()  # of no key
        cache.append(1, *upload(stream, k, v), stream=stream)
        out = attention_decode(upload(stream, q)[0], cache, layer=1, stream=stream)
    assert_close(out.numpy(), hipattn.attn.reference.attention(q, k, v, causal=True), atol=2e-3)


def test_steps_over_a_cache_in_one_piece(stream: Stream) -> None:
    """Layers of different lengths by turns, in two streams: what changes from token to token is one address."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, 40, heads, 24)).astype(np.float16) for heads in (4, 2, 2))
    with Stream(stream.device) as other, KVCache(2, 3, 50, 2, 24, dtype=np.float16, stream=stream) as cache:
        for layer in range(2):
            for part in cache.whole(layer):
                part.copy_from(np.full(part.shape, np.nan, np.float16), stream=stream)
            cache.append(layer, *upload(stream, k[:, : 7 + layer], v[:, : 7 + layer]), stream=stream)
        stream.sync()
        options: dict[str, Any] = {"workspace": DeviceTensor.empty((3 * 4 * (2 * 25 + 1),), np.float32, stream=stream)}
        options |= {"num_splits": 2}
        counts, results = [], []
        for at in range(7, 12):
            outs = []
            for layer, where in enumerate((stream, other)):
                n = at + layer
                query, *new = upload(where, *(x[:, n : n + 1] for x in (q, k, v)))
                cache.append(layer, *new, stream=where)
                outs.append(poisoned(where, (3, 1, 4, 24), np.float16))
                own = options | ({} if where is stream else {"workspace": None})
                with bindings.record() as calls:
                    attention_decode(query, cache, layer=layer, out=outs[-1], stream=where, **own)
                names = [name for name, _ in calls]
                if where is stream:
                    names.remove("hipMemsetAsync")  # a workspace's tickets
                assert at == 7 or not [x for x in names if "Mem" in x or "Malloc" in x or "Event" in x or "Sync" in x]
            counts.append((plan_decode.cache_info().misses, flash_decode._plan.cache_info().misses))
            results.append([out.numpy() for out in outs])
        assert counts[1:] == counts[1:2] * 4
    for at, outs in zip(range(7, 12), results, strict=True):
        for layer, out in enumerate(outs):
            n = at + layer
            expected = hipattn.attn.reference.attention(q[:, n : n + 1], k[:, : n + 1], v[:, : n + 1], causal=True)
            assert_close(out, expected, atol=2e-3)


def test_a_captured_call_keeps_its_length(stream: Stream) -> None:
    """Neither the capture nor a launch of it changes what the calls beside it see."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 9, heads, 24)).astype(np.float16) for heads in (4, 2, 2))
    with KVCache(1, 2, 20, 2, 24, dtype=np.float16, stream=stream) as cache:
        query, keys, values = upload(stream, q[:, :1], k, v)
        out = poisoned(stream, (2, 1, 4, 24), np.float16)

        def step() -> None:
            attention_decode(query, cache, out=out, num_splits=1, stream=stream)

        def check(length: int) -> None:
            expected = hipattn.attn.reference.attention(q[:, :1], k[:, :length], v[:, :length], causal=True)
            assert_close(out.numpy(), expected, atol=2e-3)

        cache.append(0, keys[:, :3], values[:, :3], stream=stream)
        step()
        cache.append(0, keys[:, 3:], values[:, 3:], stream=stream)
        graph = Graph(stream, step)
        cache.truncate(0, 5)
        step()
        check(5)
        graph.launch()
        check(9)
        step()
        check(5)
        graph.close()


def test_no_sequence_of_a_paged_cache(stream: Stream) -> None:
    """As over arrays: an empty result."""
    q = np.zeros((0, 1, 4, 40), np.float16)
    with PagedKVCache(1, 9, 8, 2, 40, value_dim=24, dtype=np.float16, stream=stream) as cache:
        for options in ({}, {"sequences": []}):
            out, lse = attention_decode(upload(stream, q)[0], cache, return_lse=True, stream=stream, **options)
            assert (out.shape, lse.shape) == ((0, 1, 4, 24), (0, 4, 1))
            assert attention_decode(q, cache, **options).shape == (0, 1, 4, 24)
        cache.new()
        with pytest.raises(ArgumentError, match=r"sequences are 1; q has shape .*, a batch of 0"):
            attention_decode(q, cache)


def test_caches_that_do_not_fit(stream: Stream) -> None:
    q = upload(stream, np.zeros((2, 1, 4, 24), np.float16))[0]
    sizes: dict[str, Any] = {"dtype": np.float16, "stream": stream}
    with KVCache(2, 2, 50, 2, 24, **sizes) as whole, PagedKVCache(2, 9, 8, 2, 24, **sizes) as paged:
        first = paged.new()
        both = [first, paged.new()]

        def of(*shape: int, dtype: Any = np.float16) -> DeviceTensor:
            return upload(stream, np.zeros(shape, dtype))[0]

        cases: dict[str, tuple[Any, Any, dict[str, Any]]] = {
            "v is given, and k is a KVCache": (q, whole, {"v": q}),
            "lengths is given, and k is a PagedKVCache": (q, paged, {"lengths": [1, 1]}),
            "k_scales is given, and k is a PagedKVCache": (q, paged, {"k_scales": [1, 1]}),
            "sequences is given, and k is a KVCache": (q, whole, {"sequences": both}),
            "sequences is given, and k is DeviceTensor; only": (q, q, {"v": q, "sequences": both}),
            "layer is given, and k is DeviceTensor; only": (q, q, {"v": q, "layer": 0}),
            "v is None, and k is DeviceTensor": (q, q, {}),
            "v is a KVCache; it takes an array": (q, q, {"v": whole}),
            r"sequences are 1; q has shape \(2, 1, 4, 24\), a batch of 2": (q, paged, {"sequences": [first]}),
            "sequences are 0; q has shape": (q, paged, {"sequences": []}),
            "sequences is 3; it takes a list": (q, paged, {"sequences": 3}),
            r"sequences is \[\[0\], \[1\]\]; it takes a list": (q, paged, {"sequences": [[0], [1]]}),
            "sequence is 'a'": (q, paged, {"sequences": "ab"}),
            "sequence is 7, which was never made": (q, paged, {"sequences": [first, 7]}),
        }
        for number, (cache, options) in enumerate(((whole, {}), (paged, {}), (paged, {"sequences": both}))):
            each = f"(?#{number})"  # which matches nothing: the same message of another cache
            cases |= {
                each + "layer is 2; the cache has layers 0 to 1": (q, cache, {"layer": 2} | options),
                each + r"window is \(-5, 0\)": (q, cache, {"window": (-5, 0)} | options),
                each + "num_splits is 1000": (q, cache, {"num_splits": 1000} | options),
                each + "method is 'staged'; decoding": (q, cache, {"method": "staged"} | options),
                each + "scale is inf": (q, cache, {"scale": np.inf} | options),
                each + "causal is 2": (q, cache, {"causal": 2} | options),
                each + "k is float16; q is float32": (of(2, 1, 4, 24, dtype=np.float32), cache, options),
                each + r"k has shape .* \(2, 1, 4, 9\)": (of(2, 1, 4, 9), cache, options),
                each + "3 heads of 24": (of(2, 1, 3, 24), cache, options),
                each + r"q has shape \(2, 4, 24\); it takes 4 dim": (of(2, 4, 24), cache, options),
                each + "1 to 64 queries": (of(2, 65, 4, 24), cache, options),
            }
        for message, (queries, k, options) in cases.items():
            for there in (queries, queries.numpy()):
                before = live()
                with bindings.record() as calls, pytest.raises(ArgumentError, match=message):
                    attention_decode(there, k, **options, stream=stream)
                assert live() == before
                assert not [name for name, _ in calls if "Malloc" in name or "Memcpy" in name or "Memset" in name]
        paged.free(first)
        with pytest.raises(ArgumentError, match="sequence is 0, which was freed"):
            attention_decode(q, paged, sequences=both)
    with pytest.raises(hipattn.ClosedError, match="closed"):
        attention_decode(q, paged, sequences=both)


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
    codes = {"k": k.view(np.uint8)[..., :40], "v": v.view(np.uint8)[..., :24]}
    scaled: dict[str, Any] = codes | {"k_scales": [1, 1], "v_scales": [1, 1]}
    page_codes = scaled | {"k": pages.k.view(np.uint8)[..., :40], "v": pages.v.view(np.uint8)[..., :24]}
    return {
        "rank": (False, {"q": q[0]}, r"q has shape \(2, 4, 40\); it takes 4 dimensions"),
        "queries": (False, {"q": np.repeat(q, 33, 1)}, r"q has shape \(4, 66, .* 1 to 64 queries .* go in parts"),
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
        "no scales": (False, codes, r"k is uint8, which stands for e4m3: it takes k_scales and v_scales"),
        "one scale": (False, codes | {"v_scales": [1, 1]}, "k is uint8, .* it takes k_scales and v_scales"),
        "scales of floats": (False, {"k_scales": [1, 1], "v_scales": [1, 1]}, "k_scales is given; k is float16"),
        "keys alone": (False, scaled | {"v": v}, "k_scales is given; v is float16, and only uint8"),
        "some scales": (True, page_codes | {"k_scales": [1]}, r"k_scales has shape \(1,\); .* a head: \(2,\)"),
        "no positive scale": (False, scaled | {"v_scales": [1, 0]}, "v_scales is .* it takes positive, finite numbers"),
        "words for scales": (False, scaled | {"v_scales": ["a", "b"]}, "v_scales is .* an array of real numbers"),
        "q of bytes": (False, {"q": np.zeros(q.shape, np.uint8)}, "q.* is uint8; accepted: float32"),
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


@pytest.mark.parametrize("name", ["k", "v"])
def test_e4m3_that_says_so_goes_in_as_its_bits(stream: Stream, name: str) -> None:
    caches = Caches.random(LENGTHS, 2)
    given = {"k": caches.k.view(np.uint8)[..., :40], "v": caches.v.view(np.uint8)[..., :24]}
    given[name] = given[name].view(ml_dtypes.float8_e4m3fn)
    with pytest.raises(ArgumentError, match=f"{name} is float8_e4m3fn; e4m3 is passed as its bits, {name}.view of u"):
        attention_decode(caches.q, **given, k_scales=[1, 1], v_scales=[1, 1], stream=stream)


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
