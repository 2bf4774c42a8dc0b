"""Matrix products through hipBLAS."""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from typing import Any

from hipattn.errors import ArgumentError, PlatformError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.device import Device
from hipattn.runtime.owned import Owned
from hipattn.runtime.stream import Stream

__all__ = ["Blas", "Matrices", "Product"]

# Until then hipblasGemmStridedBatchedEx took other numbers for its types.
_HIP_7 = 70_000_000  # of hipRuntimeGetVersion: major, minor in two digits, patch in five

_TYPES = {"float32": "HIP_R_32F", "float16": "HIP_R_16F", "bfloat16": "HIP_R_16BF"}


@dataclass(frozen=True)
class Matrices:
    """Row-major matrices in device memory: [*batch, rows, columns] with strides in elements.

    A batch stride of 0 repeats a matrix. One of the two matrix strides must be 1.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str  # float32, float16, bfloat16

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 4 if self.dtype == "float32" else 2


def _leading(name: str, m: Matrices) -> tuple[bool, int]:
    """Return (whether stored column by column, the leading dimension) of the matrices."""
    (rows, columns), (row, column) = m.shape[-2:], m.strides[-2:]
    if (column == 1 or columns <= 1) and (row >= columns or rows <= 1):
        return False, max(row if rows > 1 else columns, 1)
    if (row == 1 or rows <= 1) and (column >= rows or columns <= 1):
        return True, max(column if columns > 1 else rows, 1)
    raise ArgumentError(
        f"{name} has matrix strides {(row, column)} for {rows} x {columns} elements; "
        "one of them must be 1, and the other so large that no two elements are the same"
    )


@dataclass(frozen=True)
class _Batch:
    size: int
    strides: tuple[int, int, int]  # of a, b and out


def _merge(batches: list[_Batch]) -> list[_Batch]:
    """Drop dimensions of size 1 and join neighbours that one stride can walk, in all three operands."""
    merged: list[_Batch] = []
    for batch in batches:
        if batch.size == 1:
            continue
        if merged and merged[-1].strides == tuple(batch.size * stride for stride in batch.strides):
            batch = _Batch(merged.pop().size * batch.size, batch.strides)
        merged.append(batch)
    return merged


class Product:
    """out = alpha · a @ b + beta · out for matrices of given shapes and strides, planned once and run often.

    hipBLAS walks one batch dimension per call: batch dimensions are joined where their strides allow it, the longest
    that remains is given to hipBLAS and the others become calls.

    Parameters
    ----------
    a, b, out
        [*batch, m, k], [*batch, k, n], [*batch, m, n]. a and b have the same dtype, out that dtype or float32.
    alpha, beta
        Factors. With beta 0 (the default), out is not read.

    Raises
    ------
    ArgumentError
        Shapes or dtypes do not match, or strides that hipBLAS cannot express.
    """

    def __init__(self, a: Matrices, b: Matrices, out: Matrices, *, alpha: float = 1.0, beta: float = 0.0) -> None:
        m, k = a.shape[-2:]
        n = b.shape[-1]
        if b.shape[-2] != k or out.shape[-2:] != (m, n) or not a.shape[:-2] == b.shape[:-2] == out.shape[:-2]:
            raise ArgumentError(f"a {a.shape} @ b {b.shape} does not give out {out.shape}")
        if a.dtype != b.dtype or out.dtype not in (a.dtype, "float32"):
            raise ArgumentError(
                f"a is {a.dtype}, b {b.dtype}, out {out.dtype}; a and b must agree, and out be that or float32"
            )
        hipblas, hip = bindings.hipblas, bindings.hip
        a_columns, lda = _leading("a", a)
        b_columns, ldb = _leading("b", b)
        out_columns, ldc = _leading("out", out)
        if out_columns:
            raise ArgumentError("out is stored column by column; its last dimension must be contiguous")
        none, transpose = (hipblas.hipblasOperation_t[f"HIPBLAS_OP_{name}"] for name in "NT")
        batches = _merge([_Batch(*item) for item in _batch_items(a, b, out)])
        inner = max(batches, key=lambda batch: batch.size, default=_Batch(1, (0, 0, 0)))
        outer = [batch for batch in batches if batch is not inner]
        self._empty = 0 in out.shape
        self._offsets = _offsets(outer, (a.itemsize, b.itemsize, out.itemsize))
        types = [getattr(hip.hipDataType, _TYPES[operand.dtype]) for operand in (a, b, out)]
        # hipBLAS stores columns: a row-major product is outᵀ = bᵀ @ aᵀ in its terms.
        self._head = (
            *(transpose if b_columns else none, transpose if a_columns else none),
            *(n, m, k, bindings.pointer(ctypes.c_float(alpha))),
        )
        self._b = (types[1], ldb, inner.strides[1])
        self._a = (types[0], lda, inner.strides[0], bindings.pointer(ctypes.c_float(beta)))
        self._out = (
            *(types[2], ldc, inner.strides[2], inner.size),
            hipblas.hipblasComputeType_t.HIPBLAS_COMPUTE_32F,
            hipblas.hipblasGemmAlgo_t.HIPBLAS_GEMM_DEFAULT,
        )
        self._what = f"[{m}, {k}] @ [{k}, {n}] x {inner.size} {a.dtype}"

    def run(self, blas: Blas, stream: Stream, a: Any, b: Any, out: Any) -> None:
        """Add the product to `stream`, for operands at these device addresses: numbers, or hip-python's pointers.

        Raises
        ------
        HipError
            hipBLAS refuses a call.
        """
        if self._empty:
            return
        handle = blas.handle(stream)
        for offsets in self._offsets:
            operands: tuple[Any, ...] = a, b, out
            if any(offsets):
                operands = tuple(int(x) + offset for x, offset in zip(operands, offsets, strict=True))
            of_a, of_b, of_out = operands
            status = bindings.hipblas.hipblasGemmStridedBatchedEx(
                handle, *self._head, of_b, *self._b, of_a, *self._a, of_out, *self._out
            )[0]
            if status:
                raise bindings.failure(status, "hipblasGemmStridedBatchedEx", product=self._what)


def _batch_items(a: Matrices, b: Matrices, out: Matrices) -> list[tuple[int, tuple[int, int, int]]]:
    strides = zip(a.strides[:-2], b.strides[:-2], out.strides[:-2], strict=True)
    return list(zip(out.shape[:-2], strides, strict=True))


def _offsets(batches: list[_Batch], itemsizes: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Return the byte offsets of the three operands for each call."""
    offsets = [(0, 0, 0)]
    for batch in batches:
        steps = tuple(stride * size for stride, size in zip(batch.strides, itemsizes, strict=True))
        offsets = [
            (x + i * steps[0], y + i * steps[1], z + i * steps[2]) for x, y, z in offsets for i in range(batch.size)
        ]
    return offsets


class Blas(Owned):
    """A hipBLAS handle of one device. Not for use by two threads at once; `Blas.of` gives each thread its own.

    Raises
    ------
    PlatformError
        ROCm is older than 7.
    HipError
        hipBLAS cannot be initialised.
    """

    _per_thread = threading.local()

    def __init__(self, device: Device | None = None) -> None:
        self._native: Any = None
        self._stream: Stream | None = None
        self.device = Device.of(device)
        version = check(bindings.hip.hipRuntimeGetVersion(), "hipRuntimeGetVersion")
        if version < _HIP_7:
            raise PlatformError(
                f"hipBLAS of HIP {version // 10_000_000}.{version // 100_000 % 100} is too old; hip-python 10 calls "
                "hipBLAS as it is from ROCm 7 on"
            )
        self.device.use()
        self._native = check(bindings.hipblas.hipblasCreate(), "hipblasCreate")

    @classmethod
    def of(cls, device: Device) -> Blas:
        """Return the calling thread's handle for a device, made at first use."""
        handles: dict[int, Blas] = cls._per_thread.__dict__.setdefault("handles", {})
        if device.index not in handles:
            handles[device.index] = cls(device)
        return handles[device.index]

    def handle(self, stream: Stream) -> Any:
        """Return the hip-python handle, set to work in `stream`.

        The handle owns a workspace, which its products share: work in another stream waits for that in the last.
        """
        if stream.device is not self.device:
            raise ArgumentError(f"stream is on device {stream.device.index}; the handle is on {self.device.index}")
        native = stream.native  # makes the device current, as hipBLAS needs it
        last = self._stream
        if stream is not last:
            if last is not None and not last.closed:
                stream.wait(last)
            check(bindings.hipblas.hipblasSetStream(self._native, native), "hipblasSetStream")
            self._stream = stream
        return self._native

    @property
    def closed(self) -> bool:
        """Whether the handle was destroyed."""
        return self._native is None

    def close(self) -> None:
        """Destroy the handle. Closing twice does nothing."""
        native, self._native = self._native, None
        if native is not None:
            self.device.use()
            check(bindings.hipblas.hipblasDestroy(native), "hipblasDestroy")
