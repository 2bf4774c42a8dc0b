"""norm_rows against float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import Device, DeviceTensor, Stream
from hipattn.errors import ArgumentError
from hipattn.kernels import norm
from hipattn.runtime import bindings
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import Padded
from tests.helpers.pairwise import pairwise
from tests.helpers.tolerance import BFLOAT16, DTYPES, EPSILON

LENGTHS = (1, 5, 31, 64, 65, 257, 1000, 4096, 20000)
FLOAT32, FLOAT16, _ = DTYPES
EPS = 1e-5


def normal(
    x: NDArray, weight: NDArray, bias: NDArray | None, *, kind: str, residual: NDArray | None = None
) -> NDArray[np.float64]:
    """Return the formula in float64."""
    y = x.astype(np.float64)
    if residual is not None:
        y = y + residual.astype(np.float64)
    if kind == "layer":
        y = y - y.mean(axis=-1, keepdims=True)
    y = y / np.sqrt((y * y).mean(axis=-1, keepdims=True) + EPS) * weight.astype(np.float64)
    return y if bias is None else y + bias.astype(np.float64)


def check(
    stream: Stream,
    shape: tuple[int, ...],
    dtypes: tuple[np.dtype, np.dtype, np.dtype],
    *,
    kind: str,
    bias: bool = False,
    residual: bool = False,
    in_place: bool = False,
    before: int = 0,
    after: int = 0,
) -> None:
    """Compare the result, and the sum, with float64, in poisoned outputs."""
    rng = np.random.default_rng(shape[-1])
    in_dtype, out_dtype, weight_dtype = dtypes
    x, other = (3 * rng.standard_normal((2, *shape)) + 1).astype(in_dtype)
    weight, shift = rng.standard_normal((2, shape[-1])).astype(weight_dtype)
    padding = {"before": before, "after": after}
    source = Padded(stream, x, **padding)
    out = source if in_place and not residual else Padded.poisoned(stream, shape, out_dtype, **padding)
    arguments = {}
    if bias:
        arguments["bias"] = Padded(stream, shift, before=before).tensor
    if residual:
        total = source if in_place else Padded.poisoned(stream, shape, in_dtype, **padding)
        arguments |= {"residual": Padded(stream, other, **padding).tensor, "sum_out": total.tensor}
    weights = Padded(stream, weight, before=before)
    norm.launch(source.tensor, weights.tensor, out.tensor, eps=EPS, kind=kind, stream=stream, **arguments)
    expected = normal(x, weight, shift if bias else None, kind=kind, residual=other if residual else None)
    # What is left of a difference to the mean has lost digits: relative to the row's spread.
    assert_close(out.numpy(), expected, rtol=1e-6 + EPSILON[out_dtype] / 2, atol=4e-6, name="result")
    if residual:
        assert_close(total.numpy(), (x.astype(np.float32) + other.astype(np.float32)).astype(in_dtype), name="sum")


@pytest.mark.parametrize("columns", LENGTHS)
@pytest.mark.parametrize("kind", norm.KINDS)
def test_lengths(stream: Stream, kind: str, columns: int) -> None:
    for before, after, more in ((4, -columns % 4, kind == "rms"), (1, 2, kind != "rms")):
        padding = {"before": before, "after": after, "bias": more, "residual": more}
        check(stream, (5, columns), (FLOAT32,) * 3, kind=kind, **padding)
        check(stream, (5, columns), (FLOAT32,) * 3, kind=kind, in_place=True, **padding)


TRIPLES = [tuple(row.values()) for row in pairwise(dict.fromkeys(("in", "out", "weight"), DTYPES))]


@pytest.mark.parametrize("dtypes", TRIPLES, ids=lambda three: "-".join(map(str, three)))
def test_dtypes(stream: Stream, dtypes: tuple[np.dtype, np.dtype, np.dtype]) -> None:
    check(stream, (3, 24), dtypes, kind="rms", residual=True)
    check(stream, (2, 3, 100), dtypes, kind="layer", bias=True, before=1)


@pytest.mark.parametrize("rows", [1, 2, 63, 65])
def test_numbers_of_rows(stream: Stream, rows: int) -> None:
    for columns in (5, 40, 300):
        check(stream, (rows, columns), (FLOAT16,) * 3, kind="layer", bias=True)


def test_more_rows_than_blocks(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "MAX_BLOCKS", 2)
    norm._plan.cache_clear()
    for shape in ((3, 50, 9), (5, 3000), (3, 17000)):
        check(stream, shape, (FLOAT32,) * 3, kind="rms", residual=True)
    norm._plan.cache_clear()


@pytest.mark.parametrize("columns", [8, 300, 20000])
def test_a_row_far_from_zero(stream: Stream, columns: int) -> None:
    """The mean is 1000 times the spread: a difference of sums of squares would lose all but two digits."""
    rng = np.random.default_rng(0)
    x, weight = (1000 + rng.standard_normal((3, columns))).astype(np.float32), np.ones(columns, np.float32)
    out = Padded.poisoned(stream, x.shape, FLOAT32)
    tensors = (DeviceTensor.from_numpy(array, stream=stream) for array in (x, weight))
    norm.launch(*tensors, out.tensor, eps=EPS, kind="layer", stream=stream)
    assert_close(out.numpy(), normal(x, weight, None, kind="layer"), rtol=1e-4, atol=3e-4)


@pytest.mark.parametrize("columns", [7, 300, 20000])
@pytest.mark.parametrize("kind", norm.KINDS)
def test_special_values_stay_in_their_rows(stream: Stream, kind: str, columns: int) -> None:
    x = np.random.default_rng(0).standard_normal((5, columns)).astype(np.float32)
    x[1, columns // 2], x[2, -1], x[3] = np.nan, np.inf, 0.0
    weight = np.ones(columns, np.float32)
    tensor = DeviceTensor.from_numpy(x, stream=stream)
    norm.launch(tensor, DeviceTensor.from_numpy(weight, stream=stream), eps=EPS, kind=kind, stream=stream)
    with np.errstate(invalid="ignore"):
        assert_close(tensor.numpy(), normal(x, weight, None, kind=kind), rtol=1e-6, atol=1e-6)


def test_empty(stream: Stream) -> None:
    for shape in ((0, 3), (3, 0)):
        x, weight = (DeviceTensor.empty(size, stream=stream) for size in (shape, shape[-1:]))
        with bindings.record() as calls:
            norm.launch(x, weight, eps=EPS, stream=stream)
        assert not [name for name, _ in calls if "Launch" in name]


def test_same_bits_each_time(device: Device, stream: Stream) -> None:
    x = np.random.default_rng(0).standard_normal((4, 5000)).astype(np.float32)
    weight = DeviceTensor.from_numpy(x[0], stream=stream)
    results = set()
    for _ in range(3):
        tensor = DeviceTensor.from_numpy(x, stream=stream)
        norm.launch(tensor, weight, eps=EPS, kind="layer", stream=stream)
        results.add(tensor.numpy().tobytes())
    assert len(results) == 1


def test_refuses(stream: Stream) -> None:
    x, other, half = (DeviceTensor.from_numpy(np.ones((4, 6), kind), stream=stream) for kind in "ffe")
    integers = DeviceTensor.from_numpy(np.ones((4, 6), np.int32), stream=stream)
    weight, brain = (DeviceTensor.from_numpy(np.ones(6, kind), stream=stream) for kind in (np.float32, BFLOAT16))
    for arguments, options, message in (
        ((x, weight[:5]), {}, "weight has shape"),
        ((x, weight, other[:3]), {}, "out has shape"),
        ((x[:, ::2], weight[:3]), {}, "x has strides"),
        ((integers, weight), {}, "x's dtype is int32"),
        ((x, weight), {"bias": brain}, "bias is bfloat16"),
        ((x, weight), {"residual": half}, "residual is float16"),
        ((x, weight, other), {"sum_out": x}, "sum_out is given without residual"),
        ((x, weight), {"sum_out": x, "residual": other}, "sum_out is out"),
        ((x, weight), {"kind": "batch"}, "kind is 'batch'"),
        ((x, weight), {"eps": -1.0}, "eps is -1"),
    ):
        with pytest.raises(ArgumentError, match=message):
            norm.launch(*arguments, stream=stream, **{"eps": EPS, **options})
