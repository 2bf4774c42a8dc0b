from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hipattn import dlpack
from hipattn.errors import ArgumentError
from hipattn.tensor import FLOATS
from tests.helpers.tolerance import DTYPES

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Owner:
    """Something that a weak reference can watch."""


class Producer:
    """An exporter that hands out one capsule, with what a consumer asks of it."""

    def __init__(self, capsule: Any, device: tuple[int, int] = (dlpack.CPU, 0)) -> None:
        self._capsule = capsule
        self._device = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule


def memory_of(array: np.ndarray[Any, Any], owner: Any = None) -> dlpack.Memory:
    strides = tuple(step // array.itemsize for step in array.strides)
    return dlpack.Memory(array.ctypes.data, array.shape, strides, array.dtype, (dlpack.CPU, 0), (array, owner))


def name(capsule: Any) -> str:
    return repr(capsule).split('"')[1]


def versioned_tensor(capsule: Any) -> Any:
    return dlpack._Versioned.from_address(dlpack._get_pointer(capsule, b"dltensor_versioned"))


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 3), (2, 0)])
def test_protocol_is_the_newest_that_the_consumer_knows(version: tuple[int, int] | None) -> None:
    capsule = dlpack.to_capsule(memory_of(np.zeros(3, np.float32)), version)
    assert name(capsule) == ("dltensor_versioned" if version and version >= (1, 0) else "dltensor")


@pytest.mark.parametrize("version", [None, (1, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip_in_place(dtype: np.dtype[Any], version: tuple[int, int] | None) -> None:
    array = np.arange(24).astype(dtype).reshape(2, 3, 4).transpose(2, 0, 1)[1:]
    memory = dlpack.from_capsule(dlpack.to_capsule(memory_of(array), version))
    assert (memory.shape, memory.dtype, memory.device) == (array.shape, dtype, (dlpack.CPU, 0))
    assert memory.pointer == array.ctypes.data
    assert memory.nbytes == 23 * dtype.itemsize  # from element 1 to element 23
    view = memory.as_numpy()
    np.testing.assert_array_equal(view.astype(np.float32), array.astype(np.float32))
    view[0, 0, 0] = 77
    assert array[0, 0, 0] == 77


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1, 1)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    memory = dlpack.from_capsule(dlpack.to_capsule(memory_of(np.ones(shape, np.float32)), (1, 0)))
    assert memory.shape == shape
    np.testing.assert_array_equal(memory.as_numpy(), np.ones(shape))


def test_device_and_dtype_are_the_memory_s() -> None:
    memory = dlpack.Memory(0x1000, (2, 3), (1, 2), BFLOAT16, (dlpack.ROCM, 3), None)
    tensor = versioned_tensor(capsule := dlpack.to_capsule(memory, (1, 0))).tensor
    assert (tensor.device.type, tensor.device.index) == (10, 3)
    assert (tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes) == (4, 16, 1)
    assert (tensor.data, tensor.shape[:2], tensor.strides[:2]) == (0x1000, [2, 3], [1, 2])
    taken = dlpack.from_capsule(capsule)
    assert (taken.pointer, taken.device, taken.dtype) == (0x1000, (10, 3), BFLOAT16)


def test_a_copy_says_so() -> None:
    memory = memory_of(np.zeros(3, np.float32))
    assert versioned_tensor(dlpack.to_capsule(memory, (1, 0), copied=True)).flags == 2
    assert versioned_tensor(dlpack.to_capsule(memory, (1, 0))).flags == 0


@pytest.mark.parametrize("version", [None, (1, 0)])
@pytest.mark.parametrize("consumed", [False, True])
def test_owner_lives_as_long_as_the_capsule_or_its_consumer(version: tuple[int, int] | None, consumed: bool) -> None:
    owner = Owner()
    alive = weakref.ref(owner)
    capsule = dlpack.to_capsule(memory_of(np.zeros(3, np.float32), owner), version)
    del owner
    assert alive() is not None
    if consumed:
        taken = dlpack.from_capsule(capsule)
        assert name(capsule).startswith("used_")
        del capsule
        assert alive() is not None
        del taken
    else:
        del capsule
    assert alive() is None


def test_a_capsule_is_taken_once() -> None:
    capsule = dlpack.to_capsule(memory_of(np.zeros(3, np.float32)))
    taken = dlpack.from_capsule(capsule)
    with pytest.raises(ArgumentError, match=r"q gave .*used_dltensor.*not used before"):
        dlpack.from_capsule(capsule, "q")
    del taken


@pytest.mark.parametrize("thing", [None, 3, object()])
def test_no_capsule(thing: Any) -> None:
    with pytest.raises(ArgumentError, match="takes a DLPack capsule"):
        dlpack.from_capsule(thing)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint8, np.bool_])
def test_indices_and_masks_are_taken(dtype: Any) -> None:
    array = np.array([0, 1, 3], dtype)
    memory = dlpack.from_capsule(dlpack.to_capsule(memory_of(array), (1, 0)))
    assert memory.dtype == dtype
    assert memory.as_numpy().dtype == dtype
    assert np.from_dlpack(Producer(dlpack.to_capsule(memory, (1, 0)))).tolist() == array.tolist()


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint8, np.complex64, np.bool_])
def test_other_dtypes_are_refused_by_name(dtype: Any) -> None:
    array = np.zeros(3, dtype)
    count = sys.getrefcount(array)
    with pytest.raises(ArgumentError, match=rf"k is {np.dtype(dtype).name}\d*; accepted: float32, float16, bfloat16"):
        dlpack.from_capsule(array.__dlpack__(), "k", FLOATS)
    assert sys.getrefcount(array) == count  # the producer has its capsule back


def test_vector_elements_are_refused() -> None:
    capsule = dlpack.to_capsule(memory_of(np.zeros(3, np.float32)), (1, 0))
    versioned_tensor(capsule).tensor.dtype.lanes = 4
    with pytest.raises(ArgumentError, match="float32 in vectors of 4"):
        dlpack.from_capsule(capsule)


def test_negative_strides_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"v has strides \(-1,\).*none may be negative"):
        dlpack.from_capsule(np.zeros(3, np.float32)[::-1].__dlpack__(), "v")


def test_a_newer_major_version_is_refused() -> None:
    capsule = dlpack.to_capsule(memory_of(np.zeros(3, np.float32)), (1, 0))
    versioned_tensor(capsule).major = 2
    with pytest.raises(ArgumentError, match=r"version 2\.\d+; accepted: 1 and older"):
        dlpack.from_capsule(capsule)


def test_no_strides_mean_row_major_and_the_byte_offset_counts() -> None:
    array = np.arange(8, dtype=np.float32)
    capsule = dlpack.to_capsule(memory_of(array[:6].reshape(2, 3)), (1, 0))
    tensor = versioned_tensor(capsule).tensor
    tensor.strides = None
    tensor.byte_offset = 8
    memory = dlpack.from_capsule(capsule)
    assert memory.strides == (3, 1)
    np.testing.assert_array_equal(memory.as_numpy(), array[2:].reshape(2, 3))


def test_the_deleter_is_called_once_and_may_be_absent() -> None:
    calls = []
    deleter = dlpack._Deleter(lambda pointer: calls.append(pointer))
    capsule = dlpack.to_capsule(memory_of(np.zeros(3, np.float32)), (1, 0))
    managed = versioned_tensor(capsule)
    original = managed.deleter
    managed.deleter = ctypes.cast(deleter, ctypes.c_void_p).value
    taken = dlpack.from_capsule(capsule)
    assert not calls
    del taken, capsule
    assert calls == [ctypes.addressof(managed)]
    managed.deleter = original
    dlpack._Deleter(original)(ctypes.addressof(managed))

    capsule = dlpack.to_capsule(memory_of(np.zeros(3, np.float32)), (1, 0))
    versioned_tensor(capsule).deleter = None
    del capsule  # nothing to call


def test_numpy_and_torch_read_it() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    back = np.from_dlpack(Producer(dlpack.to_capsule(memory_of(array), (1, 0))))
    assert back.ctypes.data == array.ctypes.data

    torch = pytest.importorskip("torch")
    low = array.astype(BFLOAT16)
    for version in (None, (1, 0)):
        tensor = torch.from_dlpack(dlpack.to_capsule(memory_of(low), version))
        assert tensor.dtype == torch.bfloat16
        assert tensor.data_ptr() == low.ctypes.data
        np.testing.assert_array_equal(tensor.float().numpy(), array)


def test_memory_of_torch() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4).T
    pointer = tensor.data_ptr()
    memory = dlpack.from_capsule(tensor.__dlpack__())
    del tensor
    assert (memory.pointer, memory.shape, memory.strides) == (pointer, (4, 3), (1, 4))
    np.testing.assert_array_equal(memory.as_numpy().astype(np.float32), np.arange(12).reshape(3, 4).T)


def test_released_from_other_threads() -> None:
    owners = [Owner() for _ in range(8)]
    alive = [weakref.ref(owner) for owner in owners]
    capsules = [dlpack.to_capsule(memory_of(np.zeros(3, np.float32), owner), (1, 0)) for owner in owners]
    del owners

    def release() -> None:
        for _ in range(2):
            dlpack.from_capsule(capsules.pop())

    threads = [threading.Thread(target=release) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    assert not any(owner() for owner in alive)


AT_EXIT = """
import numpy as np
from hipattn import dlpack
{imports}
def memory():
    array = np.arange(6, dtype=np.float32)
    return dlpack.Memory(array.ctypes.data, (6,), (1,), array.dtype, (1, 0), array)
cycle = []
cycle.append((cycle, dlpack.to_capsule(memory(), (1, 0)), dlpack.from_capsule(dlpack.to_capsule(memory()))))
used = dlpack.to_capsule(memory(), (1, 0))
{consume}
np.everything_at_exit = [used, taken, cycle, dlpack.to_capsule(memory())]
"""


@pytest.mark.parametrize(
    ("imports", "consume"),
    [("", "taken = dlpack.from_capsule(used)"), ("import torch", "taken = torch.from_dlpack(used)")],
    ids=["hipattn", "torch"],
)
def test_interpreter_ends_with_everything_alive(imports: str, consume: str) -> None:
    if imports:
        pytest.importorskip("torch")
    code = AT_EXIT.format(imports=imports, consume=consume)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
