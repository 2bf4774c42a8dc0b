"""DLPack: hand memory to another array library, and take memory from one, without copying.

The structures are those of ``dlpack.h`` 1.0; the exchange is that of the Python array API standard, "Data
interchange mechanisms".
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from hipattn.errors import ArgumentError
from hipattn.layout import row_major, span

__all__ = ["CPU", "CUDA", "DEVICE_TYPES", "HOST", "ROCM", "Memory", "device_name", "from_capsule", "to_capsule"]

CPU, CUDA, ROCM = 1, 2, 10
DEVICE_TYPES = {"cpu": CPU, "nvidia": CUDA, "amd": ROCM}  # by platform
_DEVICE_NAMES = {1: "CPU", 2: "CUDA", 3: "CUDAHost", 8: "Metal", 10: "ROCM", 11: "ROCMHost", 14: "oneAPI"}
HOST = (1, 3, 11)  # device types whose memory the CPU reads

_IS_COPIED = 2  # DLPACK_FLAG_BITMASK_IS_COPIED

_INT, _UINT, _FLOAT, _BFLOAT, _BOOL = 0, 1, 2, 4, 6
_CODE_NAMES = {_INT: "int", _UINT: "uint", _FLOAT: "float", 3: "handle", _BFLOAT: "bfloat", 5: "complex", _BOOL: "bool"}
_CODES = {
    np.dtype(np.float32): (_FLOAT, 32),
    np.dtype(np.float16): (_FLOAT, 16),
    np.dtype(ml_dtypes.bfloat16): (_BFLOAT, 16),
    np.dtype(np.int32): (_INT, 32),
    np.dtype(np.int64): (_INT, 64),
    np.dtype(np.uint8): (_UINT, 8),
    np.dtype(np.bool_): (_BOOL, 8),
}
_DTYPES = {(*code, 1): dtype for dtype, code in _CODES.items()}

# NumPy gained the versioned protocol in 2.1.
_NUMPY_IS_VERSIONED = np.lib.NumpyVersion(np.__version__) >= "2.1.0"


class _Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("index", ctypes.c_int32)]


class _DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):  # DLTensor
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):  # DLManagedTensor
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class _Versioned(ctypes.Structure):  # DLManagedTensorVersioned
    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    ]


_KINDS: tuple[tuple[bytes, bytes, type[_Managed] | type[_Versioned]], ...] = (
    (b"dltensor_versioned", b"used_dltensor_versioned", _Versioned),
    (b"dltensor", b"used_dltensor", _Managed),
)

for _kind in _KINDS:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_kind[1]))  # a capsule may outlive this module, and points to its name

_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_set_name = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
_Deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)  # holds the GIL, which some producers' deleters rely on


@dataclass(frozen=True)
class Memory:
    """A strided array in the memory of some device, and the object that keeps it alive.

    Attributes
    ----------
    pointer : int
        Address of the first element.
    shape, strides : tuple of int
        Strides are in elements.
    dtype : numpy.dtype
        A float, an integer or bool.
    device : tuple of int
        DLPack's device type and index.
    owner : object
        The memory is valid while it lives.
    """

    pointer: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: tuple[int, int]
    owner: Any = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes from the first element to the last one, both included."""
        return span(self.shape, self.strides) * self.dtype.itemsize

    @property
    def __array_interface__(self) -> dict[str, Any]:
        """The memory as unsigned integers of the same size, which NumPy carries without a look at them."""
        size = self.dtype.itemsize
        return {
            "data": (self.pointer, False),
            "shape": self.shape,
            "strides": tuple(step * size for step in self.strides),
            "typestr": np.dtype(f"u{size}").str,
            "version": 3,
        }

    def as_numpy(self) -> npt.NDArray[Any]:
        """Return a NumPy array over the memory, which must be the host's. It keeps the owner alive."""
        return np.asarray(self).view(self.dtype)


def device_name(kind: int, index: int) -> str:
    """Return a device in words: "CUDA device 0"."""
    return f"{_DEVICE_NAMES.get(kind, f'DLPack type {kind}')} device {index}"


def to_capsule(memory: Memory, max_version: tuple[int, int] | None = None, *, copied: bool = False) -> Any:
    """Return a DLPack capsule over memory, which keeps the owner alive until the consumer is done.

    Parameters
    ----------
    memory
        What to export.
    max_version
        The newest version that the consumer understands. None, or below (1, 0): the old protocol.
    copied
        Whether the memory was copied for the consumer.
    """
    # NumPy makes the capsule, over an array that it does not read: its deleter is native code, which may be
    # called from any thread and after the interpreter has ended. Then device and dtype are put right.
    versioned = _NUMPY_IS_VERSIONED and max_version is not None and tuple(max_version) >= (1, 0)
    array: Any = np.asarray(memory)
    capsule = array.__dlpack__(max_version=(1, 0)) if versioned else array.__dlpack__()
    managed = _managed(capsule)
    tensor = managed.tensor
    tensor.device = _Device(*memory.device)
    tensor.dtype = _DataType(*_CODES[memory.dtype], 1)
    if copied and isinstance(managed, _Versioned):
        managed.flags |= _IS_COPIED
    return capsule


def from_capsule(capsule: Any, argument: str = "array", accepted: Collection[np.dtype[Any]] = tuple(_CODES)) -> Memory:
    """Take the memory of a DLPack capsule. The capsule cannot be used again.

    Parameters
    ----------
    capsule
        What ``__dlpack__`` of any library returned.
    argument
        A name for messages.
    accepted
        The dtypes that are accepted.

    Returns
    -------
    Memory
        Its owner calls the producer's deleter when it is collected.

    Raises
    ------
    ArgumentError
        It is no DLPack capsule or one that was used, its version or dtype is not accepted, or a stride is
        negative. The capsule stays the producer's.
    """
    managed = _managed(capsule, argument)
    if isinstance(managed, _Versioned) and managed.major != 1:
        raise ArgumentError(f"{argument} is DLPack version {managed.major}.{managed.minor}; accepted: 1 and older")
    tensor = managed.tensor
    kind = tensor.dtype
    dtype = _DTYPES.get((kind.code, kind.bits, kind.lanes))
    if dtype is None or dtype not in accepted:
        name = dtype.name if dtype else f"{_CODE_NAMES.get(kind.code, f'type code {kind.code} of ')}{kind.bits}"
        lanes = f" in vectors of {kind.lanes}" if kind.lanes != 1 else ""
        raise ArgumentError(f"{argument} is {name}{lanes}; accepted: {', '.join(each.name for each in accepted)}")
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else row_major(shape)
    if min(strides, default=0) < 0:
        raise ArgumentError(f"{argument} has strides {strides} (in elements); none may be negative")
    _set_name(capsule, next(used for name, used, _ in _KINDS if _is_valid(capsule, name)))
    pointer = (tensor.data or 0) + tensor.byte_offset
    return Memory(pointer, shape, strides, dtype, (tensor.device.type, tensor.device.index), _Owner(managed))


class _Owner:
    """What a producer lent. It is given back once, when collected."""

    def __init__(self, managed: _Managed | _Versioned) -> None:
        self._managed = managed

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the interpreter's end the producer may be gone already; the process's end releases everything.
        if not is_finalizing() and self._managed.deleter:
            _Deleter(self._managed.deleter)(ctypes.addressof(self._managed))


def _managed(capsule: Any, argument: str = "array") -> _Managed | _Versioned:
    for name, _, kind in _KINDS:
        if _is_valid(capsule, name):
            return kind.from_address(_get_pointer(capsule, name))
    raise ArgumentError(f"{argument} gave {capsule!r}; it takes a DLPack capsule that was not used before")
