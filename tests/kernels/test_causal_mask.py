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
    (33, 31),
    (64, 64),
    (65, 63),
    (3, 257),
    (257, 3),
    (20, 4096),
]


@pytest.mark.parametrize(("seq_q", "seq_k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_numpy(device: Device, dtype: np.dtype, seq_q: int, seq_k: int) -> None:
    scores = np.random.default_rng(seq_q).standard_normal((2, 3, seq_q, seq_k)).astype(dtype)
    scores[0, 1] = np.nan
    expected = np.where(seen_keys(seq_q, seq_k), scores, dtype.type(-np.inf))
    with Stream(device) as stream:
        for before, after in ((0, 0), (8, -seq_k % 8), (1, 2)):
            array = Padded(stream, scores, before=before, after=after)
            causal_mask.launch(array.tensor, stream=stream)
            assert same_bits(array.numpy(), expected)


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
    scores = np.ones((3, 40, 2100), np.float32)
    with Stream(device) as stream:
        array = Padded(stream, scores)
        causal_mask.launch(array.tensor, stream=stream)
        assert same_bits(array.numpy(), np.where(seen_keys(40, 2100), scores, np.float32(-np.inf)))
    causal_mask._plan.cache_clear()


def test_refuses(device: Device) -> None:
    with Stream(device) as stream:
        x = DeviceTensor.from_numpy(np.ones((4, 6, 8), np.float32), stream=stream)
        for bad in (x[0, 0], x[:, :5], x.transpose(0, 2, 1)):
            with pytest.raises(ArgumentError, match="scores has"):
                causal_mask.launch(bad, stream=stream)
