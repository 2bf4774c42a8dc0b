"""Copy pages within the pools of a paged cache. Kernel: ``kernels_src/page_copy.hip``."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from hipattn.arguments import integer
from hipattn.compiler.loader import load
from hipattn.compiler.specialise import Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import addresses
from hipattn.kernels.rows import ACCESS_BYTES, BLOCK, check_device, share, vector_width
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["MAX_COPIES", "PageCopyParams", "defaults", "launch", "specialise"]

MAX_COPIES = 64  # of a launch: they travel with its arguments, so that nothing has to be uploaded
_Pages = ctypes.c_uint32 * MAX_COPIES


class PageCopyParams(Arguments):
    """What ``page_copy`` takes."""

    _fields_ = (
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("k_bytes", ctypes.c_int64),
        ("v_bytes", ctypes.c_int64),
        ("pages", ctypes.c_int64),
        ("layers", ctypes.c_uint32),
        ("copies", ctypes.c_uint32),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
        ("from", _Pages),
        ("to", _Pages),
    )


def specialise(vector: int) -> Specialisation:
    """Return the kernel for `vector` bytes an access."""
    return Specialisation("page_copy", "page_copy", PageCopyParams, {"BLOCK": BLOCK, "VECTOR": vector})


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernel for aligned pages."""
    yield specialise(ACCESS_BYTES)


def launch(k_pool: DeviceTensor, v_pool: DeviceTensor, copies: Sequence[tuple[int, int]], *, stream: Stream) -> None:
    """Copy pages to other pages in each layer: one launch for each `MAX_COPIES` of them.

    Parameters
    ----------
    k_pool, v_pool : [layers, pages, ...]
        Row-major without gaps, of any dtype; a page is all that one index of the second dimension names.
    copies : sequence of (from, to)
        Different pages to write to, none of which is read. Pages may be read more than once.
    stream
        Where the launches are added.

    Raises
    ------
    ArgumentError
        The pools do not fit together, a page is not in them, or one is written twice or written and read.
    HipError
        A launch fails.
    """
    check_device(stream, k_pool=k_pool, v_pool=v_pool)
    pools = k_pool, v_pool
    for name, pool in zip(("k_pool", "v_pool"), pools, strict=True):
        if pool.ndim < 2 or pool.shape[:2] != k_pool.shape[:2] or not pool.is_contiguous:
            raise ArgumentError(
                f"{name} has shape {pool.shape} and strides {pool.strides}; "
                "it takes [layers, pages, ...] without gaps, as many layers and pages as k_pool"
            )
    layers, pages = k_pool.shape[:2]
    read, written = {integer("copies", page) for page, _ in copies}, {integer("copies", page) for _, page in copies}
    if max(read | written, default=-1) >= pages:
        raise ArgumentError(f"copies has page {max(read | written)}; the pools have pages 0 to {pages - 1}")
    if len(written) < len(copies) or read & written:
        raise ArgumentError(f"copies are {copies!r}; each page is written once, and none that is read")
    sizes = [math.prod(pool.shape[2:]) * pool.dtype.itemsize for pool in pools]
    if not max(sizes) * layers:
        return
    facts = tuple((pool.pointer % ACCESS_BYTES, size) for pool, size in zip(pools, sizes, strict=True))
    pointers = addresses(stream, *pools)
    for first in range(0, len(copies), MAX_COPIES):
        some = copies[first : first + MAX_COPIES]
        kernel, config, shares = _plan(stream.device, layers, len(some), facts)
        numbers = (_Pages(*column) for column in zip(*some, strict=True))
        kernel.launch(stream, config, PageCopyParams(*pointers, *sizes, pages, layers, len(some), *shares, *numbers))


@lru_cache(maxsize=4096)
def _plan(
    device: Device, layers: int, copies: int, pools: tuple[tuple[int, int], ...]
) -> tuple[Kernel, LaunchConfig, tuple[int, int]]:
    if 2 * layers * copies >= 2**31:
        raise ArgumentError(f"k_pool has {layers} layers; a copy of {copies} pages takes fewer than 2^30 / {copies}")
    vector = vector_width(*((address, 1, (size,)) for address, size in pools))
    row_shift, blocks_per_row, config = share(2 * layers * copies, max(size for _, size in pools), vector)
    return load(specialise(vector), device), config, (row_shift, blocks_per_row)
