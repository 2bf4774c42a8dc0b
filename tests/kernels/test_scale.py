"""scale_inplace against NumPy, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from hipattn import Device, DeviceTensor, Stream
from hipattn.errors import ArgumentError, ClosedError
from hipattn.kernels import rows, scale
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import Padded
from tests.helpers.tolerance import DTYPES

LENGTHS = (1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 4096, 20000)


def scaled(x: np.ndarray, factor: float) -> np.ndarray:
    return (x.astype(np.float32) * np.float32(factor)).astype(x.dtype)


@pytest.mark.parametrize("columns", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(device: Device, dtype: np.dtype, columns: int) -> None:
    rng = np.random.default_rng(columns)
    with Stream(device) as stream:
        for shape in ((columns,), (3, columns)):
            # Contiguous, padded to aligned rows, at odd addresses.
            for before, after in ((0, 0), (8, -columns % 8 + 8), (1, 2)):
                x = (rng.standard_normal(shape) * 100).astype(dtype)
                array = Padded(stream, x, before=before, after=after)
                scale.launch(array.tensor, 0.1234567, stream=stream)
                assert_close(array.numpy(), scaled(x, 0.1234567))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values(device: Device, dtype: np.dtype) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, float(np.finfo(np.float16).max)] * 3, dtype)
    with Stream(device) as stream:
        for factor in (2.0, -0.5, 0.0, np.inf, np.nan):
            tensor = DeviceTensor.from_numpy(x, stream=stream)
            scale.launch(tensor, factor, stream=stream)
            with np.errstate(invalid="ignore", over="ignore"):
                assert_close(tensor.numpy(), scaled(x, factor))


def test_empty(device: Device) -> None:
    with Stream(device) as stream:
        for shape in ((0,), (3, 0), (0, 5)):
            scale.launch(DeviceTensor.empty(shape, stream=stream), 2.0, stream=stream)


def test_more_work_than_blocks(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 3)
    scale._plan.cache_clear()
    with Stream(device) as stream:
        for shape in ((9000,), (7, 1500), (300, 40)):
            x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            array = Padded(stream, x, after=4)
            scale.launch(array.tensor, 3.0, stream=stream)
            assert_close(array.numpy(), scaled(x, 3.0))
    scale._plan.cache_clear()


def test_refuses(device: Device) -> None:
    with Stream(device) as stream:
        x = DeviceTensor.from_numpy(np.ones((4, 6, 8), np.float32), stream=stream)
        for bad in (x[:, :, ::2], x[:, :5, :7], x.transpose(1, 0, 2)):
            with pytest.raises(ArgumentError, match="x has"):
                scale.launch(bad, 2.0, stream=stream)
        x.buffer.close()
        with pytest.raises(ClosedError):
            scale.launch(x, 2.0, stream=stream)
