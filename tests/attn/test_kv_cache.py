"""The KV cache: what it holds after appends, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hipattn import ArgumentError, CacheFullError, ClosedError, KVCache, Stream
from hipattn.runtime import bindings
from hipattn.runtime.buffer import live
from tests.helpers.inputs import upload
from tests.helpers.tolerance import DTYPES


def rows(batch: int, tokens: int, heads: int, dim: int, dtype: Any, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((batch, tokens, heads, dim)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(64, 64), (7, 12), (1, 33)])
def test_append_keeps_what_is_there(stream: Stream, dtype: np.dtype, head_dim: int, value_dim: int) -> None:
    with KVCache(3, 2, 40, 3, head_dim, value_dim=value_dim, dtype=dtype, stream=stream) as cache:
        keys, values = rows(2, 40, 3, head_dim, dtype), rows(2, 40, 3, value_dim, dtype, 1)
        for start, stop in ((0, 17), (17, 18), (18, 40)):
            cache.append(1, *upload(stream, keys[:, start:stop], values[:, start:stop]), stream=stream)
            k, v = cache.view(1)
            assert k.numpy().tobytes() == keys[:, :stop].tobytes()
            assert v.numpy().tobytes() == values[:, :stop].tobytes()
        assert [cache.length(layer) for layer in range(3)] == [0, 40, 0]


def test_append_takes_strided_views(stream: Stream) -> None:
    packed = rows(2, 5, 2 * 3, 16, np.float32)
    (tensor,) = upload(stream, packed)
    with KVCache(1, 2, 5, 3, 16, dtype=np.float32, stream=stream) as cache:
        cache.append(0, tensor[:, :, :3], tensor[:, :, 3:], stream=stream)
        k, v = cache.view()
        assert k.numpy().tobytes() == packed[:, :, :3].tobytes()
        assert v.numpy().tobytes() == packed[:, :, 3:].tobytes()


def test_a_full_cache_says_so_and_stays_as_it_was(stream: Stream) -> None:
    with KVCache(2, 1, 8, 2, 4, dtype=np.float32, stream=stream) as cache:
        kv = rows(1, 6, 2, 4, np.float32)
        cache.append(0, *upload(stream, kv, kv), stream=stream)
        with pytest.raises(CacheFullError, match="layer 0 holds 6 of 8 tokens; 6 more"):
            cache.append(0, *upload(stream, kv, kv), stream=stream)
        assert cache.length(0) == 6
        assert cache.view(0)[0].numpy().tobytes() == kv.tobytes()
        cache.append(1, *upload(stream, kv, kv), stream=stream)


def test_reset_and_truncate(stream: Stream) -> None:
    with KVCache(1, 1, 8, 2, 4, dtype=np.float32, stream=stream) as cache:
        kv = rows(1, 6, 2, 4, np.float32)
        cache.append(0, *upload(stream, kv, kv), stream=stream)
        cache.truncate(0, 2)
        cache.append(0, *upload(stream, kv, kv), stream=stream)
        assert cache.view()[0].numpy().tobytes() == np.concatenate([kv[:, :2], kv], 1).tobytes()
        with pytest.raises(ArgumentError, match="length is 9"):
            cache.truncate(0, 9)
        cache.reset()
        assert cache.length() == 0
        assert cache.view()[0].shape == (1, 0, 2, 4)


@pytest.mark.parametrize(
    ("k", "v", "message"),
    [
        ((1, 3, 2, 4), (2, 3, 2, 4), "k has shape"),
        ((2, 3, 1, 4), (2, 3, 2, 4), "k has shape"),
        ((2, 3, 2, 5), (2, 3, 2, 4), "k has shape"),
        ((2, 3, 2, 4), (2, 2, 2, 4), "v has shape"),
        ((2, 3, 4), (2, 3, 2, 4), "k has shape"),
    ],
)
def test_shapes_that_do_not_fit(stream: Stream, k: Any, v: Any, message: str) -> None:
    with KVCache(1, 2, 8, 2, 4, dtype=np.float32, stream=stream) as cache:
        tensors = upload(stream, np.zeros(k, np.float32), np.zeros(v, np.float32))
        with pytest.raises(ArgumentError, match=message):
            cache.append(0, *tensors, stream=stream)
        assert cache.length() == 0


def test_dtype_and_layer_that_do_not_fit(stream: Stream) -> None:
    with KVCache(1, 1, 8, 2, 4, dtype=np.float16, stream=stream) as cache:
        tensors = upload(stream, *[np.zeros((1, 1, 2, 4), np.float32)] * 2)
        with pytest.raises(ArgumentError, match="k is float32; the cache holds float16"):
            cache.append(0, *tensors, stream=stream)
        with pytest.raises(ArgumentError, match="layer is 1"):
            cache.view(1)


@pytest.mark.parametrize("size", [0, -1, 2.5])
@pytest.mark.parametrize("name", ["layers", "batch", "capacity", "heads_kv", "head_dim", "value_dim"])
def test_sizes_must_be_positive(name: str, size: Any) -> None:
    before = live()
    sizes: dict[str, Any] = {"layers": 1, "batch": 1, "capacity": 1, "heads_kv": 1, "head_dim": 1} | {name: size}
    with pytest.raises(ArgumentError, match=f"{name} is {size}"):
        KVCache(**sizes)
    assert live() == before


def test_what_is_written_without_it_is_counted(stream: Stream) -> None:
    with KVCache(2, 1, 5, 2, 4, dtype=np.float32, stream=stream) as cache:
        keys, values = cache.whole(1)
        assert keys.shape == values.shape == (1, 5, 2, 4)
        keys.copy_from(np.arange(40, dtype=np.float32).reshape(keys.shape), stream=stream)
        cache.advance(1, 2)
        cache.advance(1, 1)
        assert [cache.length(layer) for layer in range(2)] == [0, 3]
        assert cache.view(1)[0].numpy().ravel().tolist() == list(range(24))
        with pytest.raises(CacheFullError, match="layer 1 holds 3 of 5 tokens; 3 more do not fit"):
            cache.advance(1, 3)
        with pytest.raises(ArgumentError, match="layer is 2"):
            cache.advance(2, 1)
        with pytest.raises(ArgumentError, match="tokens is -1"):
            cache.advance(1, -1)
        assert cache.length(1) == 3


def test_lengths_on_the_device(stream: Stream) -> None:
    """They stay as they are when the layer grows, are uploaded once, and are the cache's to free."""
    before = live()
    with KVCache(2, 3, 9, 2, 4, dtype=np.float32, stream=stream) as cache:
        memory = cache.nbytes
        empty = cache.lengths(1)
        assert cache.nbytes == memory + 4 * 3 * 10
        with bindings.record() as calls:
            cache.advance(1, 9)
            full = cache.lengths(1)
            cache.truncate(1, 4)
            some, other = cache.lengths(1), cache.lengths(0)
        assert not calls
        assert [x.numpy().tolist() for x in (empty, full, some, other)] == [[n] * 3 for n in (0, 9, 4, 0)]
        assert all(x.dtype == np.int32 and x.is_contiguous for x in (empty, full))
        with pytest.raises(ArgumentError, match="layer is 2"):
            cache.lengths(2)
    with pytest.raises(ClosedError):
        cache.lengths(0)
    assert live() == before


def test_a_closed_cache_says_so(stream: Stream) -> None:
    cache = KVCache(1, 1, 8, 2, 4, dtype=np.float32, stream=stream)
    tensors = upload(stream, *[np.zeros((1, 1, 2, 4), np.float32)] * 2)
    cache.close()
    cache.close()
    with pytest.raises(ClosedError):
        cache.append(0, *tensors, stream=stream)
    with pytest.raises(ClosedError):
        cache.advance(0, 1)
    with pytest.raises(ClosedError):
        cache.reset()
    assert cache.length() == 0


def test_float8_is_for_pages() -> None:
    with pytest.raises(ArgumentError, match=r"dtype is float8_e4m3; .* a PagedKVCache holds float8_e4m3 too"):
        KVCache(1, 1, 4, 1, 8, dtype="float8_e4m3")
