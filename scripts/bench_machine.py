"""What ``bench.py`` runs on: the device, memory filled with random numbers, and the ceilings of copy and product."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import numpy as np
from bench_timing import HipClock, Job, measure

import hipattn
from hipattn import Blas, Device, DeviceTensor, HipAttentionKernels, Stream
from hipattn.compiler.program import compiler_version
from hipattn.runtime import bindings
from hipattn.runtime.blas import Matrices, Product
from hipattn.tensor import as_dtype

__all__ = ["Machine"]

# Sets of inputs are as many as exceed any chip's cache together (MI300X's is 256 MB), within bounds.
_CACHE = 512 << 20
_MOST_SETS = 32

# Values repeat after so many elements, a prime: no row of a matrix is another.
_PERIOD = 262_147


@lru_cache(maxsize=128)
def _block(dtype: str, seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(_PERIOD, np.float32).astype(as_dtype(dtype))


class Machine:
    """A device with what contenders share on it. A context manager: its end frees all."""

    def __init__(self, *, quick: bool = False) -> None:
        self.device = Device(0)
        self.quick = quick or self.device.simulated
        self.stream = Stream(self.device)
        self.kernels = HipAttentionKernels(self.device)
        self.clock = HipClock(self.stream)
        self.ceilings: dict[str, float] = {}

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.kernels.close()
        hipattn.free_scratch()
        self.stream.close()

    def describe(self) -> dict[str, Any]:
        """Return what device and software this is."""
        device = self.device
        return {
            "device": device.name,
            "platform": bindings.platform().name,
            "arch": device.arch,
            "what": f"{device.arch}, {device.compute_units} compute units, {device.total_memory / 2**30:.0f} GiB",
            "software": f"hipattn {hipattn.__version__}, hip-python {version('hip-python')}, hiprtc "
            f"{compiler_version().rpartition(':')[2]}, NumPy {np.__version__} on {os.cpu_count()} CPU cores, "
            f"Python {platform.python_version()}",
            "simulated": device.simulated,
        }

    def random(self, shape: Sequence[int], dtype: str, seed: int = 0) -> DeviceTensor:
        """Return a tensor of normally distributed numbers: a block of them from the host, repeated by the device."""
        tensor = DeviceTensor.empty(tuple(shape), dtype, stream=self.stream)
        flat, block = tensor.reshape(tensor.size), _block(dtype, seed)[: tensor.size]
        flat[: block.size].copy_from(block, stream=self.stream)
        done = block.size
        while 0 < done < tensor.size:
            count = min(done, tensor.size - done)
            self.copy(flat[done : done + count], flat[:count])
            done += count
        self.stream.sync()
        return tensor

    def copy(self, to: DeviceTensor, source: DeviceTensor) -> None:
        """Copy a contiguous tensor on the device."""
        kind = bindings.hip.hipMemcpyKind.hipMemcpyDeviceToDevice
        copied = bindings.hip.hipMemcpyAsync(to.pointer, source.pointer, to.nbytes, kind, self.stream.native)
        bindings.check(copied, "hipMemcpyAsync", bytes=to.nbytes)

    def sets(self, nbytes: int) -> int:
        """Return how many sets of inputs of so many bytes to go through in turn."""
        return 2 if self.quick else max(1 + (nbytes < _CACHE), min(_MOST_SETS, -(-_CACHE // max(nbytes, 1))))

    def ceiling(self, name: str) -> float:
        """Return bytes/s of "copy" (read and written), or FLOP/s of "GEMM float16"; 0 if that cannot be measured."""
        if name and name not in self.ceilings:
            work, make = self._copying() if name == "copy" else self._product(name.split()[1])
            found = measure({name: make}, quick=self.quick)[name]
            self.ceilings[name] = work / found["seconds"] if "seconds" in found else 0.0
        return self.ceilings.get(name, 0.0)

    def _copying(self) -> tuple[float, Callable[[], Job]]:
        size = 1 << (12 if self.quick else 28)

        def make() -> Job:
            to, source = (self.random((size,), "float32") for _ in range(2))
            return Job(lambda _: self.copy(to, source), self.clock)

        return 8.0 * size, make

    def _product(self, dtype: str) -> tuple[float, Callable[[], Job]]:
        size = 32 if self.quick else 8192

        def make() -> Job:
            a, b, out = (self.random((size, size), dtype, seed) for seed in range(3))
            matrices = Matrices((size, size), (size, 1), dtype)
            product, blas = Product(matrices, matrices, matrices), Blas.of(self.device)
            return Job(lambda _: product.run(blas, self.stream, a.pointer, b.pointer, out.pointer), self.clock)

        return 2.0 * size**3, make
