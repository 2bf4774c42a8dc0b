"""kv_append: the new tokens are where they belong, bit for bit, and nothing else has changed."""

from __future__ import annotations

import numpy as np
import pytest

from hipattn import Device, DeviceTensor, Stream
from hipattn.errors import ArgumentError
from hipattn.kernels import kv_append, rows
from tests.helpers.padded import same_bits
from tests.helpers.tolerance import DTYPES


def random(shape: tuple[int, ...], dtype: np.dtype, seed: int) -> np.ndarray:
    """Return random bits: NaN payloads, infinities and subnormals among them."""
    count = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(count), dtype).reshape(shape)


@pytest.mark.parametrize(("k_dim", "v_dim"), [(1, 1), (5, 3), (16, 16), (64, 64), (64, 24), (40, 128), (257, 257)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_appends(device: Device, dtype: np.dtype, k_dim: int, v_dim: int) -> None:
    batch, heads, capacity = 2, 3, 9
    expected = [random((batch, capacity, heads, dim), dtype, dim) for dim in (k_dim, v_dim)]
    expected = [cache.copy() for cache in expected]
    with Stream(device) as stream:
        caches = [DeviceTensor.from_numpy(cache, stream=stream) for cache in expected]
        position = 0
        for tokens in (4, 1, 0, 3, 1):
            new = [random((batch, tokens, heads, dim), dtype, tokens) for dim in (k_dim, v_dim)]
            tensors = [DeviceTensor.from_numpy(array, stream=stream) for array in new]
            kv_append.launch(*tensors, *caches, position, stream=stream)
            for cache, array in zip(expected, new, strict=True):
                cache[:, position : position + tokens] = array
            position += tokens
        for cache, tensor in zip(expected, caches, strict=True):
            assert same_bits(tensor.numpy(), cache)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [6, 32])
def test_slices_of_packed_qkv(device: Device, dtype: np.dtype, dim: int) -> None:
    packed = random((2, 5, 4 + 2 + 2, dim), dtype, 0)  # 4 query heads, 2 key and 2 value heads
    expected = random((2, 2, 7, 2, dim), dtype, 1).copy()  # keys and values, layout bhsd seen as bshd below
    with Stream(device) as stream:
        qkv = DeviceTensor.from_numpy(packed, stream=stream)
        caches = DeviceTensor.from_numpy(expected.swapaxes(2, 3), stream=stream)
        k_cache, v_cache = (caches[i].transpose(0, 2, 1, 3) for i in (0, 1))
        kv_append.launch(qkv[:, :, 4:6], qkv[:, :, 6:], k_cache, v_cache, 2, stream=stream)
        expected[0, :, 2:] = packed[:, :, 4:6]
        expected[1, :, 2:] = packed[:, :, 6:]
        assert same_bits(caches.numpy(), np.ascontiguousarray(expected.swapaxes(2, 3)))


def test_more_rows_than_blocks(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 2)
    kv_append._plan.cache_clear()
    new = random((2, 30, 3, 20), DTYPES[0], 0)
    with Stream(device) as stream:
        tensor = DeviceTensor.from_numpy(new, stream=stream)
        caches = [DeviceTensor.from_numpy(np.zeros_like(new), stream=stream) for _ in range(2)]
        kv_append.launch(tensor, tensor, *caches, 0, stream=stream)
        assert all(same_bits(cache.numpy(), new) for cache in caches)
    kv_append._plan.cache_clear()


def test_refuses(device: Device) -> None:
    with Stream(device) as stream:
        k, v, wide = (
            DeviceTensor.from_numpy(np.zeros((2, 3, 2, dim), np.float16), stream=stream) for dim in (8, 4, 16)
        )
        caches = [DeviceTensor.from_numpy(np.zeros((2, 5, 2, dim), np.float16), stream=stream) for dim in (8, 4)]
        other = DeviceTensor.from_numpy(np.zeros((2, 5, 2, 4), np.float32), stream=stream)
        for arguments, message in (
            ((k, v, *caches, 3), "position is 3"),
            ((k, v, *caches, -1), "position is -1"),
            ((k[0], v, *caches, 0), "k has shape"),
            ((k, v[:, :2], *caches, 0), "v has shape"),
            ((k, v, caches[1], caches[1], 0), "k_cache has shape"),
            ((k, v, caches[0], caches[1][:1], 0), "v_cache has shape"),
            ((k, v, caches[0], other, 0), "v_cache is float32"),
            ((wide[:, :, :, ::2], v, *caches, 0), "k has strides"),
        ):
            with pytest.raises(ArgumentError, match=message):
                kv_append.launch(*arguments, stream=stream)
