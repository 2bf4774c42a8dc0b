"""attention_softmax against float64."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hipattn import Device, DeviceTensor, Stream
from hipattn.attn.reference import causal_mask, softmax_rows
from hipattn.compiler.target import wave_size
from hipattn.errors import ArgumentError
from hipattn.kernels import softmax
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import Padded
from tests.helpers.tolerance import BFLOAT16, DTYPES, EPSILON

LENGTHS = (1, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1000, 4096, 20000, 60001)
FLOAT32 = np.dtype(np.float32)
# float32 arithmetic: the exponent's rounding grows with the distance to the maximum, here up to 30.
RTOL = 1e-5
SMALLEST = {FLOAT32: 2.0**-126, np.dtype(np.float16): 2.0**-24, BFLOAT16: 2.0**-126}


def check(
    stream: Stream,
    scores: np.ndarray,
    out_dtype: np.dtype,
    *,
    before: int = 0,
    after: int = 0,
    in_place: bool = False,
) -> None:
    """Compare probabilities and LSE with float64, in poisoned outputs."""
    array = Padded(stream, scores, before=before, after=after)
    out = array if in_place else Padded.poisoned(stream, scores.shape, out_dtype, before=before, after=after)
    lse = Padded.poisoned(stream, scores.shape[:-1], FLOAT32)
    softmax.launch(array.tensor, out.tensor, lse=lse.tensor, stream=stream)
    with np.errstate(invalid="ignore"):
        expected, expected_lse = softmax_rows(scores.astype(np.float64))
    tolerance = {"rtol": RTOL + EPSILON[out_dtype] / 2, "atol": SMALLEST[out_dtype]}
    assert_close(out.numpy(), expected, **tolerance, name="probabilities")
    assert_close(lse.numpy(), expected_lse, rtol=1e-6, atol=1e-6, name="lse")


@pytest.mark.parametrize("columns", LENGTHS)
def test_lengths(device: Device, columns: int) -> None:
    scores = 3 * np.random.default_rng(columns).standard_normal((5, columns)).astype(np.float32)
    with Stream(device) as stream:
        # Aligned rows, and rows at odd addresses.
        for before, after in ((4, -columns % 4), (1, 2)):
            check(stream, scores, FLOAT32, before=before, after=after)
            check(stream, scores, FLOAT32, before=before, after=after, in_place=True)


@pytest.mark.parametrize("dtypes", list(product(DTYPES, DTYPES)), ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_dtypes(device: Device, dtypes: tuple[np.dtype, np.dtype]) -> None:
    with Stream(device) as stream:
        for columns, before, after in ((24, 0, 0), (100, 1, 0), (3000, 0, 0)):
            scores = 3 * np.random.default_rng(columns).standard_normal((3, columns)).astype(np.float32)
            check(stream, scores.astype(dtypes[0]), dtypes[1], before=before, after=after)


# Rows in registers of part of a wave, of a wave and of a block, and rows of which a rest is read twice.
CAUSAL = [(5, 5), (7, 3), (3, 40), (40, 33), (9, 300), (301, 300), (6, 5000), (2100, 2050), (5, 20000)]
CAUSAL += [(5, 60000), (20, 49155)]


@pytest.mark.parametrize(("seq_q", "seq_k"), CAUSAL)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_causal(stream: Stream, seq_q: int, seq_k: int, dtype: np.dtype) -> None:
    """The same bits as with the scores masked before; NaN where no key is seen is not read."""
    shape = 1 if seq_q > 100 else 3, seq_q, seq_k
    scores = 3 * np.random.default_rng(seq_q).standard_normal(shape).astype(np.float32)
    scores[-1, -1, 0], scores[-1, seq_q // 2, 1] = np.nan, np.inf
    seen = causal_mask(seq_q, seq_k)
    for before, after, in_place in ((0, -seq_k % 8, False), (1, 2, dtype == FLOAT32)):
        results = []
        for values, causal in ((np.where(seen, scores, -np.inf), False), (np.where(seen, scores, np.nan), True)):
            array = Padded(stream, values.astype(np.float32), before=before, after=after)
            out = array if in_place else Padded.poisoned(stream, shape, dtype, before=before, after=after)
            lse = Padded.poisoned(stream, shape[:-1], FLOAT32)
            softmax.launch(array.tensor, out.tensor, causal=causal, lse=lse.tensor, stream=stream)
            results.append((out.numpy(), lse.numpy()))
        for masked, found in zip(*results, strict=True):
            np.testing.assert_array_equal(found.astype(np.float32), masked.astype(np.float32))


@pytest.mark.parametrize("columns", [7, 64, 300, 5000, 20000, 60000])
def test_special_rows(device: Device, columns: int) -> None:
    scores = np.random.default_rng(0).standard_normal((12, columns)).astype(np.float32)
    scores[1] = -np.inf
    scores[2, columns // 2] = np.nan
    scores[3] = np.nan
    scores[4, -1] = np.inf
    scores[5, 1:] = -np.inf
    scores[6, :-1] = -np.inf
    scores[7] = -1e30
    scores[8] = 1e30
    scores[9] = scores[9] - 2.5e5
    scores[10, 0], scores[10, 1:] = np.nan, -np.inf
    with Stream(device) as stream:
        check(stream, scores, FLOAT32, after=-columns % 4)
        check(stream, scores, FLOAT32, before=1)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65])
def test_numbers_of_rows(device: Device, rows: int) -> None:
    with Stream(device) as stream:
        for columns in (5, 40, 100):
            check(
                stream,
                np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32),
                FLOAT32,
            )


def test_more_rows_than_blocks(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "MAX_BLOCKS", 2)
    softmax._plan.cache_clear()
    with Stream(device) as stream:
        for shape in ((3, 50, 9), (5, 3000), (3, 50000)):
            check(stream, np.random.default_rng(1).standard_normal(shape).astype(np.float32), FLOAT32)
    softmax._plan.cache_clear()


def test_empty(device: Device) -> None:
    with Stream(device) as stream:
        check(stream, np.zeros((3, 0), np.float32), FLOAT32)
        softmax.launch(DeviceTensor.empty((3, 0), stream=stream), stream=stream)
        softmax.launch(DeviceTensor.empty((0, 3), stream=stream), stream=stream)


def test_same_bits_each_time(device: Device) -> None:
    scores = np.random.default_rng(0).standard_normal((4, 1000)).astype(np.float32)
    with Stream(device) as stream:
        results = []
        for _ in range(3):
            tensor = DeviceTensor.from_numpy(scores, stream=stream)
            softmax.launch(tensor, stream=stream)
            results.append(tensor.numpy().tobytes())
    assert len(set(results)) == 1


def test_choose_covers_the_row() -> None:
    lengths = (*range(1, 70), *LENGTHS, 8192, 16384, 16385, 32768, 32769, 10**7)
    for columns, vector, arch in product(lengths, (1, 2, 4, 8), ("gfx906", "gfx942", "gfx1100", "sm_90")):
        chosen = softmax.choose_long(columns, vector, arch)
        block, group, held, wave = chosen["BLOCK"], chosen["GROUP"], chosen["HELD"], wave_size(arch)
        assert block % wave == 0
        assert group <= wave or group == block
        assert block % group == 0
        assert group >= vector
        assert held % vector == 0
        assert chosen["LONG"] == (columns > held * group)
        kept = columns if columns <= softmax.MAX_HELD * softmax.MAX_BLOCK else 0
        assert bool(kept) == bool(softmax.choose(columns, vector, wave)["HELD"])
        assert not (kept and chosen["LONG"])
        assert held >= softmax.MAX_HELD or kept


def test_refuses(device: Device) -> None:
    with Stream(device) as stream:
        x = DeviceTensor.from_numpy(np.ones((4, 6), np.float32), stream=stream)
        half = DeviceTensor.from_numpy(np.ones((4, 6), np.float16), stream=stream)
        with pytest.raises(ArgumentError, match="out"):
            softmax.launch(x, half[:, :5], stream=stream)
        with pytest.raises(ArgumentError, match=r"scores has shape \(7,\); with causal it takes \[..., seq_q, seq_k\]"):
            softmax.launch(DeviceTensor.empty((7,), stream=stream), causal=True, stream=stream)
        with pytest.raises(ArgumentError, match="scores has strides"):
            softmax.launch(x.transpose(1, 0), stream=stream)
        for lse in (half[:, 0], x[0], x[:, 0]):
            with pytest.raises(ArgumentError, match="lse is"):
                softmax.launch(x, lse=lse, stream=stream)
