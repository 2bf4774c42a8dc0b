"""paged_append: the new tokens are where the table places them, bit for bit, and nothing else has changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import ArgumentError, Device, DeviceTensor, Stream
from hipattn.kernels import float8, paged_append, rows
from tests.helpers.padded import same_bits
from tests.helpers.pairwise import pairwise
from tests.helpers.tolerance import DTYPES

FLOAT32, FLOAT16, BFLOAT16 = DTYPES


def bits(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> NDArray[Any]:
    """Return random bits: NaN payloads, infinities and subnormals among them."""
    count = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(count), dtype).reshape(shape).copy()


class Pools:
    """Pools of random bits on the device, and what they should hold."""

    def __init__(
        self, stream: Stream, pages: int, page_size: int, heads: int, dims: tuple[int, int], dtype: np.dtype
    ) -> None:
        self.stream, self.page_size = stream, page_size
        self.expected = [bits((pages, page_size, heads, dim), dtype, dim) for dim in dims]
        self.tensors = [DeviceTensor.from_numpy(pool, stream=stream) for pool in self.expected]

    def append(
        self, k: DeviceTensor, v: DeviceTensor, lengths: Any, table: NDArray[np.int32], counts: Any = None
    ) -> None:
        """Append to the pools on the device; with `counts`, packed."""
        starts = None if counts is None else np.cumsum([0, *counts])
        indices = (None if x is None else DeviceTensor.from_numpy(np.asarray(x, np.int32), stream=self.stream)
                   for x in (lengths, table, starts))  # fmt: skip
        options = dict(zip(("lengths", "block_table", "starts"), indices, strict=True))
        paged_append.launch(k, v, *self.tensors, **options, stream=self.stream)  # type: ignore[arg-type]

    def place(self, new: tuple[NDArray[Any], NDArray[Any]], b: int, t: int, position: int, page: int) -> None:
        """Write one token to what the pools should hold: [b, t] of the new ones, or t if they are packed."""
        for pool, tokens in zip(self.expected, new, strict=True):
            pool[page, position % self.page_size] = tokens[b, t] if tokens.ndim == 4 else tokens[t]

    def check(self) -> None:
        for pool, tensor in zip(self.expected, self.tensors, strict=True):
            assert same_bits(tensor.numpy(), pool)


def table_of(pages: int, lengths: list[int], page_size: int, seed: int = 0) -> NDArray[np.int32]:
    """Return a block table in which no page occurs twice; what is behind a sequence's pages is outside the pool."""
    order = iter(np.random.default_rng(seed).permutation(pages))
    width = max(-(-length // page_size) for length in lengths)
    table = np.full((len(lengths), width), 2**31 - 1, np.int32)
    for b, length in enumerate(lengths):
        for number in range(-(-length // page_size)):
            table[b, number] = next(order)
    return table


CASES = pairwise(
    {
        "dtype": DTYPES,
        "page_size": (1, 8, 16, 128, 256),
        "dims": ((64, 64), (1, 1), (5, 3), (40, 128), (257, 257)),
        "heads": (1, 3),
        "packed": (False, True),
        "tokens": (1, 4, 37),
    }
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())).replace(" ", ""))
def test_appends(stream: Stream, case: dict[str, Any]) -> None:
    dtype, page_size, dims, heads, tokens = (case[name] for name in ("dtype", "page_size", "dims", "heads", "tokens"))
    # Sequences that are new, that end at a page's end and start with the next one, and that are in the midst of one.
    lengths = [before + tokens for before in (0, page_size, page_size + page_size // 2, 3)]
    counts = [tokens] * 4
    if case["packed"]:
        counts = [tokens, 0, max(1, tokens // 2), 2 if tokens > 1 else 1]
    pages = sum(-(-length // page_size) for length in lengths) + 2
    table = table_of(pages, lengths, page_size)
    pools = Pools(stream, pages, page_size, heads, dims, dtype)
    shape = (sum(counts),) if case["packed"] else (4, tokens)
    new = tuple(bits((*shape, heads, dim), dtype, 7 * dim + 1) for dim in dims)
    k, v = (DeviceTensor.from_numpy(array, stream=stream) for array in new)
    pools.append(k, v, lengths, table, counts if case["packed"] else None)
    at = 0
    for b, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        for t in range(count):
            position = length - count + t
            pools.place(new, b, at if case["packed"] else t, position, table[b, position // page_size])
            at += 1
    pools.check()


@pytest.mark.parametrize("packed", [False, True])
def test_slices_of_packed_qkv_into_a_layer_of_pools(stream: Stream, packed: bool) -> None:
    qkv = bits((3, 2, 4 + 2 + 2, 24), FLOAT16, 0)  # 4 query heads, 2 key and 2 value heads
    layers = bits((2, 5, 4, 2, 24), FLOAT16, 1)  # of keys and values
    lengths, table = [2, 5, 7], table_of(5, [2, 5, 7], 4)
    tensor = DeviceTensor.from_numpy(qkv.reshape(6, 8, 24) if packed else qkv, stream=stream)
    pools = DeviceTensor.from_numpy(layers, stream=stream)
    starts = DeviceTensor.from_numpy(np.array([0, 2, 4, 6], np.int32), stream=stream) if packed else None
    on_device = [DeviceTensor.from_numpy(np.asarray(x, np.int32), stream=stream) for x in (lengths, table)]
    paged_append.launch(
        *(tensor[..., 4:6, :], tensor[..., 6:, :], pools[0], pools[1]),
        **dict(zip(("lengths", "block_table"), on_device, strict=True)),
        starts=starts,
        stream=stream,
    )
    for b, length in enumerate(lengths):
        for t in range(2):
            position = length - 2 + t
            layers[:, table[b, position // 4], position % 4] = qkv[b, t, 4:].reshape(2, 2, 24)
    assert same_bits(pools.numpy(), layers)


def test_what_the_table_places_outside_is_not_written(stream: Stream) -> None:
    lengths = [3, 9, 4, 1, 4]  # of 8 that the table has room for; one that holds less than its two new tokens
    table = np.array([[0, 9], [1, 2], [-1, 3], [4, 0], [8, 5]], np.int32)  # of pages 0 to 7
    for counts in (None, [2] * 5):
        pools = Pools(stream, 8, 4, 2, (8, 4), FLOAT32)
        new = tuple(bits((*((10,) if counts else (5, 2)), 2, dim), FLOAT32, dim + 1) for dim in (8, 4))
        k, v = (DeviceTensor.from_numpy(array, stream=stream) for array in new)
        pools.append(k, v, lengths, table, counts)
        for b, t, position in ((0, 0, 1), (0, 1, 2), (1, 0, 7), (3, 1, 0)):
            pools.place(new, b, 2 * b + t if counts else t, position, table[b, position // 4])
        pools.check()


def test_starts_that_do_not_fit_write_nothing_else(stream: Stream) -> None:
    pools = Pools(stream, 4, 4, 1, (4, 4), FLOAT32)
    new = tuple(bits((6, 1, 4), FLOAT32, seed) for seed in (3, 4))
    k, v = (DeviceTensor.from_numpy(array, stream=stream) for array in new)
    table = np.array([[2, 0], [3, 1]], np.int32)
    starts = DeviceTensor.from_numpy(np.array([1, 3, 5], np.int32), stream=stream)  # not of token 0, nor of token 5
    indices = [DeviceTensor.from_numpy(np.asarray(x, np.int32), stream=stream) for x in ([5, 2], table)]
    options = dict(zip(("lengths", "block_table"), indices, strict=True))
    paged_append.launch(k, v, *pools.tensors, **options, starts=starts, stream=stream)
    for b, t, position in ((0, 1, 3), (0, 2, 4), (1, 3, 0), (1, 4, 1)):
        pools.place(new, b, t, position, table[b, position // 4])
    pools.check()


FORMATS = {float8.E4M3_OCP: 448.0, float8.E4M3_FNUZ: 240.0}  # and the largest number of each


def quantised(x: NDArray[Any], scales: NDArray[np.float32], kind: np.dtype) -> NDArray[Any]:
    """Return what a pool is to hold of x, [..., heads, dim]."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x.astype(np.float32) / scales[:, None]
        return np.clip(scaled, -FORMATS[kind], FORMATS[kind]).astype(kind)


def same_floats(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two arrays are the same bit for bit where they are numbers, and NaN in the same places."""
    nan = np.isnan(a.astype(np.float32))
    return np.array_equal(nan, np.isnan(b.astype(np.float32))) and same_bits(a[~nan], b[~nan])


def every(dtype: np.dtype) -> NDArray[Any]:
    """Return each number of a 16-bit dtype, or many of float32: around each that e4m3 has, and each tie."""
    if dtype.itemsize == 2:
        return np.arange(2**16, dtype=np.uint16).view(dtype)
    codes = np.concatenate([np.arange(256, dtype=np.uint8).view(kind).astype(np.float32) for kind in FORMATS])
    known = np.unique(codes[np.isfinite(codes)])
    around = np.concatenate([known, (known[1:] + known[:-1]) / 2, np.array([464, 248, np.inf, np.nan], np.float32)])
    near = [around, np.nextafter(around, np.float32(np.inf)), np.nextafter(around, np.float32(-np.inf))]
    both = np.concatenate([*near, bits((2**14,), FLOAT32, 0)])
    return np.resize(both, 2**15)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", [False, True])
def test_e4m3_of_every_number(stream: Stream, dtype: np.dtype, packed: bool) -> None:
    kind = float8.e4m3(stream.device.arch)
    assert (kind == float8.E4M3_FNUZ) == (stream.device.arch == "gfx942")
    k = every(dtype).reshape(-1, 8, 2, 64)  # as many sequences as it takes, of 8 tokens
    batch, v = len(k), k[:, ::-1, :, 5:22].copy()
    scales = [np.array(each, np.float32) for each in ([1, 0.37], [2.0**-8, 3])]
    table = np.random.default_rng(0).permutation(batch + 1)[:batch, None].astype(np.int32)
    expected = [np.full((batch + 1, 9, *x.shape[2:]), 0x55, np.uint8) for x in (k, v)]
    pools = [DeviceTensor.from_numpy(pool, stream=stream) for pool in expected]
    shape = (batch * 8, 2, -1) if packed else (batch, 8, 2, -1)
    indices = (np.full(batch, 9), table, np.arange(batch + 1) * 8)
    lengths, pages, starts = (DeviceTensor.from_numpy(np.asarray(x, np.int32), stream=stream) for x in indices)
    paged_append.launch(
        *(DeviceTensor.from_numpy(x.reshape(shape), stream=stream) for x in (k, v)),
        *pools,
        lengths=lengths,
        block_table=pages,
        starts=starts if packed else None,
        scales=tuple(DeviceTensor.from_numpy(each, stream=stream) for each in scales),  # type: ignore[arg-type]
        stream=stream,
    )
    for pool, tensor, x, scale in zip(expected, pools, (k, v), scales, strict=True):
        pool[table[:, 0], 1:] = quantised(x, scale, kind).view(np.uint8)
        assert same_floats(tensor.numpy().view(kind), pool.view(kind))


def test_more_rows_than_blocks(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 2)
    paged_append._plan.cache_clear()
    with Stream(device) as stream:
        pools = Pools(stream, 9, 8, 3, (20, 20), FLOAT32)
        new = tuple(bits((2, 30, 3, 20), FLOAT32, seed) for seed in (1, 2))
        k, v = (DeviceTensor.from_numpy(array, stream=stream) for array in new)
        table = table_of(9, [33, 30], 8)
        pools.append(k, v, [33, 30], table)
        for b, before in enumerate((3, 0)):
            for t in range(30):
                pools.place(new, b, t, before + t, table[b, (before + t) // 8])
        pools.check()
    paged_append._plan.cache_clear()


@pytest.mark.parametrize("shape", [(0, 1, 2, 8), (2, 0, 2, 8), (2, 1, 0, 8), (0, 2, 8)], ids=str)
def test_empty(stream: Stream, shape: tuple[int, ...]) -> None:
    k = DeviceTensor.empty(shape, stream=stream)
    pool = DeviceTensor.empty((3, 4, *shape[-2:]), stream=stream)
    lengths, table, starts = (DeviceTensor.empty(s, np.int32, stream=stream) for s in ((2,), (2, 1), (3,)))
    batch = 2 if len(shape) == 3 else shape[0]
    options = {"starts": starts} if len(shape) == 3 else {}
    paged_append.launch(k, k, pool, pool, lengths=lengths[:batch], block_table=table[:batch], **options, stream=stream)


def test_refuses(stream: Stream) -> None:
    def tensor(*shape: int, dtype: Any = np.float16) -> DeviceTensor:
        return DeviceTensor.from_numpy(np.zeros(shape, dtype), stream=stream)

    k, v, k_pool, v_pool = tensor(2, 3, 2, 8), tensor(2, 3, 2, 4), tensor(5, 4, 2, 8), tensor(5, 4, 2, 4)
    good = {"k": k, "v": v, "k_pool": k_pool, "v_pool": v_pool}
    good |= {"lengths": tensor(2, dtype=np.int32), "block_table": tensor(2, 3, dtype=np.int32)}
    packed = good | {"k": tensor(6, 2, 8), "v": tensor(6, 2, 4), "starts": tensor(3, dtype=np.int32)}
    bytes_ = {name: tensor(*good[name].shape, dtype=np.uint8) for name in ("k_pool", "v_pool")}
    scale = tensor(2, dtype=np.float32)
    for arguments, message in (
        (good | {"scales": (scale, scale)}, "k_pool is float16; it takes uint8"),
        (good | bytes_, "k_pool is uint8; it takes float16"),
        (good | bytes_ | {"scales": (scale, tensor(3, dtype=np.float32))}, "v_scales is float32"),
        (good | bytes_ | {"scales": (tensor(2), scale)}, "k_scales is float16"),
        (good | {"k": k[0]}, r"k has shape \(3, 2, 8\); it takes \[batch, tokens"),
        (good | {"v": v[:, :2]}, "v has shape"),
        (good | {"k_pool": v_pool}, "k_pool has shape"),
        (good | {"v_pool": v_pool[:4]}, "v_pool has shape"),
        (good | {"k_pool": k_pool[:, :0], "v_pool": v_pool[:, :0]}, "5 pages of 0 tokens"),
        (good | {"v_pool": tensor(5, 4, 2, 4, dtype=np.float32)}, "v_pool is float32"),
        (good | {"k": tensor(2, 3, 2, 16)[..., ::2]}, "k has strides"),
        (good | {"lengths": tensor(3, dtype=np.int32)}, r"lengths is int32 \(3,\)"),
        (good | {"lengths": tensor(2)}, "lengths is float16"),
        (good | {"block_table": tensor(3, 2, dtype=np.int32).transpose(1, 0)}, "block_table is int32"),
        (good | {"block_table": tensor(2, dtype=np.int32)}, "block_table is int32"),
        (packed | {"k": k}, r"k has shape \(2, 3, 2, 8\); it takes \[total, heads_kv, dim\]"),
        (packed | {"starts": tensor(2, dtype=np.int32)}, "starts is int32"),
    ):
        with pytest.raises(ArgumentError, match=message):
            paged_append.launch(**arguments, stream=stream)
