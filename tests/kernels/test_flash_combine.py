"""One result of parts of the keys, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from hipattn import ArgumentError, DeviceTensor, Stream
from hipattn.kernels import flash_combine
from tests.helpers.framed import Framed
from tests.helpers.inputs import Array, poisoned, upload
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import DTYPES, EPSILON


def parts_of(shape: tuple[int, ...], value_dim: int, spread: float = 30.0) -> tuple[Array, Array]:
    """Return parts and their LSE, one of three without weight, which holds NaN."""
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((*shape, value_dim)).astype(np.float32)
    lse = (rng.standard_normal(shape) * spread).astype(np.float32)
    empty = rng.random(shape) < 1 / 3
    parts[empty], lse[empty] = np.nan, -np.inf
    return parts, lse


def combined(parts: Array, lse: Array) -> tuple[Array, Array]:
    """Return the result, [batch, seq_q, heads, value_dim], and its natural LSE."""
    lse = lse.astype(np.float64) * np.log(2)
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.logaddexp.reduce(lse, axis=3)
        weights = np.where(lse == -np.inf, 0, np.exp(lse - np.where(total == -np.inf, 0, total)[..., None]))
        out = (weights[..., None] * np.where(weights[..., None] == 0, 0, parts)).sum(axis=3)
    return out.swapaxes(1, 2), total


@pytest.mark.parametrize("splits", [1, 2, 5, 64, 256])
@pytest.mark.parametrize(("dtype", "value_dim"), [(DTYPES[0], 64), (DTYPES[1], 7), (DTYPES[2], 300), (DTYPES[0], 1030)])
def test_parts_and_sizes(stream: Stream, splits: int, dtype: np.dtype, value_dim: int) -> None:
    parts, part_lse = parts_of((2, 3, 2, splits), value_dim)
    part_lse[1, 2, 0] = -np.inf  # a row that sees no key
    parts[1, 2, 0] = np.nan
    expected, expected_lse = combined(parts, part_lse)
    out = Framed(stream, expected.shape, dtype)
    lse = poisoned(stream, expected_lse.shape, np.float32)
    flash_combine.launch(*upload(stream, parts, part_lse), out.tensor, lse=lse, stream=stream)
    tolerance = max(EPSILON[dtype], 1e-6)
    assert_close(out.numpy(), expected, atol=tolerance * 4, rtol=tolerance, name="out")
    assert_close(lse.numpy(), expected_lse, atol=1e-5, rtol=1e-6, name="lse")
    assert not out.numpy()[1, 0, 2].any()


def test_a_nan_stays_in_its_row_and_column(stream: Stream) -> None:
    parts, part_lse = parts_of((1, 2, 2, 6), 40, spread=3.0)
    part_lse[:] = np.where(part_lse == -np.inf, 0, part_lse)
    parts[:] = np.where(np.isnan(parts), 1, parts)
    parts[0, 0, 1, 3, 9] = np.nan  # of v
    parts[0, 1, 0, 2], part_lse[0, 1, 0, 2] = np.nan, np.nan  # of q or k
    out = poisoned(stream, (1, 2, 2, 40), np.float32)
    lse = poisoned(stream, (1, 2, 2), np.float32)
    flash_combine.launch(*upload(stream, parts, part_lse), out, lse=lse, stream=stream)
    wrong = np.zeros((1, 2, 2, 40), bool)
    wrong[0, 1, 0, 9] = wrong[0, 0, 1] = True
    assert np.array_equal(np.isnan(out.numpy()), wrong)
    assert np.argwhere(np.isnan(lse.numpy())).tolist() == [[0, 1, 0]]


def test_what_does_not_fit_is_refused(stream: Stream) -> None:
    parts, part_lse = upload(stream, *parts_of((1, 2, 1, 257), 4))
    out = DeviceTensor.empty((1, 1, 2, 4), stream=stream)
    with pytest.raises(ArgumentError, match="at most 256 parts"):
        flash_combine.launch(parts, part_lse, out, stream=stream)
    with pytest.raises(ArgumentError, match="do not fit together"):
        flash_combine.launch(parts, part_lse, out[:, :, :1], stream=stream)
