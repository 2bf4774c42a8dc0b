"""embedding against NumPy."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import DeviceTensor, Stream
from hipattn.errors import ArgumentError
from hipattn.kernels import embedding, rows
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import Padded
from tests.helpers.tolerance import DTYPES

FLOAT32, FLOAT16, BFLOAT16 = DTYPES


def looked_up(scale: float, *pairs: tuple[NDArray, NDArray], dtype: np.dtype) -> NDArray:
    """Return the sum in float32, in the kernel's order, rounded once."""
    (table, ids), *added = pairs
    total = table.astype(np.float32)[ids] * np.float32(scale)
    for more, places in added:
        total = total + more.astype(np.float32)[places]
    return total.astype(dtype)


def random(size: int, columns: int, dtype: np.dtype, seed: int = 0) -> NDArray:
    return np.random.default_rng(seed).standard_normal((size, columns)).astype(dtype)


@pytest.mark.parametrize("columns", [1, 5, 32, 64, 300, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(stream: Stream, dtype: np.dtype, columns: int) -> None:
    table = random(37, columns, dtype)
    for shape, (before, after) in product(((9,), (2, 5), (1, 1)), ((0, 0), (8, -columns % 8), (1, 2))):
        ids = np.random.default_rng(1).integers(0, 37, shape)
        source = Padded(stream, table, before=before, after=after)
        for places in (ids, DeviceTensor.from_numpy(ids.astype(np.int32), stream=stream)):
            out = Padded.poisoned(stream, (*shape, columns), dtype, before=before, after=after)
            embedding.launch(source.tensor, places, out.tensor, stream=stream)
            assert_close(out.numpy(), table[ids])


@pytest.mark.parametrize("dtypes", list(product(DTYPES, DTYPES)), ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_a_sum_of_three_tables(stream: Stream, dtypes: tuple[np.dtype, np.dtype]) -> None:
    words, places, kinds = (random(size, 40, dtypes[0], size) for size in (50, 16, 2))
    rng = np.random.default_rng(0)
    ids, types = rng.integers(0, 50, (3, 7)), rng.integers(0, 2, (3, 7))
    positions = np.broadcast_to(np.arange(7), (3, 7))
    tables = [DeviceTensor.from_numpy(table, stream=stream) for table in (words, places, kinds)]
    line = DeviceTensor.from_numpy(np.arange(7, dtype=np.int32), stream=stream).broadcast_to((3, 7))
    on_device = [DeviceTensor.from_numpy(array.astype(np.int32), stream=stream) for array in (ids, types)]
    out = Padded.poisoned(stream, (3, 7, 40), dtypes[1], after=3)
    added = ((tables[1], line), (tables[2], on_device[1]))
    for count in (1, 2):
        embedding.launch(tables[0], on_device[0], out.tensor, scale=2.5, added=added[:count], stream=stream)
        more = ((places, positions), (kinds, types))[:count]
        expected = looked_up(2.5, (words, ids), *more, dtype=dtypes[1])
        # A multiplication and an addition may be rounded together.
        assert_close(
            out.numpy(), expected, rtol=float(np.finfo(np.float32).eps) if dtypes[1] == FLOAT32 else 0.008, atol=1e-6
        )


@pytest.mark.parametrize("wrong", [-1, 5, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("which", [0, 1])
def test_an_id_outside_makes_its_row_nan(stream: Stream, which: int, wrong: int) -> None:
    table, other = random(5, 12, FLOAT32), random(5, 12, FLOAT32, 1)
    ids = np.array([[0, 1, 2, 3, 4, 0]] * 2, np.int32)
    ids[which, 3] = wrong
    good = np.where(ids == wrong, 0, ids)
    out = Padded.poisoned(stream, (6, 12), FLOAT32, before=4)
    tables = [DeviceTensor.from_numpy(array, stream=stream) for array in (table, other)]
    places = DeviceTensor.from_numpy(ids, stream=stream)
    embedding.launch(tables[0], places[0], out.tensor, added=((tables[1], places[1]),), stream=stream)
    expected = table[good[0]] + other[good[1]]
    expected[3] = np.nan
    assert_close(out.numpy(), expected)
    with pytest.raises(ArgumentError, match=f"has {wrong} at \\(3,\\); .* rows 0 to 4"):
        embedding.launch(tables[0], ids[0], out.tensor, added=((tables[1], ids[1]),), stream=stream)


def test_more_rows_than_blocks(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 2)
    embedding._plan.cache_clear()
    table, ids = random(11, 300, FLOAT16), np.random.default_rng(1).integers(0, 11, (3, 40))
    out = Padded.poisoned(stream, (3, 40, 300), FLOAT16, after=4)
    embedding.launch(DeviceTensor.from_numpy(table, stream=stream), ids, out.tensor, stream=stream)
    assert_close(out.numpy(), table[ids])
    embedding._plan.cache_clear()


def test_empty(stream: Stream) -> None:
    table = DeviceTensor.from_numpy(random(3, 4, FLOAT32), stream=stream)
    embedding.launch(table, np.zeros((2, 0), int), DeviceTensor.empty((2, 0, 4), stream=stream), stream=stream)
    embedding.launch(table[:, :0], np.zeros(2, int), DeviceTensor.empty((2, 0), stream=stream), stream=stream)


def test_refuses(stream: Stream) -> None:
    table, half = (DeviceTensor.from_numpy(random(3, 4, dtype), stream=stream) for dtype in (FLOAT32, FLOAT16))
    out = DeviceTensor.empty((2, 4), stream=stream)
    ids = DeviceTensor.from_numpy(np.zeros(2, np.int32), stream=stream)
    for arguments, options, message in (
        ((table, ids, out[:1]), {}, "out has shape"),
        ((table, np.zeros(2, np.float32), out), {}, "ids is float32"),
        ((table, table[0, :2], out), {}, "ids is float32"),
        ((table[0], ids, out), {}, "table has shape"),
        ((table, ids, out), {"added": ((half, ids),)}, r"added\[0\]'s table is float16"),
        ((table, ids, out), {"added": ((table, ids[:1]),)}, r"added\[0\]'s ids is int32"),
        ((table, ids, out), {"added": ((table, ids),) * 3}, "added has 3"),
        ((table.transpose(1, 0)[:, :2], ids, out[:, :2]), {}, "table has strides"),
    ):
        with pytest.raises(ArgumentError, match=message):
            embedding.launch(*arguments, stream=stream, **options)
