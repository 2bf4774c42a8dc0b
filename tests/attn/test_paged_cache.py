"""The paged cache on the device: what is read through its table is what was appended, whoever shares pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import (
    ArgumentError,
    ClosedError,
    Device,
    DeviceTensor,
    Graph,
    HipError,
    OutOfPagesError,
    PagedKVCache,
    Stream,
)
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from tests.helpers.gate import held
from tests.helpers.inputs import upload
from tests.helpers.padded import same_bits
from tests.helpers.tolerance import DTYPES

FLOAT32, FLOAT16, BFLOAT16 = DTYPES
Fail = Callable[[str], AbstractContextManager[None]]


class Mirror:
    """A cache whose pools begin as NaN, and what each of its sequences should hold."""

    def __init__(
        self, stream: Stream, layers: int, pages: int, page_size: int, dims: tuple[int, int] = (8, 4), heads: int = 2,
        dtype: np.dtype = FLOAT32, seed: int = 0,
    ) -> None:  # fmt: skip
        self.stream = stream
        self.cache = PagedKVCache(
            layers, pages, page_size, heads, dims[0], value_dim=dims[1], dtype=dtype, stream=stream
        )
        for pool in (self.cache._keys, self.cache._values):
            pool.copy_from(np.full(pool.shape, np.nan, dtype), stream=stream)
        self.rng = np.random.default_rng(seed)
        self.shapes = [(layers, heads, dim) for dim in dims]
        self.held: dict[int, list[NDArray[Any]]] = {}  # sequence → keys, values: [layers, length, heads, dim]

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *exception: object) -> None:
        self.cache.close()

    def new(self) -> int:
        sequence = self.cache.new()
        self.held[sequence] = [np.zeros((layers, 0, *row), self.cache.dtype) for layers, *row in self.shapes]
        return sequence

    def fork(self, sequence: int, length: int | None = None) -> int:
        child = self.cache.fork(sequence, length)
        self.held[child] = [rows[:, :length] for rows in self.held[sequence]]
        return child

    def truncate(self, sequence: int, length: int) -> None:
        self.cache.truncate(sequence, length)
        self.held[sequence] = [rows[:, :length] for rows in self.held[sequence]]

    def free(self, sequence: int) -> None:
        self.cache.free(sequence)
        del self.held[sequence]

    def step(self, sequences: Sequence[int], counts: Sequence[int], *, packed: bool = False) -> None:
        """Make room, and append random tokens in each layer."""
        self.cache.extend(sequences, counts, stream=self.stream)
        new = []
        for layers, *row in self.shapes:
            each = [self.rng.standard_normal((layers, count, *row)).astype(self.cache.dtype) for count in counts]
            new.append(np.concatenate(each, 1) if packed else np.stack(each, 1))
            for sequence, rows in zip(sequences, each, strict=True):
                at = len(new) - 1
                self.held[sequence][at] = np.concatenate([self.held[sequence][at], rows], 1)
        for layer in range(self.cache.layers):
            tensors = upload(self.stream, *(rows[layer] for rows in new))
            self.cache.append(layer, sequences, *tensors, stream=self.stream)

    def check(self) -> None:
        """Compare every token of every sequence, read through the table."""
        cache, sequences = self.cache, list(self.held)
        if not sequences:
            return
        lengths, table = cache.lengths(sequences).numpy(), cache.block_table(sequences).numpy()
        for layer in range(cache.layers):
            pools = [pool(layer).numpy(stream=self.stream) for pool in (cache.keys, cache.values)]
            for b, sequence in enumerate(sequences):
                assert cache.length(sequence) == lengths[b] == self.held[sequence][0].shape[1]
                at = np.arange(lengths[b])
                for pool, rows in zip(pools, self.held[sequence], strict=True):
                    assert same_bits(pool[table[b, at // cache.page_size], at % cache.page_size], rows[layer])


@pytest.mark.parametrize(
    ("page_size", "dtype", "dims"),
    [(1, FLOAT16, (64, 64)), (8, BFLOAT16, (7, 12)), (16, FLOAT32, (33, 1)), (128, FLOAT16, (16, 24))],
    ids=str,
)
def test_random_steps(stream: Stream, page_size: int, dtype: np.dtype, dims: tuple[int, int]) -> None:
    with Mirror(stream, 3, 24, page_size, dims, dtype=dtype) as mirror:
        rng = np.random.default_rng(page_size)
        for _ in range(3):
            mirror.new()
        for turn in range(24):
            sequences = [int(s) for s in rng.permutation(list(mirror.held))][: rng.integers(1, 4)]
            first, count = sequences[0], int(rng.integers(0, page_size + 3))
            packed = bool(rng.integers(2))
            counts = [int(n) for n in rng.integers(0, page_size + 3, len(sequences))]
            try:
                mirror.step(sequences, counts if packed else [count] * len(sequences), packed=packed)
            except OutOfPagesError:
                mirror.free(first)
                sequences = [mirror.new()]
            if turn % 3 == 0:
                mirror.fork(sequences[-1], [None, mirror.cache.length(sequences[-1]) // 2][turn % 2])
            if turn % 5 == 0:
                mirror.truncate(sequences[-1], mirror.cache.length(sequences[-1]) * 2 // 3)
            mirror.check()


@pytest.mark.parametrize("page_size", [1, 8, 16, 128])
def test_both_sides_of_a_fork_go_on(stream: Stream, page_size: int) -> None:
    with Mirror(stream, 2, 16, page_size) as mirror:
        one = mirror.new()
        mirror.step([one], [page_size + page_size // 2])
        free = mirror.cache.free_pages
        two, three = mirror.fork(one), mirror.fork(one, page_size)
        assert mirror.cache.free_pages == free
        with bindings.record() as calls:
            mirror.cache.extend([one, two, three], 1, stream=stream)
        copies = [name for name, _ in calls if "Launch" in name]
        assert len(copies) == (page_size > 1), "one launch for all layers, if a page is partly filled"
        for sequence in (one, two, three):
            mirror.truncate(sequence, len(mirror.held[sequence][0][0]))
        mirror.step([two], [1])
        mirror.step([one, three], [1, 1])
        mirror.check()
        for sequence in (one, two, three):
            mirror.free(sequence)
        assert mirror.cache.free_pages == 16


def test_a_decode_step_uploads_once_and_little(stream: Stream) -> None:
    with Mirror(stream, 4, 64, 8) as mirror:
        sequences = [mirror.new() for _ in range(3)]
        mirror.step(sequences, [9, 25, 17], packed=True)
        k, v = upload(stream, *(np.zeros((3, 1, 2, dim), np.float32) for dim in (8, 4)))
        lengths, table = mirror.cache.lengths(sequences), mirror.cache.block_table(sequences)
        for _ in range(5):  # within the last page of each
            with bindings.record() as calls:
                mirror.cache.extend(sequences, 1, stream=stream)
                for layer in range(4):
                    mirror.cache.append(layer, sequences, k, v, stream=stream)
                    mirror.cache.lengths(sequences)
                    mirror.cache.block_table(sequences)
            (nbytes,) = [arguments[2] for name, arguments in calls if name == "hipMemcpyAsync"]
            assert nbytes <= 4 * (3 + 4), "lengths and starts, not the table"
            assert [name for name, _ in calls].count("hipModuleLaunchKernel") == 4
        again = mirror.cache.block_table(sequences)
        assert (again.pointer, again.shape) == (table.pointer, table.shape)
        assert mirror.cache.lengths(sequences).pointer == lengths.pointer
        assert table.is_contiguous
        assert list(lengths.numpy()) == [14, 30, 22]


def test_a_captured_step_goes_on_appending(stream: Stream) -> None:
    with Mirror(stream, 2, 16, 4) as mirror:
        sequences = [mirror.new() for _ in range(2)]
        mirror.step(sequences, [13, 6], packed=True)  # 4 pages, and room for no more without moving
        mirror.step(sequences, [1, 1])  # loads the kernel
        k, v = upload(stream, *(np.zeros((2, 1, 2, dim), np.float32) for dim in (8, 4)))

        def step() -> None:
            for layer in range(2):
                mirror.cache.append(layer, sequences, k, v, stream=stream)

        mirror.cache.extend(sequences, 1)
        table = mirror.cache.block_table(sequences)
        with Graph(stream, step) as graph:
            for turn in range(2):
                if turn:
                    mirror.cache.extend(sequences, 1)  # the second one on a new page
                    assert mirror.cache.block_table(sequences).pointer == table.pointer
                for at, tensor in enumerate((k, v)):
                    new = mirror.rng.standard_normal(tensor.shape).astype(np.float32)
                    tensor.copy_from(new, stream=stream)
                    for b, sequence in enumerate(sequences):
                        rows = np.stack([new[b]] * 2)
                        mirror.held[sequence][at] = np.concatenate([mirror.held[sequence][at], rows], 1)
                graph.launch()
                mirror.check()


def test_what_did_not_change_is_not_uploaded(stream: Stream) -> None:
    with Mirror(stream, 1, 8, 4) as mirror:
        one, two = mirror.new(), mirror.new()
        mirror.step([one, two], [3, 3])
        for cause in (lambda: None, mirror.new, lambda: mirror.fork(one), lambda: mirror.step([2], [1])):
            cause()
            with bindings.record() as calls:
                mirror.cache.lengths([one, two])
            assert not calls
        mirror.check()


def test_an_upload_waits_for_what_reads_the_table(stream: Stream) -> None:
    with Mirror(stream, 1, 8, 4) as mirror, Stream(stream.device) as other:
        one = mirror.new()
        mirror.step([one], [2])
        lengths = mirror.cache.lengths([one])
        with held(other) as gate:
            lengths.buffer.used_on(other)
            threading.Timer(0.2, gate.open).start()
            mirror.cache.extend([one], 1)
            assert not other.done
            mirror.cache.lengths([one])
            assert other.done


def test_more_batches_than_are_kept(stream: Stream) -> None:
    with Mirror(stream, 1, 40, 2) as mirror:
        sequences = [mirror.new() for _ in range(12)]
        mirror.step(sequences, [2] * 12)
        tables = [mirror.cache.block_table([sequence]) for sequence in sequences]
        assert len(mirror.cache._batches) == 8
        pages = [int(table.numpy()[0, 0]) for table in tables]  # those that are not kept are still good
        assert len(set(pages)) == 12
        for sequence in sequences:
            mirror.free(sequence)
        assert not mirror.cache._batches


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_e4m3_with_scales_of_each_layer_and_head(stream: Stream, dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    scales = [rng.uniform(0.01, 2, (3, 2)).astype(np.float32) for _ in range(2)]
    with PagedKVCache(
        3, 6, 4, 2, 8, value_dim=5, dtype="float8_e4m3", k_scales=scales[0], v_scales=scales[1], stream=stream
    ) as cache:
        assert cache.nbytes == 3 * 6 * 4 * 2 * (8 + 5)
        largest = float(ml_dtypes.finfo(cache.dtype).max)
        assert largest == (240 if stream.device.arch == "gfx942" else 448)
        one = cache.new()
        new = [(100 * rng.standard_normal((3, 1, 6, 2, dim))).astype(dtype) for dim in (8, 5)]
        cache.extend([one], 6, stream=stream)
        for layer in range(3):
            cache.append(layer, [one], *upload(stream, *(rows[layer] for rows in new)), stream=stream)
        two = cache.fork(one)
        cache.extend([two], 1, stream=stream)  # copies half a page
        at = np.arange(6)
        for pages in cache.block_table([one, two]).numpy():
            for layer, pool in ((layer, pool) for layer in range(3) for pool in (0, 1)):
                stored = (cache.keys, cache.values)[pool](layer).numpy(stream=stream).view(cache.dtype)
                on_device = cache.scales(layer)
                assert on_device is not None
                assert same_bits(on_device[pool].numpy(), scales[pool][layer])
                scaled = new[pool][layer, 0].astype(np.float32) / scales[pool][layer][:, None]
                expected = np.clip(scaled, -largest, largest).astype(cache.dtype)
                assert same_bits(stored[pages[at // 4], at % 4], expected)


def test_scales_that_are_refused(stream: Stream) -> None:
    before = live()
    for options, message in (
        (
            {"k_scales": np.ones((2, 3))},
            r"k_scales is float64 \(2, 3\); it takes numbers, \[layers, heads",
        ),
        ({"v_scales": [[1, 2], [0, 1]]}, "v_scales has 0.0 to 2.0; it takes positive"),
        ({"v_scales": [[1, 2], [np.nan, 1]]}, "v_scales has nan to nan; it takes positive"),
        ({"k_scales": [["1", "2"]] * 2}, "k_scales is <U1"),
        ({"k_scales": np.ones((2, 2)), "dtype": np.float16}, "the dtype is float16, which has none"),
        ({"dtype": np.float64}, "dtype is float64; accepted: float32, float16, bfloat16, float8_e4m3fn"),
        ({"dtype": np.uint8}, "dtype is uint8"),
    ):
        with pytest.raises(ArgumentError, match=message):
            PagedKVCache(2, 4, 4, 2, 8, stream=stream, **({"dtype": "float8_e4m3"} | options))
    assert live() == before
    with PagedKVCache(2, 4, 4, 2, 8, stream=stream) as cache:
        assert cache.scales() is None


def test_evicted_sequences_are_gone(stream: Stream) -> None:
    with Mirror(stream, 1, 6, 2) as mirror:
        one, two, three = (mirror.new() for _ in range(3))
        mirror.step([one, two, three], [4] * 3)
        with pytest.raises(OutOfPagesError):
            mirror.step([three], [1])
        mirror.check()
        assert mirror.cache.evict(mirror.cache.pages_needed([three], 1), [two, one]) == (two,)
        del mirror.held[two]
        mirror.step([three], [1])
        mirror.check()
        with pytest.raises(ArgumentError, match=f"sequence is {two}, which was freed"):
            mirror.cache.lengths([one, two])


def test_bad_calls_leave_the_cache_as_it_was(stream: Stream) -> None:
    def rows(*shape: int, dtype: Any = np.float32) -> DeviceTensor:
        return upload(stream, np.zeros(shape, dtype))[0]

    with Mirror(stream, 2, 6, 4) as mirror:
        cache = mirror.cache
        one, two, gone = (mirror.new() for _ in range(3))
        mirror.step([one, two], [5, 3], packed=True)
        mirror.free(gone)
        k, v = rows(1, 1, 2, 8), rows(1, 1, 2, 4)
        cache.extend([one], 1, stream=stream)
        before = cache.free_pages, cache.sequences, cache.length(one), cache.length(two)
        for call, kind, message in (
            (lambda: cache.append(0, [gone], k, v), ArgumentError, f"sequence is {gone}, which was freed"),
            (lambda: cache.append(0, [7], k, v), ArgumentError, "sequence is 7, which was never made"),
            (lambda: cache.extend([gone], 1), ArgumentError, f"sequence is {gone}, which was freed"),
            (lambda: cache.fork(99), ArgumentError, "sequence is 99, which was never made"),
            (lambda: cache.append(0, [], k, v), ArgumentError, "sequences is empty"),
            (lambda: cache.lengths(3), ArgumentError, "sequences is 3; it takes a list"),
            (lambda: cache.extend(one, 1), ArgumentError, f"sequences is {one}; it takes a list"),
            (lambda: cache.evict(6, one), ArgumentError, f"sequences is {one}; it takes a list"),
            (lambda: cache.pages_needed(one, 1), ArgumentError, f"sequences is {one}; it takes a list"),
            (lambda: cache.append(2, [one], k, v), ArgumentError, "layer is 2; the cache has layers 0 to 1"),
            (lambda: cache.append(0, [one], k[:, :, :1], v), ArgumentError, r"k has shape .*; it takes \(1, 1, 2, 8\)"),
            (lambda: cache.append(0, [one], k, k), ArgumentError, r"v has shape .*; it takes \(1, 1, 2, 4\)"),
            (lambda: cache.append(0, [one], k[0, 0], v), ArgumentError, "k has shape"),
            (lambda: cache.append(0, [two], k, v), ArgumentError, r"it takes \(1, 3, 2, 8\) for sequences extended"),
            (lambda: cache.append(0, [one, two], rows(2, 1, 2, 8), rows(2, 1, 2, 4)), ArgumentError, "go packed"),
            (lambda: cache.append(0, [one, one], rows(2, 1, 2, 8), rows(2, 1, 2, 4)), ArgumentError, "more than once"),
            (lambda: cache.append(0, [one], rows(1, 1, 2, 8, dtype=np.float16), v), ArgumentError, "k is float16"),
            (lambda: cache.append(0, [one], np.zeros((1, 1, 2, 8)), v), ArgumentError, "k is ndarray"),
            (lambda: cache.extend([one, two], 12), OutOfPagesError, "24 more tokens in 2 sequences need 6 pages of 4"),
        ):
            with bindings.record() as calls, pytest.raises(kind, match=message):
                call()
            assert not [name for name, _ in calls if "Launch" in name]
            assert (cache.free_pages, cache.sequences, cache.length(one), cache.length(two)) == before
        cache.truncate(one, 5)
        with pytest.raises(ArgumentError, match=r"it takes \(1, 0, 2, 8\) .* by \(0,\) tokens: extend makes room"):
            cache.append(0, [one], k, v, stream=stream)
        mirror.check()


def test_every_call_of_a_step_can_fail(fail: Fail, stream: Stream) -> None:
    with Mirror(stream, 2, 8, 4) as mirror:
        cache, one = mirror.cache, mirror.new()
        mirror.step([one], [5])
        two = mirror.fork(one)
        state = cache.free_pages, cache.length(one), cache.length(two)
        with fail("hipModuleLaunchKernel:1"), pytest.raises(HipError, match="page_copy"):
            mirror.cache.extend([one, two], 1, stream=stream)
        assert (cache.free_pages, cache.length(one), cache.length(two)) == state
        mirror.check()
        cache.extend([one, two], 4, stream=stream)  # wider than before: the table moves
        new = [mirror.rng.standard_normal((2, 4, 2, dim)).astype(np.float32) for dim in (8, 4)]
        tensors = upload(stream, *new)
        for call in ("hipMallocAsync", "hipMemcpyAsync", "hipStreamSynchronize", "hipModuleLaunchKernel"):
            with fail(f"{call}:1"), pytest.raises(HipError, match=call):
                cache.append(0, [one, two], *tensors, stream=stream)
        for layer in (0, 1):
            cache.append(layer, [one, two], *tensors, stream=stream)
        for b, sequence in enumerate((one, two)):
            held = mirror.held[sequence]
            for at, rows in enumerate(new):
                held[at] = np.concatenate([held[at], np.stack([rows[b]] * 2)], 1)
        mirror.check()


def test_no_memory_for_the_pools(fail: Fail, device: Device) -> None:
    before = live()
    for n in (1, 2, 3, 4):
        with fail(f"hipMallocAsync:{n}"), pytest.raises(HipError):
            PagedKVCache(1, 4, 4, 1, 8, dtype="float8_e4m3", stream=device.default_stream)
        assert live() == before


@pytest.mark.parametrize("size", [0, -1, 2.5])
@pytest.mark.parametrize("name", ["layers", "pages", "page_size", "heads_kv", "head_dim", "value_dim"])
def test_sizes_must_be_positive(name: str, size: Any) -> None:
    before = live()
    sizes: dict[str, Any] = {"layers": 1, "pages": 1, "page_size": 1, "heads_kv": 1, "head_dim": 1} | {name: size}
    with pytest.raises(ArgumentError, match=f"{name} is {size}"):
        PagedKVCache(**sizes)
    assert live() == before


def test_a_closed_cache_says_so(stream: Stream) -> None:
    cache = PagedKVCache(1, 4, 4, 1, 8, dtype=np.float32, stream=stream)
    one = cache.new()
    k = upload(stream, np.zeros((1, 1, 1, 8), np.float32))[0]
    cache.close()
    cache.close()
    for call in (
        lambda: cache.new(),
        lambda: cache.fork(one),
        lambda: cache.extend([one], 1),
        lambda: cache.pages_needed([one], 1),
        lambda: cache.truncate(one, 0),
        lambda: cache.free(one),
        lambda: cache.evict(4, [one]),
        lambda: cache.append(0, [one], k, k),
        lambda: cache.lengths([one]),
        lambda: cache.keys(),
    ):
        with pytest.raises(ClosedError):
            call()
