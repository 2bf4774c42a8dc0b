"""Which tiles of scores a mask leaves whole, in part, or not at all. Kernel: ``kernels_src/block_mask.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache

from hipattn.arguments import integer
from hipattn.compiler.loader import load
from hipattn.compiler.specialise import Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.mods import MAX_VALUES, MaskMod
from hipattn.kernels.rows import BLOCK, MAX_BLOCKS, check_device
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import UINT8, DeviceTensor

__all__ = ["BlockMaskParams", "defaults", "launch", "specialise"]


class BlockMaskParams(Arguments):
    """What ``block_mask`` takes."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("tiles", ctypes.c_int64),
        ("seq_q", ctypes.c_int32),
        ("seq_k", ctypes.c_int32),
        ("q_tiles", ctypes.c_int32),
        ("k_tiles", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("user_tensors", ctypes.c_void_p * MAX_VALUES),
        ("user_floats", ctypes.c_float * MAX_VALUES),
        ("user_ints", ctypes.c_int32 * MAX_VALUES),
    )


def specialise(mask_mod: str, block_m: int, block_n: int) -> Specialisation:
    """Return the kernel for a rendered mask and tiles of `block_m` queries and `block_n` keys."""
    constants = {"BLOCK": BLOCK, "BLOCK_M": block_m, "BLOCK_N": block_n}
    return Specialisation("block_mask", "block_mask", BlockMaskParams, constants, prelude=mask_mod)


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return no kernel: each has a user's expression."""
    return iter(())


def launch(
    mask_mod: MaskMod,
    batch: int,
    heads: int,
    seq_q: int,
    seq_k: int,
    block_m: int,
    block_n: int,
    out: DeviceTensor,
    *,
    stream: Stream,
) -> None:
    """Evaluate a mask everywhere, and write what it leaves of each tile: 0 nothing, 1 a part, 2 all.

    Parameters
    ----------
    mask_mod
        The mask.
    batch, heads, seq_q, seq_k
        Sizes of the scores. Positions past the last query or key do not count.
    block_m, block_n
        Queries and keys of a tile.
    out : [batch, heads, ⌈seq_q / block_m⌉, ⌈seq_k / block_n⌉]
        uint8, contiguous.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        A size or `out` does not fit, or a tensor is on another device than `stream`.
    CompileError
        The mask does not compile.
    HipError
        The launch fails.
    """
    sizes = {"batch": batch, "heads": heads, "seq_q": seq_q, "seq_k": seq_k}
    for name, size in sizes.items():
        integer(name, size)
    q_tiles, k_tiles = -(-seq_q // integer("block_m", block_m, 1)), -(-seq_k // integer("block_n", block_n, 1))
    check_device(stream, out=out)
    shape = (batch, heads, q_tiles, k_tiles)
    if out.shape != shape or out.dtype != UINT8 or not out.is_contiguous:
        layout = "contiguous" if out.is_contiguous else "not contiguous"
        raise ArgumentError(f"out is {out.dtype.name} {out.shape}, {layout}; it takes uint8 {shape}, contiguous")
    if not out.size:
        return
    mask = mask_mod.on(stream)
    kernel = _kernel(stream.device, mask.render("user_mask_mod", 0, 0, params="BlockMaskParams"), block_m, block_n)
    arguments = BlockMaskParams(out.pointer, out.size, seq_q, seq_k, q_tiles, k_tiles, heads)
    mask.fill(arguments, 0, 0)
    for tensor in (out, *mask.tensors):
        tensor.buffer.used_on(stream)
    blocks = -(-out.size // (BLOCK // stream.device.wave_size))
    kernel.launch(stream, LaunchConfig(min(MAX_BLOCKS, blocks), BLOCK), arguments)


@lru_cache(maxsize=256)
def _kernel(device: Device, mask_mod: str, block_m: int, block_n: int) -> Kernel:
    return load(specialise(mask_mod, block_m, block_n), device)
