"""activation against float64."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import DeviceTensor, Stream
from hipattn.errors import ArgumentError
from hipattn.kernels import activation, rows
from tests.helpers.mismatch import assert_close
from tests.helpers.padded import Padded
from tests.helpers.tolerance import DTYPES, EPSILON

LENGTHS = (1, 5, 33, 64, 257, 1000, 4096)
FLOAT32, FLOAT16, BFLOAT16 = DTYPES
KINDS = activation.KINDS
SMALLEST = {FLOAT32: 1e-36, FLOAT16: 2.0**-24, BFLOAT16: 1e-36}  # exp(88.8) is infinite already
erfc = np.vectorize(math.erfc, otypes=[np.float64])


def activated(x: NDArray, *, kind: str) -> NDArray[np.float64]:
    """Return the function in float64, in a form that keeps its digits below 0."""
    x = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "gelu":
            y = 0.5 * x * erfc(-x / math.sqrt(2))
        else:
            y = x / (1 + np.exp(-x if kind == "silu" else -math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)))
    return np.where(x == -np.inf, 0.0, y)


def close(found: NDArray, expected: NDArray) -> None:
    # float32 arithmetic: the exponent's rounding grows with it.
    assert_close(found, expected, rtol=2e-5 + EPSILON[found.dtype] / 2, atol=SMALLEST[found.dtype])


@pytest.mark.parametrize("columns", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_lengths(stream: Stream, kind: str, columns: int) -> None:
    x, up = 3 * np.random.default_rng(columns).standard_normal((2, 3, columns)).astype(np.float32)
    bias = x[0] / 2
    for before, after in ((0, 0), (4, -columns % 4), (1, 2)):
        padding = {"before": before, "after": after}
        gate, other, shift = (Padded(stream, a, **padding) for a in (x, up, bias))
        for options, expected in (
            ({}, activated(x, kind=kind)),
            ({"up": other.tensor}, activated(x, kind=kind) * up),
            ({"bias": shift.tensor}, activated(x + bias, kind=kind)),
            ({"bias": shift.tensor, "up": other.tensor}, activated(x + bias, kind=kind) * up),
        ):
            out = Padded.poisoned(stream, x.shape, FLOAT32, **padding)
            activation.launch(gate.tensor, out.tensor, kind=kind, stream=stream, **options)
            close(out.numpy(), expected)
        activation.launch(gate.tensor, kind=kind, up=other.tensor, stream=stream)
        close(gate.numpy(), activated(x, kind=kind) * up)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(stream: Stream, dtype: np.dtype, kind: str) -> None:
    x, up = 3 * np.random.default_rng(0).standard_normal((2, 4, 100))
    x, up = x.astype(dtype), up.astype(dtype)
    for bias_dtype in DTYPES:
        bias = np.random.default_rng(1).standard_normal(100).astype(bias_dtype)
        out = Padded.poisoned(stream, x.shape, dtype, before=8)
        gate, other, shift = (DeviceTensor.from_numpy(a, stream=stream) for a in (x, up, bias))
        activation.launch(gate, out.tensor, kind=kind, up=other, bias=shift, stream=stream)
        total = x.astype(np.float32) + bias.astype(np.float32)
        close(out.numpy(), activated(total, kind=kind) * up.astype(np.float64))


@pytest.mark.parametrize("columns", [6, 64])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate_and_up_of_one_tensor(stream: Stream, dtype: np.dtype, columns: int) -> None:
    both = np.random.default_rng(0).standard_normal((2, 3, 2 * columns)).astype(dtype)
    tensor = DeviceTensor.from_numpy(both, stream=stream)
    gate, up = both[..., :columns], both[..., columns:].astype(np.float64)
    out = Padded.poisoned(stream, gate.shape, dtype)
    for target in (out, None):  # the second time into the gate's place
        to = tensor[..., :columns] if target is None else target.tensor
        activation.launch(tensor[..., :columns], to, kind="silu", up=tensor[..., columns:], stream=stream)
        found = tensor.numpy()[..., :columns] if target is None else target.numpy()
        close(found, activated(gate, kind="silu") * up)


@pytest.mark.parametrize("kind", KINDS)
def test_special_values(stream: Stream, kind: str) -> None:
    x = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, -101.0, -99.0, -87.0, -20.0, -9.0, -4.0, 1e-30, 20.0]
    x = np.array(x, np.float32)
    tensor = DeviceTensor.from_numpy(x, stream=stream)
    activation.launch(tensor, kind=kind, stream=stream)
    assert_close(tensor.numpy(), activated(x, kind=kind), rtol=3e-5, atol=1e-36)


def test_more_work_than_blocks(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MAX_BLOCKS", 3)
    activation._plan.cache_clear()
    for shape, biased in product(((9000,), (7, 1500), (300, 40)), (False, True)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        bias = x.reshape(-1)[: shape[-1]].copy()
        array = Padded(stream, x, after=4)
        options = {"bias": DeviceTensor.from_numpy(bias, stream=stream)} if biased else {}
        activation.launch(array.tensor, kind="gelu", stream=stream, **options)
        close(array.numpy(), activated(x + bias if biased else x, kind="gelu"))
    activation._plan.cache_clear()


def test_empty(stream: Stream) -> None:
    for shape in ((0,), (3, 0), (0, 5)):
        activation.launch(DeviceTensor.empty(shape, stream=stream), kind="silu", stream=stream)


def test_refuses(stream: Stream) -> None:
    x, other, half = (DeviceTensor.from_numpy(np.ones((4, 6), kind), stream=stream) for kind in "ffe")
    for arguments, options, message in (
        ((x,), {"kind": "relu"}, "kind is 'relu'"),
        ((x, other[:3]), {}, "out has shape"),
        ((x, half), {}, "out is float16"),
        ((x,), {"up": half}, "up is float16"),
        ((x,), {"up": other[:, :5]}, "up has shape"),
        ((x,), {"bias": other}, "bias has shape"),
        ((x[:, ::2],), {}, "x has strides"),
    ):
        with pytest.raises(ArgumentError, match=message):
            activation.launch(*arguments, stream=stream, **{"kind": "silu", **options})
