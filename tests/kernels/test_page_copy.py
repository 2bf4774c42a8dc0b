"""page_copy: the pages are where they belong in every layer, bit for bit, and nothing else has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import ArgumentError, Device, DeviceTensor, Stream
from hipattn.kernels import page_copy, rows
from tests.helpers.padded import same_bits
from tests.helpers.tolerance import DTYPES

FLOAT32, FLOAT16, BFLOAT16 = DTYPES


def check(stream: Stream, k_shape: tuple[int, ...], v_shape: tuple[int, ...], dtype: Any, copies: Any) -> None:
    rng = np.random.default_rng(0)
    expected: list[NDArray[Any]] = []
    for shape in (k_shape, v_shape):
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        expected.append(np.frombuffer(rng.bytes(nbytes), dtype).reshape(shape).copy())
    pools = [DeviceTensor.from_numpy(pool, stream=stream) for pool in expected]
    page_copy.launch(*pools, copies, stream=stream)
    for pool, tensor in zip(expected, pools, strict=True):
        for page, own in copies:
            pool[:, own] = pool[:, page]
        assert same_bits(tensor.numpy(), pool)


@pytest.mark.parametrize(
    ("page", "dtype"),
    [
        ((1, 1, 1), FLOAT16),  # 2 bytes
        ((1, 3, 5), FLOAT32),
        ((16, 2, 64), BFLOAT16),
        ((3, 1, 3), np.dtype(np.uint8)),
        ((128, 2, 40), FLOAT16),  # more than a block moves at once
    ],
    ids=str,
)
@pytest.mark.parametrize("copies", [[(0, 3)], [(4, 1), (4, 0), (2, 5)]], ids=["one", "three"])
def test_copies(stream: Stream, page: tuple[int, ...], dtype: Any, copies: Sequence[tuple[int, int]]) -> None:
    check(stream, (3, 6, *page), (3, 6, *page[:2], page[2] + 3), dtype, copies)


def test_more_copies_than_a_launch_takes(stream: Stream) -> None:
    count = page_copy.MAX_COPIES + 7
    copies = [(int(page), count + i) for i, page in enumerate(np.random.default_rng(0).permutation(count))]
    check(stream, (2, 2 * count, 2, 8), (2, 2 * count, 2, 8), FLOAT32, copies)


def test_more_rows_than_blocks(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 2)
    page_copy._plan.cache_clear()
    with Stream(device) as stream:
        check(stream, (5, 8, 300), (5, 8, 5000), FLOAT32, [(0, 4), (1, 5), (2, 7)])
    page_copy._plan.cache_clear()


def test_no_copies(stream: Stream) -> None:
    check(stream, (2, 3, 4), (2, 3, 5), FLOAT32, [])


def test_refuses(stream: Stream) -> None:
    pool, other = (DeviceTensor.empty((2, 3, count), stream=stream) for count in (4, 8))
    for k, v, copies, message in (
        (pool, pool[:1], [], "v_pool has shape"),
        (pool, pool[:, :2], [], "v_pool has shape"),
        (other[:, :, ::2], pool, [], "k_pool has shape"),
        (pool[0, 0], pool[0, 0], [], "k_pool has shape"),
        (pool, other, [(0, 3)], "copies has page 3; the pools have pages 0 to 2"),
        (pool, other, [(-1, 1)], "copies is -1"),
        (pool, other, [(0, 1), (2, 1)], "each page is written once"),
        (pool, other, [(0, 1), (1, 2)], "none that is read"),
    ):
        with pytest.raises(ArgumentError, match=message):
            page_copy.launch(k, v, copies, stream=stream)
