"""Products through hipBLAS against NumPy in float64."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import ArgumentError, Blas, ClosedError, Device, DeviceTensor, PlatformError, Stream
from hipattn.runtime import bindings
from hipattn.runtime.blas import Matrices, Product
from hipattn.tensor import BFLOAT16, FLOAT16, FLOAT32
from tests.helpers.mismatch import assert_close
from tests.helpers.tolerance import EPSILON

Array = NDArray[Any]


def values(shape: tuple[int, ...], dtype: Any = np.float32, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def matrices(tensor: DeviceTensor) -> Matrices:
    return Matrices(tensor.shape, tensor.strides, tensor.dtype.name)


def poison(shape: tuple[int, ...], dtype: Any, stream: Stream) -> DeviceTensor:
    return DeviceTensor.from_numpy(np.full(shape, np.nan, dtype), stream=stream)


def check(a: DeviceTensor, b: DeviceTensor, out: DeviceTensor, stream: Stream, **factors: float) -> int:
    """Compare out = alpha · a @ b + beta · out with float64. Return how many hipBLAS calls it took."""
    alpha, beta = factors.get("alpha", 1.0), factors.get("beta", 0.0)
    x, y = (tensor.numpy().astype(np.float64) for tensor in (a, b))
    expected = alpha * (x @ y)
    size = np.abs(alpha) * (np.abs(x) @ np.abs(y))
    if beta:
        expected += beta * out.numpy().astype(np.float64)
    product = Product(matrices(a), matrices(b), matrices(out), **factors)
    with bindings.record() as calls:
        product.run(Blas.of(stream.device), stream, a.pointer, b.pointer, out.pointer)
    # Sums in float32 are off by their length, the result by half a step of its dtype.
    bound = EPSILON[FLOAT32] * a.shape[-1] * size.max(initial=1) + EPSILON[out.dtype] * np.abs(expected).max(initial=1)
    assert_close(out.numpy(), expected, atol=bound)
    return [name for name, _ in calls].count("hipblasGemmStridedBatchedEx")


@pytest.mark.parametrize("dtype", [FLOAT32, FLOAT16, BFLOAT16], ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["same", "float32 out"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 5, 7), (31, 1, 65), (1, 33, 17), (64, 48, 128)])
def test_dtypes_and_sizes(stream: Stream, dtype: Any, wide: bool, m: int, n: int, k: int) -> None:
    a, b = (DeviceTensor.from_numpy(values(shape, dtype), stream=stream) for shape in ((m, k), (k, n)))
    check(a, b, poison((m, n), FLOAT32 if wide else dtype, stream), stream)


@pytest.mark.parametrize(("turn_a", "turn_b"), list(product((False, True), repeat=2)))
@pytest.mark.parametrize("gap", [0, 3])
def test_transposes_and_gaps(stream: Stream, turn_a: bool, turn_b: bool, gap: int) -> None:
    def operand(rows: int, columns: int, turned: bool) -> DeviceTensor:
        shape = (2, columns, rows + gap) if turned else (2, rows, columns + gap)
        whole = DeviceTensor.from_numpy(values(shape), stream=stream)
        part = whole[..., : shape[-1] - gap]
        return part.transpose(0, 2, 1) if turned else part

    whole = poison((2, 9, 5 + gap), FLOAT32, stream)
    assert check(operand(9, 7, turn_a), operand(7, 5, turn_b), whole[..., :5], stream) == 1
    assert np.isnan(whole.numpy()[..., 5:]).all()  # between the rows


@pytest.mark.parametrize(("m", "n", "k"), [(1, 6, 4), (6, 1, 4), (6, 4, 1), (1, 1, 4)])
def test_vectors_with_any_stride(stream: Stream, m: int, n: int, k: int) -> None:
    a = DeviceTensor.from_numpy(values((m, 2 * k)), stream=stream)[:, ::2] if m == 1 else None
    if a is None:
        a = DeviceTensor.from_numpy(values((m, k)), stream=stream)
    b = DeviceTensor.from_numpy(values((2 * k, n)), stream=stream)[::2]
    check(a, b, poison((m, n), FLOAT32, stream), stream)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
def test_heads_of_a_batch_in_place(stream: Stream, dtype: Any) -> None:
    batch, seq_q, seq_k, heads, dim = 2, 5, 9, 3, 8
    q, k = (
        DeviceTensor.from_numpy(values((batch, seq, heads, dim), dtype, seq), stream=stream) for seq in (seq_q, seq_k)
    )
    scores = poison((batch, heads, seq_q, seq_k), FLOAT32, stream)
    # One call for each of the shorter batch dimension, which no stride joins with the other.
    assert check(q.transpose(0, 2, 1, 3), k.transpose(0, 2, 3, 1), scores, stream) == batch
    out = poison((batch, seq_q, heads, dim), dtype, stream)
    weights = DeviceTensor.from_numpy(values((batch, heads, seq_q, seq_k), dtype), stream=stream)
    check(weights, k.transpose(0, 2, 1, 3), out.transpose(0, 2, 1, 3), stream)


def test_batches_that_one_stride_walks_are_one_call(stream: Stream) -> None:
    a = DeviceTensor.from_numpy(values((2, 3, 4, 5, 6)), stream=stream)
    b = DeviceTensor.from_numpy(values((2, 3, 4, 6, 7)), stream=stream)
    assert check(a, b, poison((2, 3, 4, 5, 7), FLOAT32, stream), stream) == 1


def test_a_matrix_repeated_over_a_batch(stream: Stream) -> None:
    a = DeviceTensor.from_numpy(values((2, 4, 5, 6)), stream=stream)
    b = DeviceTensor.from_numpy(values((2, 6, 7)), stream=stream)
    repeated = DeviceTensor(b.buffer, (2, 4, 6, 7), FLOAT32, (42, 0, 7, 1))
    assert check(a, repeated, poison((2, 4, 5, 7), FLOAT32, stream), stream) == 2
    once = DeviceTensor(b.buffer, (2, 4, 6, 7), FLOAT32, (0, 0, 7, 1))
    assert check(a, once, poison((2, 4, 5, 7), FLOAT32, stream), stream) == 1


@pytest.mark.parametrize("factors", [{"alpha": 0.125}, {"alpha": -2.0, "beta": 0.5}, {"beta": 1.0}])
def test_factors(stream: Stream, factors: dict[str, float]) -> None:
    a, b, out = (DeviceTensor.from_numpy(values((3, 8, 8), seed=i), stream=stream) for i in range(3))
    check(a, b, out, stream, **factors)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5)])
def test_empty_results_take_no_call(stream: Stream, shape: tuple[int, int, int, int]) -> None:
    batch, m, n, k = shape
    a, b = (DeviceTensor.empty(s, stream=stream) for s in ((batch, m, k), (batch, k, n)))
    assert check(a, b, DeviceTensor.empty((batch, m, n), stream=stream), stream) == 0


def test_a_sum_of_nothing_is_zero(stream: Stream) -> None:
    a, b = (DeviceTensor.empty(shape, stream=stream) for shape in ((2, 3, 0), (2, 0, 4)))
    check(a, b, poison((2, 3, 4), FLOAT32, stream), stream)


def test_nan_reaches_its_row_only(stream: Stream) -> None:
    a = values((4, 6))
    a[2, 3] = np.nan
    tensors = [DeviceTensor.from_numpy(array, stream=stream) for array in (a, values((6, 5)))]
    out = poison((4, 5), FLOAT32, stream)
    plan = Product(*map(matrices, (*tensors, out)))
    plan.run(Blas.of(stream.device), stream, *(tensor.pointer for tensor in (*tensors, out)))
    assert np.isnan(out.numpy()).all(axis=1).tolist() == [False, False, True, False]
    assert np.isnan(out.numpy()).sum() == 5


def row_major(*shape: int, dtype: str = "float32") -> Matrices:
    strides = tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))
    return Matrices(shape, strides, dtype)


@pytest.mark.parametrize(
    ("a", "b", "out", "match"),
    [
        (
            row_major(3, 4),
            row_major(5, 6),
            row_major(3, 6),
            r"a \(3, 4\) @ b \(5, 6\) does not give out \(3, 6\)",
        ),
        (row_major(3, 4), row_major(4, 6), row_major(6, 3), "does not give out"),
        (row_major(2, 3, 4), row_major(3, 4, 6), row_major(2, 3, 6), "does not give out"),
        (row_major(3, 4), row_major(4, 6, dtype="float16"), row_major(3, 6), "a is float32, b float16"),
        (
            row_major(3, 4),
            row_major(4, 6),
            row_major(3, 6, dtype="float16"),
            "out float16; a and b must agree",
        ),
        (
            Matrices((3, 4), (8, 2), "float32"),
            row_major(4, 6),
            row_major(3, 6),
            r"a has matrix strides \(8, 2\)",
        ),
        (
            Matrices((3, 4), (0, 1), "float32"),
            row_major(4, 6),
            row_major(3, 6),
            r"a has matrix strides \(0, 1\)",
        ),
        (
            row_major(3, 4),
            Matrices((4, 6), (5, 1), "float32"),
            row_major(3, 6),
            r"b has matrix strides \(5, 1\)",
        ),
        (
            row_major(3, 4),
            row_major(4, 6),
            Matrices((3, 6), (1, 3), "float32"),
            "out is stored column by column",
        ),
    ],
)
def test_operands_that_are_refused(a: Matrices, b: Matrices, out: Matrices, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        Product(a, b, out)


def test_each_thread_has_its_handle(device: Device) -> None:
    assert Blas.of(device) is Blas.of(device)
    assert Blas.of(device).device is device


def test_a_stream_of_another_device_or_a_closed_one_is_refused(device: Device) -> None:
    stream = Stream(device)
    blas = Blas(device)
    blas.handle(stream)
    stream.close()
    with pytest.raises(ClosedError):
        blas.handle(stream)
    blas.close()
    blas.close()
    if Device.count() > 1:
        other = Device(1 - device.index)
        with (
            Stream(other) as stream,
            pytest.raises(ArgumentError, match=f"stream is on device {other.index}"),
        ):
            Blas.of(device).handle(stream)


def test_a_handle_orders_the_streams_that_share_it(device: Device) -> None:
    handle = Blas(device)
    with Stream(device) as first, Stream(device) as second:
        handle.handle(first)
        with bindings.record() as calls:
            handle.handle(first)
            assert not [name for name, _ in calls if "Wait" in name or "SetStream" in name]
            handle.handle(second)
        names = [name for name, _ in calls if name in ("hipStreamWaitEvent", "hipblasSetStream")]
        assert names == ["hipStreamWaitEvent", "hipblasSetStream"]
        handle.close()


def test_a_handle_makes_its_device_current() -> None:
    if Device.count() < 2:
        pytest.skip("needs two devices")
    handle = Blas(Device(1))
    with Stream(Device(1)) as stream:
        handle.handle(stream)
        Device(0).use()
        handle.handle(stream)
        assert bindings.hip.hipGetDevice()[1] == 1
        handle.close()


def test_a_hipblas_before_rocm_7_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings.hip, "hipRuntimeGetVersion", lambda: (0, 60_443_000))
    with pytest.raises(PlatformError, match=r"HIP 6.4 is too old"):
        Blas()
