"""confine_nonfinite against NumPy: columns of v with a NaN or infinity are summed again, nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import Device, DeviceTensor, Stream
from hipattn.attn.reference import causal_mask, weighted_sum
from hipattn.errors import ArgumentError
from hipattn.kernels import confine
from hipattn.runtime import bindings
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import Padded, same_bits
from tests.helpers.tolerance import DTYPES, EPSILON, magnitude

# batch, heads_q, heads_kv, seq_q, seq_k, value_dim
SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (1, 2, 2, 5, 5, 31),
    (2, 4, 2, 7, 13, 32),
    (2, 6, 1, 13, 7, 33),
    (3, 2, 2, 33, 65, 70),
    (1, 2, 1, 300, 290, 33),
]


def random(dtype: np.dtype, shape: tuple[int, ...]) -> tuple[NDArray, NDArray, NDArray]:
    """Return causal weights, values, and an output to be put right."""
    batch, heads_q, heads_kv, seq_q, seq_k, value_dim = shape
    rng = np.random.default_rng(seq_k)
    weights = rng.random((batch, heads_q, seq_q, seq_k)) * causal_mask(seq_q, seq_k)
    v = rng.standard_normal((batch, heads_kv, seq_k, value_dim))
    out = rng.standard_normal((batch, heads_q, seq_q, value_dim))
    return weights.astype(dtype), v.astype(dtype), out.astype(dtype)


def in_nan(stream: Stream, array: NDArray) -> DeviceTensor:
    """Upload a [batch, heads, rows, columns] array as a view of [batch, rows, heads, columns], with NaN around it."""
    batch, heads, rows, columns = array.shape
    whole = np.full((batch, rows, heads, columns + 5), np.nan, array.dtype)
    whole[..., 3:-2] = array.swapaxes(1, 2)
    return DeviceTensor.from_numpy(whole, stream=stream)[..., 3 : 3 + columns].transpose(0, 2, 1, 3)


def summed_again(weights: NDArray, v: NDArray, out: NDArray) -> NDArray:
    """Return `out` in float64 with the columns of the kernel's concern replaced."""
    expected, group = out.astype(np.float64), weights.shape[1] // v.shape[1]
    for b, h in np.ndindex(*weights.shape[:2]):
        values = v[b, h // group].astype(np.float64)
        spoilt = ~np.isfinite(values).all(axis=0)
        sums = weighted_sum(weights[b, h].astype(np.float64), values, causal_mask(*weights.shape[2:]))
        expected[b, h][:, spoilt] = sums[:, spoilt]
    return expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(device: Device, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    weights, v, out = random(dtype, shape)
    rng = np.random.default_rng(0)
    for value in (np.nan, np.inf, -np.inf, np.inf, -np.inf, np.nan):
        v[tuple(rng.integers(v.shape))] = value
    v[0, 0, 0, 0], v[-1, -1, -1, -1] = np.inf, np.nan
    expected = summed_again(weights, v, out)
    with Stream(device) as stream:
        for after in (0, 5):
            rows = Padded(stream, weights, after=after)
            # Heads beside each other, as attention has them.
            target = Padded(stream, out.swapaxes(1, 2), before=after, after=after)
            values = in_nan(stream, v) if after else DeviceTensor.from_numpy(v, stream=stream)
            confine.launch(rows.tensor, values, target.tensor.transpose(0, 2, 1, 3), stream=stream)
            found = target.numpy().swapaxes(1, 2)
            assert_close(found, expected, rtol=EPSILON[dtype], atol=1e-5 * magnitude(expected))
            same = expected == out.astype(np.float64)
            assert same_bits(found[same], out[same])


@pytest.mark.parametrize("place", [(0, 0), (12, 0), (0, 32), (6, 31), (12, 69)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_changes_one_column_of_the_heads_that_read_it(
    device: Device, value: float, place: tuple[int, int]
) -> None:
    weights, v, out = random(DTYPES[0], (2, 4, 2, 7, 13, 70))
    v[1, 0, *place] = value
    expected = summed_again(weights, v, out)
    seen = np.flatnonzero(causal_mask(7, 13)[:, place[0]])
    with Stream(device) as stream:
        target = DeviceTensor.from_numpy(out, stream=stream)
        confine.launch(*(DeviceTensor.from_numpy(a, stream=stream) for a in (weights, v)), target, stream=stream)
        found = target.numpy()
    assert_close(found, expected, atol=1e-5 * magnitude(expected))
    assert {tuple(at) for at in np.argwhere(~np.isfinite(found))} == {(1, h, i, place[1]) for h in (0, 1) for i in seen}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nothing_is_touched_where_all_is_finite(device: Device, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    weights, v, out = random(dtype, shape)
    out[...] = np.nan
    v.flat[0] = np.finfo(np.float16).max  # large is not infinite
    with Stream(device) as stream:
        target = Padded(stream, out, before=1, after=3)
        confine.launch(in_nan_rows(stream, weights), in_nan(stream, v), target.tensor, stream=stream)
        assert same_bits(target.numpy(), out)


def in_nan_rows(stream: Stream, weights: NDArray) -> DeviceTensor:
    """Upload weights with NaN between their rows."""
    columns = weights.shape[-1]
    whole = np.full((*weights.shape[:-1], columns + 3), np.nan, weights.dtype)
    whole[..., :columns] = weights
    return DeviceTensor.from_numpy(whole, stream=stream)[..., :columns]


def test_empty(stream: Stream) -> None:
    for shape in ((0, 2, 1, 3, 4, 5), (2, 2, 1, 0, 4, 5), (2, 2, 1, 3, 0, 5), (2, 2, 1, 3, 4, 0)):
        tensors = [DeviceTensor.from_numpy(array, stream=stream) for array in random(DTYPES[0], shape)]
        with bindings.record() as calls:
            confine.launch(*tensors, stream=stream)
        assert not [name for name, _ in calls if "Launch" in name]


def test_refuses_rows_that_are_not_evenly_spaced(stream: Stream) -> None:
    tensors = [DeviceTensor.from_numpy(array, stream=stream) for array in random(DTYPES[0], (2, 4, 2, 7, 7, 8))]
    weights, v, out = tensors
    for bad in (weights.transpose(0, 1, 3, 2), weights.transpose(0, 2, 1, 3)):
        with pytest.raises(ArgumentError, match="weights has"):
            confine.launch(bad, v, out, stream=stream)
