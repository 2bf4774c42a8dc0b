"""Softmax over rows of scores. Kernel: ``kernels_src/softmax.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from functools import lru_cache

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import Specialisation
from hipattn.compiler.target import NVIDIA_ARCHS, wave_size
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, addresses, operand
from hipattn.kernels.rows import BLOCK, MAX_BLOCKS, as_rows, power_of_two, vector_width, widest
from hipattn.layout import is_row_major
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, Launch, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import FLOAT32, DeviceTensor, as_dtype

__all__ = ["SoftmaxParams", "choose", "choose_long", "defaults", "launch", "prepare", "specialise"]

MAX_HELD = 32  # elements of a row that a thread keeps in registers, beside those of other blocks
MAX_BLOCK = 512  # with 1024 threads, older chips have 64 registers a thread: too few to hold 32 elements
CACHED_BYTES = 32 << 20  # of what is read twice, at a time: large chips keep that much
MIN_GROUP = 8  # threads that take a row; fewer would not fill a memory transaction

_FEW_REGISTERS = ("gfx900", "gfx906", "gfx908", "gfx90c")  # 128 for a thread of MAX_BLOCK; AMD's others have 256
_WIDE = 4  # elements of an access


class SoftmaxParams(Arguments):
    """What ``attention_softmax`` takes."""

    _fields_ = (
        ("scores", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("in_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("seq_q", ctypes.c_int64),
    )


def choose(columns: int, vector: int, wave: int) -> Mapping[str, int]:
    """Decide how many threads take a row, and how much of it each keeps in registers.

    Returns
    -------
    constants : mapping
        BLOCK, GROUP (threads of a row: part of a wave, a wave, or the block), HELD (0: the row is too long) and VECTOR.
    """
    group = max(MIN_GROUP, min(wave, power_of_two(-(-columns // vector))))
    if columns > wave * MAX_HELD:
        group = BLOCK
        while group < MAX_BLOCK and columns > group * MAX_HELD:
            group *= 2
    held = max(vector, power_of_two(-(-columns // group)))
    return {
        "BLOCK": max(BLOCK, group),
        "GROUP": group,
        "HELD": held if held <= MAX_HELD else 0,
        "VECTOR": vector,
    }


def choose_long(columns: int, vector: int, arch: str) -> Mapping[str, int]:
    """Do the same for this kernel, which keeps as much of a long row as there are registers for.

    Returns
    -------
    constants : mapping
        Those of `choose`, HELD above 0, and LONG: whether there is a rest, which is read twice.
    """
    chosen = choose(columns, vector, wave_size(arch))
    held, group = chosen["HELD"], chosen["GROUP"]
    if not held:
        # A mask for each access takes registers, too: narrow ones leave none.
        most = _most_held(arch) if vector >= _WIDE else MAX_HELD
        held = min(most, power_of_two(-(-columns // group)))
    return {**chosen, "HELD": held, "LONG": columns > group * held}


def _most_held(arch: str) -> int:
    """Return how many elements of a long row a thread can keep: no more than compile without spilling."""
    if arch in _FEW_REGISTERS:
        return 40
    return 80 if arch in NVIDIA_ARCHS else 96


def specialise(
    in_dtype: str, out_dtype: str, constants: Mapping[str, int], *, causal: bool = False, lse: bool
) -> Specialisation:
    """Return the kernel for two dtypes, the constants of `choose_long`, causal or not, with or without the LSE."""
    constants, types = {**constants, "CAUSAL": causal, "LSE": lse}, {"in_scalar": in_dtype, "out_scalar": out_dtype}
    return Specialisation("softmax", "attention_softmax", SoftmaxParams, constants, types)


def defaults(arch: str) -> Iterator[Specialisation]:
    """Return the kernels for aligned rows of 128 or more float32 scores, without the LSE; causal to 16 bits."""
    lengths = [2**n for n in range(7, 18)]  # of each form
    for out_dtype in ("float32", "float16"):
        vector = widest("float32", out_dtype)
        chosen = {tuple(choose_long(columns, vector, arch).items()) for columns in lengths}
        for constants in sorted(chosen):
            yield specialise("float32", out_dtype, dict(constants), causal=out_dtype != "float32", lse=False)


def launch(
    scores: DeviceTensor,
    out: DeviceTensor | None = None,
    *,
    causal: bool = False,
    lse: DeviceTensor | None = None,
    stream: Stream,
) -> None:
    """Turn rows of scores into probabilities, in float32, rounded once to the dtype of `out`.

    A row of -inf gives zeros and LSE -inf; a row that holds a NaN or +inf gives NaN.

    Parameters
    ----------
    scores : [..., columns]
        float32, float16 or bfloat16, rows of contiguous elements at an even distance; 0 columns are legal.
    out : like `scores`, any of the dtypes
        Default: `scores` itself. Other memory otherwise: the two do not overlap.
    causal
        Rows are [..., seq_q], and ``scores[..., i, j]`` counts as -inf where ``j > i + columns - seq_q``. What is there
        is not read.
    lse : [...] of float32, contiguous
        Where to write the natural logarithm of each row's sum of exponentials. Default: nowhere.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes differ, a layout or dtype is not accepted, or a tensor is on another device than `stream`.
    HipError
        The launch fails.
    """
    ready = prepare(scores, out, causal=causal, lse=lse, stream=stream)
    if ready is not None:
        ready.run(stream)


def prepare(
    scores: DeviceTensor,
    out: DeviceTensor | None = None,
    *,
    causal: bool = False,
    lse: DeviceTensor | None = None,
    stream: Stream,
) -> Launch[SoftmaxParams] | None:
    """Return what `launch` launches, to be run on `stream` as often as is wanted. None: there is nothing to do."""
    out = scores if out is None else out
    given_lse = None if lse is None else operand(stream, "lse", lse)
    plan = _plan(stream.device, operand(stream, "scores", scores), operand(stream, "out", out), given_lse, causal)
    if plan is None:
        return None
    kernel, config, sizes = plan
    return Launch(kernel, config, SoftmaxParams(*addresses(stream, scores, out, lse), *sizes))


@lru_cache(maxsize=4096)
def _plan(
    device: Device, scores: Operand, result: Operand, lse: Operand | None, causal: bool
) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    _, in_dtype, in_shape, in_strides, in_address = scores
    _, out_dtype, out_shape, out_strides, out_address = result
    if lse is not None:
        _check_lse(lse, in_shape[:-1])
    if in_shape != out_shape or not in_shape:
        raise ArgumentError(f"scores has shape {in_shape} and out {out_shape}; both take [..., columns], the same")
    if causal and len(in_shape) < 2:
        raise ArgumentError(f"scores has shape {in_shape}; with causal it takes [..., seq_q, seq_k]")
    for name, dtype in (("scores", in_dtype), ("out", out_dtype)):
        as_dtype(dtype, f"{name}'s dtype")
    rows, columns, in_stride = as_rows("scores", in_shape, in_strides)
    out_stride = as_rows("out", out_shape, out_strides).stride
    if not rows or (not columns and lse is None):
        return None
    vector = vector_width(
        (in_address, in_dtype.itemsize, (in_stride,)), (out_address, out_dtype.itemsize, (out_stride,))
    )
    constants = choose_long(columns, vector, device.arch)
    seq_q = in_shape[-2] if causal else 1
    options = {"causal": seq_q > 1, "lse": lse is not None}  # a single query is the last one: it sees every key
    kernel = load(specialise(in_dtype.name, out_dtype.name, constants, **options), device)
    blocks = -(-rows * constants["GROUP"] // constants["BLOCK"])
    if constants["LONG"]:  # the second time from the chip's cache
        rest_bytes = (columns - constants["GROUP"] * constants["HELD"]) * in_dtype.itemsize * device.compute_units
        blocks = min(blocks, max(1, CACHED_BYTES // rest_bytes) * device.compute_units)
    config = LaunchConfig(min(MAX_BLOCKS, blocks), constants["BLOCK"])
    return kernel, config, (rows, columns, in_stride, out_stride, seq_q)


def _check_lse(lse: Operand, expected: tuple[int, ...]) -> None:
    _, dtype, shape, strides, _ = lse
    contiguous = is_row_major(shape, strides)
    if shape != expected or dtype != FLOAT32 or not contiguous:
        layout = "contiguous" if contiguous else "not contiguous"
        raise ArgumentError(f"lse is {dtype.name} {shape}, {layout}; it takes float32 {expected}, contiguous")
