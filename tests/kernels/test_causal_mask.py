"""causal_mask_kernel against NumPy: -inf above the diagonal, every other bit as it was."""

from __future__ import annotations

import numpy as np
import pytest

from hipattn import Device, DeviceTensor, Stream
from hipattn.attn.reference import causal_mask as seen_keys
from hipattn.errors import ArgumentError
from hipattn.kernels import causal_mask, rows
from tests.helpers.padded import Padded, same_bits
from tests.helpers.tolerance import DTYPES

SHAPES = [
    (1, 1),
    (1, 9),
    (9, 1),
    (2, 2),
    (5, 5),
    (31, 33),
    (33, 5),  # less than a sector
    (33, 31),
    (70, 160),
    (64, 64),
    (65, 63),
    (3, 257),
    (257, 3),
    (20, 4096),
]


def unsigned(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"u{dtype.itemsize}")


def any_bits(seed: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Return numbers, infinities and NaNs of any payload."""
    kind = unsigned(dtype)
    return np.random.default_rng(seed).integers(0, np.iinfo(kind).max, shape, kind, endpoint=True).view(dtype)


def masked(scores: np.ndarray) -> np.ndarray:
    kind = unsigned(scores.dtype)
    hidden = np.array(-np.inf, scores.dtype).view(kind)
    return np.where(seen_keys(*scores.shape[-2:]), scores.view(kind), hidden).view(scores.dtype)


@pytest.mark.parametrize(("seq_q", "seq_k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(device: Device, dtype: np.dtype, seq_q: int, seq_k: int) -> None:
    scores = any_bits(seq_q, (2, 3, seq_q, seq_k), dtype)
    expected = masked(scores)
    with Stream(device) as stream:
        for before, after in ((0, 0), (8, -seq_k % 8), (0, -seq_k % 16), (1, 2)):
            array = Padded(stream, scores, before=before, after=after)
            causal_mask.launch(array.tensor, stream=stream)
            assert same_bits(array.numpy(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_begin_and_end_anywhere_in_a_sector(device: Device, dtype: np.dtype) -> None:
    scores = any_bits(1, (2, 40, 37), dtype)
    expected = masked(scores)
    with Stream(device) as stream:
        for before in range(16):
            for stride in (64, 37 + before):  # all rows begin alike, or each elsewhere
                array = Padded(stream, scores, before=before, after=stride - before - 37)
                causal_mask.launch(array.tensor, stream=stream)
                assert same_bits(array.numpy(), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_signalling_nans_that_are_seen_stay(device: Device, dtype: np.dtype) -> None:
    """An element that is written back has not been a number on the way: that would set a bit of it."""
    infinity = np.array(np.inf, dtype).view(unsigned(dtype))
    scores = np.full((2, 50, 64), infinity + 1).view(dtype)
    with Stream(device) as stream:
        tensor = DeviceTensor.from_numpy(scores, stream=stream)
        causal_mask.launch(tensor, stream=stream)
        assert same_bits(tensor.numpy(), masked(scores))


def test_a_wave_passes_along_a_row(device: Device) -> None:
    scores = any_bits(2, (2, 1100, 1101), np.dtype(np.float32))
    with Stream(device) as stream:
        tensor = DeviceTensor.from_numpy(scores, stream=stream)
        causal_mask.launch(tensor, stream=stream)
        assert same_bits(tensor.numpy(), masked(scores))


def test_a_single_matrix(device: Device) -> None:
    with Stream(device) as stream:
        scores = DeviceTensor.from_numpy(np.zeros((3, 4), np.float32), stream=stream)
        causal_mask.launch(scores, stream=stream)
        assert (np.isneginf(scores.numpy()) == ~seen_keys(3, 4)).all()


def test_empty(device: Device) -> None:
    with Stream(device) as stream:
        for shape in ((2, 0, 5), (2, 5, 0), (0, 5, 5)):
            causal_mask.launch(DeviceTensor.empty(shape, stream=stream), stream=stream)


def test_more_rows_than_blocks(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 2)
    causal_mask._plan.cache_clear()
    scores = any_bits(3, (7, 190, 67), np.dtype(np.float32))  # more than two blocks have threads, too
    with Stream(device) as stream:
        array = Padded(stream, scores)
        causal_mask.launch(array.tensor, stream=stream)
        assert same_bits(array.numpy(), masked(scores))
    causal_mask._plan.cache_clear()


def test_refuses(device: Device) -> None:
    with Stream(device) as stream:
        x = DeviceTensor.from_numpy(np.ones((4, 6, 8), np.float32), stream=stream)
        for bad in (x[0, 0], x[:, :5], x.transpose(0, 2, 1)):
            with pytest.raises(ArgumentError, match="scores has"):
                causal_mask.launch(bad, stream=stream)
