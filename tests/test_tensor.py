from __future__ import annotations

import gc
import weakref
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hipattn import ArgumentError, ClosedError, Device, DeviceBuffer, DeviceTensor, Stream
from hipattn.runtime import bindings, buffer, spare
from hipattn.tensor import BFLOAT16, BOOL, FLOAT16, FLOAT32, FLOATS, INT32, UINT8, as_dtype, in_place
from hipattn.tensor import DTYPES as STORED

PLATFORM = bindings.platform().name
SIMULATED = bindings.platform().simulated
NULL_STREAM = 1 if PLATFORM == "nvidia" else 0  # what DLPack calls it
HERE = {"cpu": (1, 0), "nvidia": (2, 0), "amd": (10, 0)}[PLATFORM]  # DLPack's CPU, CUDA or ROCM

on_a_gpu = pytest.mark.skipif(SIMULATED, reason="a simulated device's memory is the CPU's")
simulated = pytest.mark.skipif(not SIMULATED, reason="needs a simulated device")


def numbers(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)


class Foreign:
    """An array of another library: the attributes that it is given."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Exported:
    """A tensor as another library's array: asked with the arguments that it was made with."""

    def __init__(self, tensor: DeviceTensor, **options: Any) -> None:
        self.tensor = tensor
        self.options = options

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__(**options | self.options)


def interface(tensor: DeviceTensor, **changes: Any) -> Foreign:
    """Return another library's array over the tensor's memory."""
    return Foreign(
        tensor=tensor,
        __cuda_array_interface__={
            "shape": tensor.shape,
            "typestr": tensor.dtype.str,
            "data": (tensor.pointer, False),
            "version": 3,
        }
        | changes,
    )


class DLPackDevice:
    def __init__(self, kind: int, index: int) -> None:
        self._device = kind, index

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("nothing is exported from a device that is not accepted")


# dtypes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float32", FLOAT32),
        (np.float16, FLOAT16),
        ("bfloat16", BFLOAT16),
        (ml_dtypes.bfloat16, BFLOAT16),
        (BFLOAT16, BFLOAT16),
        ("f2", FLOAT16),
    ],
)
def test_dtypes(given: Any, expected: Any) -> None:
    assert as_dtype(given) is expected


@pytest.mark.parametrize(("given", "name"), [(np.float64, "float64"), ("int8", "int8"), ("what", "'what'")])
def test_other_dtypes_are_refused(given: Any, name: str) -> None:
    with pytest.raises(ArgumentError, match=f"weights is {name}; accepted: float32, float16, bfloat16"):
        as_dtype(given, "weights")


# construction and copies


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 5), (2, 3, 5)])
def test_to_the_device_and_back(stream: Stream, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    array = numbers(*shape, dtype=dtype)
    tensor = DeviceTensor.from_numpy(array, stream=stream)
    assert (tensor.shape, tensor.dtype, tensor.ndim, tensor.size) == (shape, dtype, len(shape), array.size)
    assert (tensor.nbytes, tensor.device, tensor.is_contiguous) == (array.nbytes, stream.device, True)
    back = tensor.numpy()
    assert (back.shape, back.dtype) == (shape, dtype)
    np.testing.assert_array_equal(back, array)
    assert back.flags.writeable


@pytest.mark.parametrize(
    "array",
    [numbers(3, 4).T, numbers(3, 4)[::-1, ::-2], numbers(3, 4).astype(">f4")],
    ids=["T", "neg", "big"],
)
def test_any_layout_and_byte_order_is_uploaded(array: np.ndarray[Any, Any]) -> None:
    tensor = DeviceTensor.from_numpy(array)
    assert tensor.is_contiguous
    np.testing.assert_array_equal(tensor.numpy(), array)


def test_the_array_may_change_after_the_upload(stream: Stream) -> None:
    array = numbers(1000)
    tensor = DeviceTensor.from_numpy(array, stream=stream)
    array[:] = -1
    np.testing.assert_array_equal(tensor.numpy(), numbers(1000))


def test_uploads_from_several_streams_are_all_waited_for(device: Device) -> None:
    with Stream(device) as a, Stream(device) as b:
        tensor = DeviceTensor.empty((2, 1000), stream=a)
        a.sync()
        tensor[0].copy_from(numbers(1000), stream=a)
        tensor[1].copy_from(-numbers(1000), stream=b)
        np.testing.assert_array_equal(tensor.numpy(), [numbers(1000), -numbers(1000)])


def test_fill(stream: Stream) -> None:
    for dtype, value in ((np.float32, -2.5), (np.int32, -3)):
        tensor = DeviceTensor.from_numpy(np.arange(12).reshape(3, 4).astype(dtype), stream=stream)
        tensor[1].fill(value, stream=stream)
        assert tensor.numpy().tolist() == [[0, 1, 2, 3], [value] * 4, [8, 9, 10, 11]]
        tensor[:0].fill(value, stream=stream)
        with pytest.raises(ArgumentError, match=r"the tensor is \w+ with strides \(4, 2\); it takes float32 or int32"):
            tensor[:, ::2].fill(value, stream=stream)
    with pytest.raises(ArgumentError, match=r"the tensor is float16 .*; it takes float32 or int32"):
        DeviceTensor.empty((4,), np.float16, stream=stream).fill(1, stream=stream)


def test_copy_from(stream: Stream) -> None:
    tensor = DeviceTensor.from_numpy(numbers(4, 6), stream=stream)
    tensor[1:3, ::2].copy_from(-numbers(2, 3))
    expected = numbers(4, 6)
    expected[1:3, ::2] = -numbers(2, 3)
    np.testing.assert_array_equal(tensor.numpy(), expected)
    tensor.copy_from(numbers(4, 6))
    np.testing.assert_array_equal(tensor.numpy(), numbers(4, 6))
    with pytest.raises(ArgumentError, match=r"shape \(6, 4\); the tensor takes \(4, 6\)"):
        tensor.copy_from(numbers(6, 4))


@pytest.mark.parametrize("dtype", [np.float64, np.int16, object])
def test_other_arrays_are_refused_before_anything_is_allocated(dtype: Any) -> None:
    with bindings.record() as calls, pytest.raises(ArgumentError, match=np.dtype(dtype).name):
        DeviceTensor.from_numpy(np.zeros(3, dtype))
    assert not calls


@pytest.mark.parametrize(
    ("shape", "strides", "offset", "match"),
    [
        ((-1, 2), None, 0, r"shape is \(-1, 2\)"),
        ((2.0,), None, 0, r"shape is \(2.0,\)"),
        ((2, 2), (2,), 0, r"strides are \(2,\); shape \(2, 2\) takes 2"),
        ((2,), (-1,), 0, r"strides is \(-1,\)"),
        ((2,), None, -1, r"offset is \(-1,\)"),
        ((17,), None, 0, "ends at byte 68 of a buffer of 64"),
        ((2, 3), (8, 4), 0, "ends at byte 68 of a buffer of 64"),
        ((1,), None, 16, "ends at byte 68 of a buffer of 64"),
    ],
)
def test_views_outside_the_buffer_are_refused(shape: Any, strides: Any, offset: int, match: str) -> None:
    with DeviceBuffer(64) as memory, pytest.raises(ArgumentError, match=match):
        DeviceTensor(memory, shape, FLOAT32, strides, offset)


def test_the_last_element_fits() -> None:
    with DeviceBuffer(64) as memory:
        assert DeviceTensor(memory, (2, 4), FLOAT32, (8, 2), 1).size == 8
        assert DeviceTensor(memory, (0, 100), FLOAT32, (1000, 1000), 16).size == 0


def test_a_closed_buffer_is_refused() -> None:
    tensor = DeviceTensor.from_numpy(numbers(4))
    tensor.buffer.close()
    for use in (lambda: tensor.pointer, tensor.numpy, tensor[1:].numpy, tensor.__dlpack__):
        with pytest.raises(ClosedError, match="the buffer of 16 bytes is closed"):
            use()


def test_numpy_makes_no_array_of_it_by_itself() -> None:
    with pytest.raises(ArgumentError, match=r"numpy\(\) copies it to the host"):
        np.asarray(DeviceTensor.from_numpy(numbers(4)))


def test_a_view_keeps_the_memory(device: Device) -> None:
    before = buffer.live()
    view = DeviceTensor.from_numpy(numbers(4, 4), stream=device.default_stream)[1:, 2]
    np.testing.assert_array_equal(view.numpy(), numbers(4, 4)[1:, 2])
    del view
    assert buffer.live() == before


# views


SLICES = st.slices(7).filter(lambda item: item.step is None or item.step > 0)


@given(st.tuples(*[st.one_of(st.integers(-7, 6), SLICES)] * 3), st.permutations(range(3)))
def test_indexing_is_numpy_s(index: tuple[Any, ...], axes: list[int]) -> None:
    array = numbers(7, 7, 7)
    tensor = DeviceTensor.from_numpy(array)
    view, expected = tensor.transpose(*axes)[index], array.transpose(axes)[index]
    assert view.shape == expected.shape
    np.testing.assert_array_equal(view.numpy(), expected)


def test_ellipsis_and_missing_axes() -> None:
    array = numbers(2, 3, 4)
    tensor = DeviceTensor.from_numpy(array)
    for index in (..., (..., 1), (1, ...), (0, ..., 2), (1,), (np.int64(1), slice(1, None)), (1, 2, 3)):
        np.testing.assert_array_equal(tensor[index].numpy(), array[index])


@pytest.mark.parametrize(
    ("index", "error", "match"),
    [
        ((0, 0, 0), ArgumentError, "index has 3 items; the tensor has 2"),
        (slice(None, None, -1), ArgumentError, "negative step"),
        (None, ArgumentError, "None is not accepted"),
        (True, ArgumentError, "True is not accepted"),
        (1.0, ArgumentError, "1.0 is not accepted"),
        ([0, 1], ArgumentError, "is not accepted"),
        ((0, 3), IndexError, "index 3 is out of range for axis 1 of size 3"),
        (-3, IndexError, "out of range"),
    ],
)
def test_other_indices_are_refused(index: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        DeviceTensor.from_numpy(numbers(2, 3))[index]


def test_transpose_and_reshape() -> None:
    array = numbers(2, 3, 4)
    tensor = DeviceTensor.from_numpy(array)
    turned = tensor.transpose(2, 0, 1)
    assert not turned.is_contiguous
    assert turned.pointer == tensor.pointer
    np.testing.assert_array_equal(turned.numpy(), array.transpose(2, 0, 1))
    np.testing.assert_array_equal(tensor.reshape(6, 4).numpy(), array.reshape(6, 4))
    with pytest.raises(ArgumentError, match="permutation"):
        tensor.transpose(0, 1)
    with pytest.raises(ArgumentError, match=r"\(2, 3, 4\) \(contiguous\) cannot be viewed as \(5, 5\)"):
        tensor.reshape(5, 5)
    with pytest.raises(ArgumentError, match="not contiguous"):
        turned.reshape(24)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=4),
    st.lists(st.integers(0, 3), max_size=2),
)
def test_broadcast_is_numpy_s(axes: list[tuple[int, bool]], new: list[int]) -> None:
    array = numbers(*(1 if repeats else size for size, repeats in axes))
    shape = (*new, *(size for size, _ in axes))
    view = DeviceTensor.from_numpy(array).broadcast_to(shape)
    np.testing.assert_array_equal(view.numpy(), np.broadcast_to(array, shape))


@pytest.mark.parametrize("shape", [(3,), (2, 4), (3, 3), (1, 3), (5, 2, 4), ()])
def test_what_does_not_broadcast_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match=r"shape \(2, 3\) cannot be broadcast to"):
        DeviceTensor.from_numpy(numbers(2, 3)).broadcast_to(shape)


def test_sharing_memory(stream: Stream) -> None:
    tensor = DeviceTensor.from_numpy(numbers(4, 6), stream=stream)
    other = DeviceTensor.from_numpy(numbers(3), stream=stream)
    foreign = [DeviceTensor.asarray(interface(x), stream=stream) for x in (tensor, other)]
    assert tensor.shares_memory(tensor[2:, ::2])
    assert tensor.shares_memory(foreign[0])
    assert not tensor.shares_memory(foreign[1])
    assert not tensor[:2].shares_memory(tensor[2:])
    assert not tensor[:, ::2].shares_memory(tensor[:, 1::2])
    assert not foreign[0][:2].shares_memory(tensor[2:])
    assert not tensor[:0].shares_memory(tensor)


def test_repeated_elements() -> None:
    tensor = DeviceTensor.from_numpy(numbers(4))
    rows = DeviceTensor(tensor.buffer, (3, 4), FLOAT32, (0, 1))
    np.testing.assert_array_equal(rows.numpy(), np.broadcast_to(numbers(4), (3, 4)))


# export


def test_dlpack_device(device: Device) -> None:
    tensor = DeviceTensor.empty((2,), stream=device.default_stream)
    assert tensor.__dlpack_device__() == (HERE[0], 0 if SIMULATED else device.index)


def test_memory_between_elements_is_refused() -> None:
    buffer = DeviceTensor.empty((64,), np.uint8).buffer

    class Odd:
        __cuda_array_interface__: ClassVar = {
            "shape": (4,),
            "typestr": "<f4",
            "data": (buffer.pointer + 2, False),
            "version": 3,
        }

    with pytest.raises(ArgumentError, match=r"q is at 0x\w+2; accepted: multiples of 4"):
        DeviceTensor.asarray(Odd(), argument="q")


@pytest.mark.parametrize("version", [None, (1, 0)])
def test_export_and_import_in_place(stream: Stream, version: tuple[int, int] | None) -> None:
    tensor = DeviceTensor.from_numpy(numbers(3, 4, dtype=BFLOAT16), stream=stream)[1:].transpose(1, 0)
    back = DeviceTensor.asarray(Exported(tensor, max_version=version), stream=stream)
    assert (back.pointer, back.shape, back.strides) == (tensor.pointer, tensor.shape, tensor.strides)
    assert (back.dtype, back.device) == (BFLOAT16, stream.device)


def test_a_capsule_keeps_the_memory() -> None:
    before = buffer.live()
    tensor = DeviceTensor.from_numpy(numbers(4))
    capsule = tensor.__dlpack__(max_version=(1, 0))
    del tensor
    assert buffer.live()[0] == before[0] + 1
    del capsule
    assert buffer.live() == before


def test_export_of_a_copy(stream: Stream) -> None:
    tensor = DeviceTensor.from_numpy(numbers(3, 4), stream=stream)[:, ::2]
    copy = DeviceTensor.asarray(Exported(tensor, copy=True), stream=stream)
    assert copy.pointer != tensor.pointer
    tensor.copy_from(-numbers(3, 2))
    np.testing.assert_array_equal(copy.numpy(), numbers(3, 4)[:, ::2])


def test_export_elsewhere_is_refused() -> None:
    tensor = DeviceTensor.empty((2,))
    with pytest.raises(BufferError, match=r"dl_device is Metal device 0; .* on (CPU|CUDA|ROCM) device 0"):
        tensor.__dlpack__(dl_device=(8, 0))
    assert tensor.__dlpack__(dl_device=HERE)


@pytest.mark.parametrize("stream", {"amd": [1, 2, -2], "nvidia": [0, -2], "cpu": [0, 1, 2, -2, 0x7000]}[PLATFORM])
def test_streams_that_are_refused(stream: int) -> None:
    with pytest.raises(ArgumentError, match=f"stream is {stream}; accepted: None"):
        DeviceTensor.empty((2,)).__dlpack__(stream=stream)


@simulated
def test_host_consumers_wait_for_the_device(device: Device) -> None:
    torch = pytest.importorskip("torch")
    array = numbers(1 << 20)
    with Stream(device) as a, Stream(device) as b:
        tensor = DeviceTensor.empty(array.shape, stream=a)
        a.sync()
        kind = bindings.hip.hipMemcpyKind.hipMemcpyHostToDevice
        bindings.check(
            bindings.hip.hipMemcpyAsync(tensor.pointer, array.ctypes.data, array.nbytes, kind, b.native),
            "hipMemcpyAsync",
        )
        tensor.buffer.used_on(b)
        assert torch.from_dlpack(tensor).equal(torch.from_numpy(array))
        assert np.from_dlpack(tensor)[-1] == array[-1]


@on_a_gpu
def test_a_consumer_s_stream_waits_for_the_tensor_s(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "LARGEST", 0)  # what is freed goes to the driver
    with Stream(device) as mine, Stream(device) as consumer:
        for stream, waits in ((-1, 0), (mine.handle, 0), (consumer.handle, 1), (None, 1), (NULL_STREAM, 1)):
            tensor = DeviceTensor.from_numpy(numbers(4), stream=mine)
            with bindings.record() as calls:
                tensor.__dlpack__(stream=stream)
            # The consumer waits for the work, and, at its first use, for the allocation.
            assert bool([name for name, _ in calls].count("hipStreamWaitEvent")) == bool(waits)
            # The memory is freed after the consumer's work.
            with bindings.record() as calls:
                tensor.buffer.close()
            names = [name for name, _ in calls]
            assert names[-1] == "hipFreeAsync"
            assert names.count("hipStreamWaitEvent") == waits


@on_a_gpu
def test_cuda_array_interface(device: Device) -> None:
    with Stream(device) as stream:
        tensor = DeviceTensor.from_numpy(numbers(3, 4, dtype=np.float16), stream=stream)[1:, ::2]
        assert tensor.__cuda_array_interface__ == {
            "shape": (2, 2),
            "strides": (8, 4),
            "typestr": "<f2",
            "data": (tensor.pointer, False),
            "stream": stream.handle,
            "version": 3,
        }
        back = DeviceTensor.asarray(Foreign(__cuda_array_interface__=tensor.__cuda_array_interface__))
        np.testing.assert_array_equal(back.numpy(), tensor.numpy())
    assert DeviceTensor.empty((2,)).__cuda_array_interface__["stream"] == 1
    assert not hasattr(DeviceTensor.empty((2,), "bfloat16"), "__cuda_array_interface__")


@simulated
def test_simulated_memory_is_not_offered_to_gpu_libraries() -> None:
    with pytest.raises(AttributeError, match="simulated"):
        DeviceTensor.empty((2,)).__cuda_array_interface__  # noqa: B018


# import


def test_a_tensor_is_itself(stream: Stream) -> None:
    tensor = DeviceTensor.empty((2,), stream=stream)
    assert DeviceTensor.asarray(tensor) is tensor
    assert DeviceTensor.asarray(tensor, stream=stream) is tensor


@pytest.mark.parametrize(
    "obj",
    [[[1, 2.5], [3, 4]], [1, 2, 3], 2.5, (True, False), numbers(2, 3, dtype=np.float16), np.float32(3), []],
    ids=repr,
)
def test_host_objects_are_uploaded(stream: Stream, obj: Any) -> None:
    tensor = DeviceTensor.asarray(obj, stream=stream)
    assert tensor.dtype == (obj.dtype if hasattr(obj, "dtype") else FLOAT32)
    assert tensor.device is stream.device
    np.testing.assert_array_equal(tensor.numpy(), np.asarray(obj))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_torch_tensors_of_the_host_are_uploaded(stream: Stream, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    array = torch.arange(12, dtype=getattr(torch, dtype)).reshape(3, 4).T
    tensor = DeviceTensor.asarray(array, stream=stream)
    assert (tensor.dtype, tensor.shape) == (as_dtype(dtype), (4, 3))
    assert tensor.pointer != array.data_ptr()
    np.testing.assert_array_equal(tensor.numpy().astype(np.float32), array.float().numpy())


@pytest.mark.parametrize("dtype", [INT32, UINT8, BOOL], ids=str)
def test_indices_and_masks(stream: Stream, dtype: np.dtype[Any]) -> None:
    torch = pytest.importorskip("torch")
    array = np.array([[0, 1, 3], [5, 0, 0]], dtype)
    tensor = DeviceTensor.asarray(array, stream=stream)
    assert (tensor.dtype, tensor.is_contiguous) == (dtype, True)
    assert DeviceTensor.asarray(torch.from_numpy(array), stream=stream).numpy().tolist() == array.tolist()
    np.testing.assert_array_equal(tensor[:, 1:].numpy(), array[:, 1:])
    back = DeviceTensor.asarray(Exported(tensor), stream=stream)
    assert (back.pointer, back.dtype) == (tensor.pointer, dtype)
    foreign = DeviceTensor.asarray(interface(tensor), stream=stream)
    assert (foreign.pointer, foreign.dtype) == (tensor.pointer, dtype)
    if SIMULATED:
        assert torch.from_dlpack(tensor).tolist() == array.tolist()


@pytest.mark.parametrize("dtype", [INT32, UINT8, BOOL], ids=str)
def test_indices_and_masks_are_refused_where_floats_are_asked_for(stream: Stream, dtype: np.dtype[Any]) -> None:
    array = np.zeros(4, dtype)
    tensor = DeviceTensor.from_numpy(array, stream=stream)
    for obj in (array, tensor, Exported(tensor), interface(tensor)):
        with pytest.raises(ArgumentError, match=r"q is .*; accepted: (float32, float16, bfloat16|<f4, <f2)$"):
            in_place(obj, stream=stream, argument="q", accepted=FLOATS)


def test_torch_errors_are_named() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ArgumentError, match=r"q, a Tensor, cannot be exported: .*grad"):
        DeviceTensor.asarray(torch.zeros(3, requires_grad=True), argument="q")
    with pytest.raises(ArgumentError, match="q is float64; accepted: float32, float16, bfloat16"):
        DeviceTensor.asarray(torch.zeros(3, dtype=torch.float64), argument="q")


@pytest.mark.parametrize(
    ("obj", "match"),
    [
        (np.zeros(3), "v is float64"),
        (np.zeros(3, int), "v is int64"),
        ([[1], [1, 2]], "v is no array"),
        ("text", "v is str"),
        (None, "v is None"),
    ],
    ids=str,
)
def test_other_host_objects_are_refused(obj: Any, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        DeviceTensor.asarray(obj, argument="v")


@simulated
def test_simulated_memory_that_went_through_torch_is_used_in_place(stream: Stream) -> None:
    torch = pytest.importorskip("torch")
    gc.collect()
    before = buffer.live()
    array = torch.from_dlpack(DeviceTensor.from_numpy(numbers(4, 6), stream=stream))[1:, ::2]
    tensor = DeviceTensor.asarray(array, stream=stream)
    assert tensor.pointer == array.data_ptr()
    array[0, 0] = 77
    expected = numbers(4, 6)[1:, ::2].copy()
    expected[0, 0] = 77
    del array
    np.testing.assert_array_equal(tensor.numpy(), expected)
    del tensor
    assert buffer.live() == before


@simulated
def test_the_host_waits_before_it_gives_host_memory_back() -> None:
    tensor = DeviceTensor.asarray(Exported(DeviceTensor.from_numpy(numbers(4))))
    with bindings.record() as calls:
        tensor.buffer.close()
    assert "hipDeviceSynchronize" in [name for name, _ in calls]


@pytest.mark.parametrize(
    ("kind", "words"), [(14, "oneAPI device 1"), (8, "Metal device 1"), (99, "DLPack type 99 device 1")]
)
def test_other_platforms_are_refused(kind: int, words: str) -> None:
    devices = {"amd": "ROCM devices and ", "nvidia": "CUDA devices and ", "cpu": ""}[PLATFORM]
    accepted = f"{PLATFORM} platform: {devices}host memory"
    with pytest.raises(ArgumentError, match=f"k is on {words}; accepted on the {accepted}"):
        DeviceTensor.asarray(DLPackDevice(kind, 1), argument="k")


def test_a_gpu_s_array_on_another_device_is_refused() -> None:
    match = "k is on ROCM device 99" if SIMULATED else "k is on device 99; accepted: 0 to 0"
    with pytest.raises(ArgumentError, match=match):
        DeviceTensor.asarray(DLPackDevice(2 if PLATFORM == "nvidia" else 10, 99), argument="k")


@pytest.mark.skipif(Device.count() < 2, reason="needs two devices")
def test_arrays_of_another_device_than_the_stream_s_are_refused() -> None:
    with Stream(Device(1)) as stream:
        tensor = DeviceTensor.empty((2,))
        for obj in (tensor, Exported(tensor), interface(tensor)):
            with pytest.raises(ArgumentError, match="q is on device 0; the stream is of device 1"):
                DeviceTensor.asarray(obj, stream=stream, argument="q")


def test_an_old_producer_s_protocol(stream: Stream) -> None:
    class Old:
        def __dlpack_device__(self) -> tuple[int, int]:
            return tensor.__dlpack_device__()

        def __dlpack__(self, stream: int | None = None) -> Any:
            return tensor.__dlpack__(stream=stream)

    tensor = DeviceTensor.from_numpy(numbers(4), stream=stream)
    assert DeviceTensor.asarray(Old(), stream=stream).pointer == tensor.pointer


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("strides", [None, (16, 4), (4, 8), (0, 4)])
def test_cuda_array_interface_is_used_in_place(stream: Stream, version: int, strides: Any) -> None:
    tensor = DeviceTensor.from_numpy(numbers(40), stream=stream)
    foreign = interface(tensor, shape=(3, 4), strides=strides, version=version)
    view = DeviceTensor.asarray(foreign, stream=stream)
    alive = weakref.ref(foreign)
    del foreign
    assert (view.pointer, view.shape, view.device) == (tensor.pointer, (3, 4), stream.device)
    expected = np.lib.stride_tricks.as_strided(numbers(40), (3, 4), strides or (16, 4))
    np.testing.assert_array_equal(view.numpy(), expected)
    assert alive() is not None
    del view
    assert alive() is None


def test_an_empty_array_has_no_address() -> None:
    foreign = Foreign(__cuda_array_interface__={"shape": (0, 3), "typestr": "<f4", "data": (0, False), "version": 3})
    assert DeviceTensor.asarray(foreign).numpy().shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"version": 1}, "version 1, with no mask; accepted: version 2 or 3"),
        ({"mask": "a mask"}, "version 3, with a mask"),
        ({"typestr": "<f8"}, "q is <f8; accepted: <f4, <f2"),
        ({"typestr": ">f4"}, "q is >f4"),
        ({"strides": (-4,)}, r"q has strides \(-4,\) in bytes; .*none negative"),
        ({"strides": (6,)}, "multiples of 4"),
        ({"stream": 0}, "q has stream 0"),
    ],
    ids=str,
)
def test_cuda_array_interfaces_that_are_refused(changes: dict[str, Any], match: str) -> None:
    tensor = DeviceTensor.empty((4,))
    with pytest.raises(ArgumentError, match=match):
        DeviceTensor.asarray(interface(tensor, **changes), argument="q")


def test_an_address_of_another_platform_is_refused() -> None:
    host = numbers(4)
    foreign = interface(DeviceTensor.empty((4,)), data=(host.ctypes.data, False))
    platform = bindings.platform().name
    with pytest.raises(ArgumentError, match=rf"q is at 0x\w+; accepted: device memory of the {platform} platform"):
        DeviceTensor.asarray(foreign, argument="q")


def test_streams_of_the_cuda_array_interface_are_waited_for(device: Device) -> None:
    with Stream(device) as mine, Stream(device) as theirs:
        tensor = DeviceTensor.from_numpy(numbers(4), stream=mine)
        for stream, waits in ((None, 0), (mine.handle, 0), (theirs.handle, 1), (1, 1)):
            with bindings.record() as calls:
                view = DeviceTensor.asarray(interface(tensor, stream=stream), stream=mine)
            assert [name for name, _ in calls].count("hipStreamWaitEvent") == waits
            # When the view goes, the owner's stream waits for our work.
            view.buffer.used_on(mine)
            with bindings.record() as calls:
                view.buffer.close()
            assert [name for name, _ in calls].count("hipStreamWaitEvent") == waits
