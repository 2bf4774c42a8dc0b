"""add against NumPy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from hipattn import DeviceTensor, Stream
from hipattn.errors import ArgumentError
from hipattn.kernels import add, rows
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import Padded
from tests.helpers.pairwise import pairwise
from tests.helpers.tolerance import DTYPES

LENGTHS = (1, 31, 32, 33, 257, 1000, 4096)
FLOAT32, FLOAT16, BFLOAT16 = DTYPES


def total(a: np.ndarray, b: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (a.astype(np.float32) + b.astype(np.float32)).astype(dtype)


@pytest.mark.parametrize("columns", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(stream: Stream, dtype: np.dtype, columns: int) -> None:
    rng = np.random.default_rng(columns)
    for shape in ((columns,), (3, columns), (2, 3, columns)):
        for before, after in ((0, 0), (8, -columns % 8 + 8), (1, 2)):
            padding = {"before": before, "after": after}
            a, b = rng.standard_normal((2, *shape)).astype(dtype)
            for other in (b, b.reshape(-1, columns)[0]):
                first, second = (Padded(stream, array, **padding) for array in (a, other))
                out = Padded.poisoned(stream, shape, dtype, **padding)
                add.launch(first.tensor, second.tensor, out.tensor, stream=stream)
                assert_close(out.numpy(), total(a, other, dtype))
                add.launch(first.tensor, second.tensor, stream=stream)
                assert_close(first.numpy(), total(a, other, dtype))
            second = Padded(stream, b, **padding)
            add.launch(Padded(stream, a, **padding).tensor, second.tensor, second.tensor, stream=stream)
            assert_close(second.numpy(), total(a, b, dtype))


TRIPLES = [tuple(row.values()) for row in pairwise(dict.fromkeys(("a", "b", "out"), DTYPES))]


@pytest.mark.parametrize("dtypes", TRIPLES, ids=lambda three: "-".join(map(str, three)))
def test_dtypes(stream: Stream, dtypes: tuple[np.dtype, np.dtype, np.dtype]) -> None:
    a, b = np.random.default_rng(0).standard_normal((2, 5, 24))
    a, b = a.astype(dtypes[0]), b.astype(dtypes[1])
    out = Padded.poisoned(stream, a.shape, dtypes[2])
    add.launch(*(DeviceTensor.from_numpy(x, stream=stream) for x in (a, b)), out.tensor, stream=stream)
    assert_close(out.numpy(), total(a, b, dtypes[2]))


def test_special_values(stream: Stream) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 65504.0, 1.0], FLOAT16)
    a, b = np.repeat(values, 7), np.tile(values, 7)
    tensors = [DeviceTensor.from_numpy(x, stream=stream) for x in (a, b)]
    add.launch(*tensors, stream=stream)
    with np.errstate(invalid="ignore", over="ignore"):
        assert_close(tensors[0].numpy(), total(a, b, FLOAT16))


def test_more_work_than_blocks(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 3)
    add._plan.cache_clear()
    for shape in ((9000,), (7, 1500), (300, 40)):
        a = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        array, bias = Padded(stream, a, after=4), np.arange(shape[-1], dtype=np.float32)
        add.launch(array.tensor, DeviceTensor.from_numpy(bias, stream=stream), stream=stream)
        assert_close(array.numpy(), a + bias)
    add._plan.cache_clear()


def test_empty(stream: Stream) -> None:
    for shape in ((0,), (3, 0), (0, 5)):
        a, b = (DeviceTensor.empty(size, stream=stream) for size in (shape, shape[-1:]))
        add.launch(a, a, stream=stream)
        add.launch(a, b, stream=stream)


def test_refuses(stream: Stream) -> None:
    a, b = (DeviceTensor.from_numpy(np.ones((4, 6), np.float32), stream=stream) for _ in range(2))
    integers = DeviceTensor.from_numpy(np.ones((4, 6), np.int32), stream=stream)
    for arguments, message in (
        ((a, b[:3]), "b has shape"),
        ((a, b[0, :4]), "b has shape"),
        ((a, b, a[:3]), "out has shape"),
        ((a, integers), "b's dtype is int32"),
        ((a[:, ::2], b[:, :3]), "a has strides"),
    ):
        with pytest.raises(ArgumentError, match=message):
            add.launch(*arguments, stream=stream)
