"""The simulated hipBLAS against NumPy in float64, over hip-python alone."""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from hipattn import Device
from hipattn.platforms.cpu import control
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from tests.platforms.cpu.simulator import Simulator

F32, F16, BF16 = np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)
EPSILON = {F32: 2.0**-23, F16: 2.0**-11, BF16: 2.0**-8}
HIP_TYPE = {F32: "HIP_R_32F", F16: "HIP_R_16F", BF16: "HIP_R_16BF"}

blas, hip = bindings.hipblas, bindings.hip
N, T = blas.hipblasOperation_t.HIPBLAS_OP_N, blas.hipblasOperation_t.HIPBLAS_OP_T
COMPUTE = blas.hipblasComputeType_t.HIPBLAS_COMPUTE_32F
DEFAULT = blas.hipblasGemmAlgo_t.HIPBLAS_GEMM_DEFAULT
Status = blas.hipblasStatus_t


@pytest.fixture
def handle(sim: Simulator) -> Iterator[Any]:
    made = check(blas.hipblasCreate(), "hipblasCreate")
    yield made
    check(blas.hipblasDestroy(made), "hipblasDestroy")


@functools.cache
def scalar(value: float) -> Any:
    return ctypes.c_float(value)


@dataclass(frozen=True)
class Gemm:
    """A batch of column-major products with padded leading dimensions."""

    m: int
    n: int
    k: int
    ta: bool = False
    tb: bool = False
    batch: int = 1
    alpha: float = 1
    beta: float = 0
    a_type: np.dtype[Any] = F32
    c_type: np.dtype[Any] = F32
    pad: int = 3
    shared_b: bool = False

    def draw(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return a, b, c as [batch, columns, leading], as they lie in memory."""
        rng = np.random.default_rng(5)
        a_shape = (self.m, self.k) if self.ta else (self.k, self.m)
        b_shape = (self.k, self.n) if self.tb else (self.n, self.k)
        a, b, c = (
            rng.standard_normal((self.batch, columns, rows + self.pad))
            for columns, rows in (a_shape, b_shape, (self.n, self.m))
        )
        return (
            a.astype(self.a_type),
            b[: 1 if self.shared_b else None].astype(self.a_type),
            c.astype(self.c_type),
        )

    def expected(self, a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return c after the product in float64, and the bound on each element's error."""

        def matrix(x: NDArray[Any], rows: int, transposed: bool) -> NDArray[Any]:
            x = x[:, :, :rows].astype(np.float64)
            return x if transposed else x.swapaxes(1, 2)

        left = matrix(a, self.k if self.ta else self.m, self.ta)
        right = matrix(b, self.n if self.tb else self.k, self.tb)
        out = c.astype(np.float64)
        product = self.alpha * left @ right
        size = np.abs(self.alpha) * np.abs(left) @ np.abs(right)
        if self.beta:
            old = self.beta * out[:, :, : self.m].swapaxes(1, 2)
            product, size = product + old, size + np.abs(old)
        out[:, :, : self.m] = product.swapaxes(1, 2)
        bound = np.zeros(out.shape)
        rounding = np.abs(product) * EPSILON[self.c_type] if self.c_type != F32 else 0
        bound[:, :, : self.m] = (size * (self.k + 2) * EPSILON[F32] + rounding + 1e-30).swapaxes(1, 2)
        return out, bound

    def call(self, handle: Any, a: Any, b: Any, c: Any) -> Any:
        ta, tb = (T if self.ta else N), (T if self.tb else N)
        lda, ldb, ldc = (
            rows + self.pad for rows in (self.k if self.ta else self.m, self.n if self.tb else self.k, self.m)
        )
        strides = (
            lda * (self.m if self.ta else self.k),
            0 if self.shared_b else ldb * (self.k if self.tb else self.n),
            ldc * self.n,
        )
        x, y = (getattr(hip.hipDataType, HIP_TYPE[t]) for t in (self.a_type, self.c_type))
        return blas.hipblasGemmStridedBatchedEx(
            *(handle, ta, tb, self.m, self.n, self.k, scalar(self.alpha)),
            *(a, x, lda, strides[0]),
            *(b, x, ldb, strides[1]),
            *(scalar(self.beta), c, y, ldc, strides[2]),
            *(self.batch, COMPUTE, DEFAULT),
        )[0]


def upload(sim: Simulator, array: NDArray[Any]) -> Any:
    pointer = sim.hipMalloc(array.nbytes)
    sim.hipMemcpy(pointer, np.ascontiguousarray(array), array.nbytes, sim.kind.hipMemcpyHostToDevice)
    return pointer


def run(sim: Simulator, handle: Any, gemm: Gemm, c: NDArray[Any] | None = None) -> None:
    a, b, drawn = gemm.draw()
    c = drawn if c is None else c
    device = [upload(sim, x) for x in (a, b, c)]
    try:
        assert gemm.call(handle, *device) == Status.HIPBLAS_STATUS_SUCCESS
        out = np.empty_like(c)
        sim.hipDeviceSynchronize()
        sim.hipMemcpy(out, device[2], out.nbytes, sim.kind.hipMemcpyDeviceToHost)
    finally:
        for pointer in device:
            sim.hipFree(pointer)
    expected, bound = gemm.expected(a, b, c)
    inside = np.s_[:, :, : gemm.m]
    assert (np.abs(out.astype(np.float64) - expected)[inside] <= bound[inside]).all()
    np.testing.assert_array_equal(out[:, :, gemm.m :].view(np.uint8), c[:, :, gemm.m :].view(np.uint8))  # the padding


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
@pytest.mark.parametrize("types", [(F32, F32), (F16, F16), (F16, F32), (BF16, BF16), (BF16, F32)], ids=str)
def test_types_and_transposes(sim: Simulator, handle: Any, ta: bool, tb: bool, types: tuple[Any, Any]) -> None:
    run(sim, handle, Gemm(17, 9, 33, ta, tb, 3, 0.5, 0, *types))
    run(sim, handle, Gemm(17, 9, 33, ta, tb, 2, -1.5, 0.75, *types))


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 64, 5), (64, 1, 257), (31, 65, 128), (5, 7, 0)])
@pytest.mark.parametrize("types", [(F32, F32), (F16, F16), (BF16, BF16)], ids=str)
def test_sizes(sim: Simulator, handle: Any, size: tuple[int, int, int], types: tuple[Any, Any]) -> None:
    for pad in (0 if size[2] else 1, 5):  # no leading dimension is 0
        run(sim, handle, Gemm(*size, a_type=types[0], c_type=types[1], pad=pad))


@pytest.mark.parametrize("types", [(F32, F32), (F16, F16), (BF16, BF16), (F16, F32)], ids=str)
def test_beta_0_does_not_read_c(sim: Simulator, handle: Any, types: tuple[Any, Any]) -> None:
    for k in (20, 0):
        gemm = Gemm(8, 6, k, a_type=types[0], c_type=types[1])
        run(sim, handle, gemm, np.full((1, gemm.n, gemm.m + gemm.pad), np.nan, types[1]))


def test_alpha_0_does_not_read_a_and_b(sim: Simulator, handle: Any) -> None:
    gemm = Gemm(4, 4, 4, alpha=0, beta=2)
    c = upload(sim, gemm.draw()[2])
    assert gemm.call(handle, None, None, c) == Status.HIPBLAS_STATUS_SUCCESS
    sim.hipDeviceSynchronize()
    sim.hipFree(c)


def test_a_batch_stride_of_0_repeats_a_matrix(sim: Simulator, handle: Any) -> None:
    for types in ((F32, F32), (F16, F32)):
        run(sim, handle, Gemm(6, 5, 7, batch=4, shared_b=True, a_type=types[0], c_type=types[1]))


def test_bf16_rounds_to_nearest_even_and_keeps_nan(sim: Simulator, handle: Any) -> None:
    ulp = 2.0**-7
    pairs = [
        (1, ulp / 2),
        (1 + ulp, ulp / 2),
        (-1, -ulp / 2 * (1 + ulp)),
        (3.3e38, 1e36),
        (3.3e38, 3e38),
        (np.inf, 1),
        (np.nan, 1),
    ]
    gemm = Gemm(1, 1, 2, a_type=BF16, c_type=BF16, pad=0)
    for pair in (np.array(pair, BF16) for pair in pairs):
        with np.errstate(over="ignore"):
            total = np.array([pair.astype(np.float32).sum()]).astype(BF16)
        device = [upload(sim, x) for x in (pair, np.ones(2, BF16), np.zeros(1, BF16))]
        assert gemm.call(handle, *device) == Status.HIPBLAS_STATUS_SUCCESS
        sim.hipDeviceSynchronize()
        out = np.empty(1, BF16)
        sim.hipMemcpy(out, device[2], 2, sim.kind.hipMemcpyDeviceToHost)
        np.testing.assert_array_equal(out.astype(np.float32), total.astype(np.float32))
        for pointer in device:
            sim.hipFree(pointer)


def test_a_product_waits_for_its_stream(sim: Simulator, handle: Any) -> None:
    """A is written by the stream's earlier operation, late."""
    stream = sim.hipStreamCreateWithFlags(1)
    check(blas.hipblasSetStream(handle, stream), "hipblasSetStream")
    gemm = Gemm(3, 3, 3, pad=0)
    a, b, c = gemm.draw()
    device = [upload(sim, x) for x in (np.full_like(a, np.nan), b, c)]
    with control.delayed_streams(20000):
        sim.hipMemcpyAsync(device[0], a, a.nbytes, sim.kind.hipMemcpyHostToDevice, stream)
        assert gemm.call(handle, *device) == Status.HIPBLAS_STATUS_SUCCESS
        out = np.empty_like(c)
        sim.hipMemcpyAsync(out, device[2], out.nbytes, sim.kind.hipMemcpyDeviceToHost, stream)
        sim.hipStreamSynchronize(stream)
    np.testing.assert_allclose(out, gemm.expected(a, b, c)[0], rtol=1e-5)
    for pointer in device:
        sim.hipFree(pointer)
    sim.hipStreamDestroy(stream)


@pytest.mark.parametrize("short", [0, 1, 2])
def test_an_operand_that_leaves_its_allocation(sim: Simulator, handle: Any, short: int) -> None:
    gemm = Gemm(8, 8, 8, batch=2)
    arrays = gemm.draw()
    device = [upload(sim, x.ravel()[:-8] if n == short else x) for n, x in enumerate(arrays)]
    assert gemm.call(handle, *device) == Status.HIPBLAS_STATUS_SUCCESS
    assert sim.status("hipDeviceSynchronize") == "hipErrorIllegalAddress"
    message = sim.message("hipErrorIllegalAddress")
    assert f"operand {'ABC'[short]}" in message
    # The padding after the last column is not part of a matrix.
    assert "20 bytes past the end" in message
    sim.clear_fault()
    for pointer in device:
        sim.hipFree(pointer)


def test_arguments_are_checked(sim: Simulator, handle: Any) -> None:
    good = Gemm(4, 4, 4)
    pointer = upload(sim, np.zeros(256, np.float32))
    invalid = Status.HIPBLAS_STATUS_INVALID_VALUE

    def call(gemm: Gemm, *operands: Any) -> Any:
        return gemm.call(handle, *(operands or (pointer, pointer, pointer)))

    for bad in (
        replace(good, m=-1),
        replace(good, n=-1),
        replace(good, k=-1),
        replace(good, batch=-1),
        replace(good, pad=-1),
    ):
        assert call(bad) == invalid
    for operands in ((None, pointer, pointer), (pointer, None, pointer), (pointer, pointer, None)):
        assert call(good, *operands) == invalid
    for empty in (replace(good, m=0), replace(good, n=0), replace(good, batch=0)):
        assert call(empty, None, None, None) == Status.HIPBLAS_STATUS_SUCCESS
    assert good.call(None, pointer, pointer, pointer) == Status.HIPBLAS_STATUS_NOT_INITIALIZED
    x = hip.hipDataType.HIP_R_64F
    status = blas.hipblasGemmStridedBatchedEx(
        *(handle, N, N, 4, 4, 4, scalar(1), pointer, x, 4, 0, pointer, x, 4, 0),
        *(scalar(0), pointer, x, 4, 0, 1, COMPUTE, DEFAULT),
    )[0]
    assert status == Status.HIPBLAS_STATUS_NOT_SUPPORTED
    sim.hipFree(pointer)


def test_a_call_can_be_made_to_fail(sim: Simulator, handle: Any) -> None:
    gemm = Gemm(0, 1, 1)
    with control.failing("hipblasGemmStridedBatchedEx:2"):
        statuses = [gemm.call(handle, None, None, None).name for _ in range(3)]
    assert statuses == ["HIPBLAS_STATUS_SUCCESS", "HIPBLAS_STATUS_EXECUTION_FAILED", "HIPBLAS_STATUS_SUCCESS"]


@pytest.mark.skipif(Device.count() < 2, reason="needs two devices")
def test_a_handle_works_on_its_own_device_only(sim: Simulator, handle: Any) -> None:
    gemm = Gemm(0, 1, 1)
    sim.hipSetDevice(1)
    assert gemm.call(handle, None, None, None) == Status.HIPBLAS_STATUS_INVALID_VALUE
    assert blas.hipblasSetStream(handle, None)[0] == Status.HIPBLAS_STATUS_INVALID_VALUE
    sim.hipSetDevice(0)
    assert gemm.call(handle, None, None, None) == Status.HIPBLAS_STATUS_SUCCESS


@pytest.fixture
def two_streams(sim: Simulator) -> Iterator[tuple[Any, Any]]:
    made = sim.hipStreamCreateWithFlags(1), sim.hipStreamCreateWithFlags(1)
    yield made
    for stream in made:
        sim.hipStreamDestroy(stream)


@pytest.mark.parametrize("how", ["unordered", "event", "sync", "two handles", "destroyed"])
def test_two_streams_share_the_workspace(sim: Simulator, handle: Any, two_streams: tuple[Any, Any], how: str) -> None:
    """The first product is held back, so that what nothing orders does overlap."""
    one, two = two_streams
    gemm = Gemm(4, 4, 4)
    device = [upload(sim, x) for x in gemm.draw()]
    c = sim.hipMalloc(4096)
    event = sim.hipEventCreateWithFlags(2)
    gate = threading.Event()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def wait(_: int) -> None:
        gate.wait(10)

    sim.hipLaunchHostFunc(one, ctypes.cast(wait, ctypes.c_void_p).value, None)
    first = second = check(blas.hipblasCreate(), "hipblasCreate")
    if how == "two handles":
        second = handle
    check(blas.hipblasSetStream(first, one), "hipblasSetStream")
    assert gemm.call(first, *device) == Status.HIPBLAS_STATUS_SUCCESS
    if how == "event":
        sim.hipEventRecord(event, one)
        sim.hipStreamWaitEvent(two, event, 0)
    if how in ("event", "sync"):
        gate.set()
    if how == "sync":
        sim.hipStreamSynchronize(one)
    if how != "destroyed":
        check(blas.hipblasSetStream(second, two), "hipblasSetStream")
        assert gemm.call(second, *device[:2], c) == Status.HIPBLAS_STATUS_SUCCESS
    check(blas.hipblasDestroy(first), "hipblasDestroy")  # its products run all the same
    if how == "unordered":
        assert sim.status("hipStreamSynchronize", two) == "hipErrorLaunchFailure"
        assert "workspace is used by two streams at once" in sim.message("hipErrorLaunchFailure")
    gate.set()
    ends = "hipErrorLaunchFailure" if how == "unordered" else "hipSuccess"
    assert sim.status("hipDeviceSynchronize") == ends
    sim.clear_fault()
    sim.hipEventDestroy(event)
    for pointer in (*device, c):
        sim.hipFree(pointer)
