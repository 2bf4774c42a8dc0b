"""Loaded code objects, their kernels, and the launch."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hipattn.errors import ArgumentError, ClosedError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check
from hipattn.runtime.device import Device
from hipattn.runtime.owned import Owned
from hipattn.runtime.stream import Stream

__all__ = ["Arguments", "Extra", "Kernel", "Launch", "LaunchConfig", "Module", "Template"]

Dim3 = tuple[int, int, int]


class Arguments(ctypes.Structure):
    """A kernel's arguments: one struct, passed by value. Derive from it and give `_fields_`.

    HIP copies the bytes during the call: fields may be changed for the next launch at once.
    """


class Extra:
    """The `extra` array of ``hipModuleLaunchKernel`` for a struct of so many bytes."""

    __slots__ = ("_array", "_nbytes", "native")

    # Keys of the array (hip_runtime_api.h).
    _BUFFER_POINTER, _BUFFER_SIZE, _END = 1, 2, 3

    def __init__(self, nbytes: int) -> None:
        self._nbytes = ctypes.c_size_t(nbytes)  # HIP reads it through a pointer
        size = ctypes.addressof(self._nbytes)
        self._array = (ctypes.c_void_p * 5)(self._BUFFER_POINTER, 0, self._BUFFER_SIZE, size, self._END)
        self.native = bindings.launch_extra(self._array)

    def point_to(self, arguments: Arguments) -> None:
        """Make these the arguments."""
        self._array[1] = ctypes.addressof(arguments)


A = TypeVar("A", bound=Arguments)


class Template(Generic[A]):
    """Arguments of launches that differ in few fields, the same in each.

    Its copies are used again, since to lay one out costs more than to fill it in.
    """

    def __init__(self, arguments: A) -> None:
        self._arguments = arguments
        self._spare: list[A] = []  # a thread that takes one has it alone

    def take(self) -> A:
        """Return a copy. The fields that differ hold anything."""
        try:
            return self._spare.pop()
        except IndexError:
            return type(self._arguments).from_buffer_copy(self._arguments)

    def give(self, arguments: A) -> None:
        """Take back a copy that was launched."""
        self._spare.append(arguments)


def _dim3(name: str, value: int | tuple[int, ...]) -> Dim3:
    sizes = value if isinstance(value, tuple) else (value,)
    if not 1 <= len(sizes) <= 3 or not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ArgumentError(f"{name} is {value!r}; it takes 1 to 3 integers of 1 or more")
    return (*sizes, 1, 1)[:3]  # type: ignore[return-value]


@dataclass(frozen=True, init=False)
class LaunchConfig:
    """How many blocks of how many threads a launch has, and each block's dynamic LDS in bytes.

    Parameters
    ----------
    grid, block
        One to three sizes: blocks in the grid, threads in a block.
    shmem_size
        Dynamic LDS of a block in bytes.

    Raises
    ------
    ArgumentError
        A size is not a positive integer, a block has more than 1024 threads, or a dimension 2^32 or more.
    """

    grid: Dim3
    block: Dim3
    shmem_size: int

    def __init__(self, grid: int | tuple[int, ...], block: int | tuple[int, ...], shmem_size: int = 0) -> None:
        object.__setattr__(self, "grid", _dim3("grid", grid))
        object.__setattr__(self, "block", _dim3("block", block))
        threads = self.block[0] * self.block[1] * self.block[2]
        if threads > 1024:
            raise ArgumentError(f"block is {block!r}, {threads} threads; a block has at most 1024")
        if any(blocks * size >= 2**32 for blocks, size in zip(self.grid, self.block, strict=True)):
            raise ArgumentError(f"grid is {grid!r} of blocks {block!r}; a dimension has fewer than 2^32 threads")
        if shmem_size < 0:
            raise ArgumentError(f"shmem_size is {shmem_size}; it takes 0 or more bytes")
        object.__setattr__(self, "shmem_size", shmem_size)


class Kernel:
    """A kernel of a loaded module. Made by `Module.kernel`."""

    def __init__(self, module: Module, name: str, arguments: type[Arguments]) -> None:
        self.module = module  # a module stays loaded while a kernel of it is referenced
        self.name = name
        self.arguments = arguments
        self._extras: list[Extra] = []  # laid out before, which costs more than a launch; who takes one has it alone
        self._function = check(
            bindings.hip.hipModuleGetFunction(module.native, name.encode()),
            "hipModuleGetFunction",
            kernel=name,
        )

    def launch(self, stream: Stream, config: LaunchConfig, arguments: Arguments) -> None:
        """Add a launch to `stream`.

        The memory that the arguments point to must stay allocated until the kernel has run: tell its buffers with
        `DeviceBuffer.used_on`.

        Raises
        ------
        ArgumentError
            The arguments are not of the struct that the kernel takes.
        ClosedError
            The module was closed.
        HipError
            The launch is refused, or, with HIPATTN_SYNC, the kernel fails.
        """
        if self.module.closed:
            raise ClosedError(f"the module of kernel {self.name} is closed")
        if type(arguments) is not self.arguments:
            raise ArgumentError(
                f"arguments is {type(arguments).__name__}; kernel {self.name} takes {self.arguments.__name__}"
            )
        try:
            extra = self._extras.pop()
        except IndexError:
            extra = Extra(ctypes.sizeof(self.arguments))
        extra.point_to(arguments)
        grid, block = config.grid, config.block
        status = bindings.hip.hipModuleLaunchKernel(
            self._function, *grid, *block, config.shmem_size, stream.native, bindings.NO_PARAMETERS, extra.native
        )[0]
        self._extras.append(extra)
        call = "hipModuleLaunchKernel"
        if not status and stream.sync_each:
            call = "hipStreamSynchronize"
            status = bindings.hip.hipStreamSynchronize(stream.native)[0]
        if status:
            raise bindings.failure(status, call, kernel=self.name, grid=grid, block=block, lds=config.shmem_size)

    def attribute(self, name: str) -> int:
        """Return an attribute that the runtime knows, for example ``"NUM_REGS"`` or ``"SHARED_SIZE_BYTES"``."""
        which = getattr(bindings.hip.hipFunction_attribute, f"HIP_FUNC_ATTRIBUTE_{name}")
        return int(check(bindings.hip.hipFuncGetAttribute(which, self._function), "hipFuncGetAttribute", name=name))

    def __repr__(self) -> str:
        return f"<Kernel {self.name}>"


@dataclass(frozen=True)
class Launch(Generic[A]):
    """A launch that is ready: its kernel, configuration and arguments, whose fields may be changed between runs."""

    kernel: Kernel
    config: LaunchConfig
    arguments: A

    def run(self, stream: Stream) -> None:
        """Add it to `stream`. Its tensors' memory is told of that by the caller, as in `Kernel.launch`."""
        self.kernel.launch(stream, self.config, self.arguments)


class Module(Owned):
    """A code object loaded on a device.

    Parameters
    ----------
    image
        The code object: an ELF file, compiled for the device's architecture.
    device
        Default: device 0.

    Raises
    ------
    HipError
        The image is no code object, or one for another architecture.
    """

    def __init__(self, image: bytes, device: Device | None = None) -> None:
        self._native: Any = None
        self.device = Device.of(device)
        self.device.use()
        self._native = check(bindings.hip.hipModuleLoadData(image), "hipModuleLoadData", bytes=len(image))

    @property
    def native(self) -> Any:
        """The hip-python object.

        Raises
        ------
        ClosedError
            The module was closed.
        """
        if self._native is None:
            raise ClosedError("the module is closed")
        return self._native

    @property
    def closed(self) -> bool:
        """Whether the module was unloaded."""
        return self._native is None

    def kernel(self, name: str, arguments: type[Arguments]) -> Kernel:
        """Return the kernel of that (lowered) name, which takes one `arguments` struct by value.

        Raises
        ------
        HipError
            The module has no such kernel.
        """
        return Kernel(self, name, arguments)

    def close(self) -> None:
        """Unload the module, after the device's work. Closing twice does nothing."""
        native, self._native = self._native, None
        if native is not None:
            try:
                self.device.sync()
            finally:
                check(bindings.hip.hipModuleUnload(native), "hipModuleUnload")
