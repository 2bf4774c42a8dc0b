"""convert against NumPy and ml_dtypes, bit for bit but for which NaN."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from hipattn import Device, DeviceTensor, Stream
from hipattn.errors import ArgumentError
from hipattn.kernels import convert
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import Padded, same_bits
from tests.helpers.tolerance import BFLOAT16, DTYPES, EPSILON

PAIRS = list(permutations(DTYPES, 2))
LENGTHS = (1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 4096, 20000)


@pytest.fixture(params=PAIRS, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def dtypes(request: pytest.FixtureRequest) -> tuple[np.dtype, np.dtype]:
    return request.param


def test_equals_numpy(device: Device, dtypes: tuple[np.dtype, np.dtype]) -> None:
    with Stream(device) as stream:
        for columns in LENGTHS:
            x = np.random.default_rng(columns).standard_normal((3, columns)).astype(dtypes[0])
            for before, after in ((0, 0), (8, -columns % 8), (1, 2)):
                array = Padded(stream, x, before=before, after=after)
                out = Padded.poisoned(stream, x.shape, dtypes[1], before=after, after=before)
                convert.launch(array.tensor, out.tensor, stream=stream)
                assert same_bits(out.numpy(), x.astype(dtypes[1]))


def test_every_value(device: Device, dtypes: tuple[np.dtype, np.dtype]) -> None:
    source, target = dtypes
    if source.itemsize == 2:
        x = np.arange(2**16, dtype=np.uint16).view(source)
    else:
        # Each value of the narrow type, halfway to the next, and a little to both sides of that.
        values = np.arange(2**16, dtype=np.uint16).view(target).astype(np.float32)
        values = values[np.isfinite(values)]
        halfway = values + values * np.float32(EPSILON[target] / 2)
        near = [np.nextafter(halfway, np.float32(sign * np.inf)) for sign in (1, -1)]
        x = np.concatenate([values, halfway, *near, np.float32([np.nan, np.inf, -np.inf, 3e38, -1e-45])])
    with np.errstate(over="ignore", invalid="ignore"), Stream(device) as stream:
        out = Padded.poisoned(stream, x.shape, target)
        convert.launch(DeviceTensor.from_numpy(x, stream=stream), out.tensor, stream=stream)
        expected = x.astype(target)
        actual = out.numpy()
    assert_close(actual, expected)
    numbers = ~np.isnan(expected.astype(np.float32))
    assert same_bits(actual[numbers], expected[numbers])


def test_empty_and_strided(device: Device) -> None:
    with Stream(device) as stream:
        empty = DeviceTensor.empty((3, 0), stream=stream)
        convert.launch(empty, DeviceTensor.empty((3, 0), BFLOAT16, stream=stream), stream=stream)
        x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32)
        out = Padded.poisoned(stream, x.shape, np.float16, after=3)
        convert.launch(DeviceTensor.from_numpy(x, stream=stream), out.tensor, stream=stream)
        assert same_bits(out.numpy(), x.astype(np.float16))


def test_refuses(device: Device) -> None:
    with Stream(device) as stream:
        x = DeviceTensor.from_numpy(np.ones((4, 6), np.float32), stream=stream)
        with pytest.raises(ArgumentError, match="out has shape"):
            convert.launch(x, x[:3], stream=stream)
        with pytest.raises(ArgumentError, match="out has strides"):
            convert.launch(x[:, :3], x[:, ::2], stream=stream)
