"""SiLU and GELU, gated (SwiGLU) and with a bias if asked for. Kernel: ``kernels_src/activation.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import lru_cache

from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, addresses, operands
from hipattn.kernels.rows import BLOCK, as_rows, joined, share, vector_width, widest
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["KINDS", "ActivationParams", "defaults", "launch", "specialise"]

KINDS = ("silu", "gelu", "gelu_tanh")


class ActivationParams(Arguments):
    """What ``activation`` takes."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("up", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("x_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("up_stride", ctypes.c_int64),
        ("row_shift", ctypes.c_uint32),
        ("blocks_per_row", ctypes.c_uint32),
    )


def specialise(
    dtype: str, vector: int, *, kind: str, gated: bool = False, bias_dtype: str | None = None
) -> Specialisation:
    """Return the kernel for a dtype, `vector` elements an access, a function, and what it is given."""
    constants = {"BLOCK": BLOCK, "VECTOR": vector, "KIND": KINDS.index(kind)}
    options = {"GATED": gated, "BIAS": bias_dtype is not None}
    types = {"scalar": dtype, "bias_scalar": bias_dtype or dtype}
    return Specialisation("activation", "activation", ActivationParams, {**constants, **options}, types)


def defaults(arch: str) -> Iterator[Specialisation]:  # noqa: ARG001
    """Return the kernels for aligned rows that whole models ask for: SwiGLU, and GELU with a bias."""
    for dtype in SCALARS:
        yield specialise(dtype, widest(dtype), kind="silu", gated=True, bias_dtype=None)
        for kind in KINDS:
            if kind != "silu":
                yield specialise(dtype, widest(dtype), kind=kind, gated=False, bias_dtype=dtype)


def launch(
    x: DeviceTensor,
    out: DeviceTensor | None = None,
    *,
    kind: str,
    up: DeviceTensor | None = None,
    bias: DeviceTensor | None = None,
    stream: Stream,
) -> None:
    """Write f(`x` + `bias`) · `up`, in float32, rounded once to the dtype.

    SwiGLU is kind "silu" with `x` the gate. f(-inf) is 0; a NaN stays where it is.

    Parameters
    ----------
    x : [..., columns]
        float32, float16 or bfloat16; contiguous, or rows of contiguous elements at an even distance: a half of
        the columns of a wider tensor will do.
    out : like `x`, of its dtype
        Default: `x` itself. It may be `up` too; other memory otherwise: they do not overlap.
    kind
        "silu": x / (1 + exp(−x)). "gelu": x · (1 + erf(x / √2)) / 2. "gelu_tanh": the latter approximated,
        x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) / 2.
    up : like `x`, of its dtype
        Default: no factor.
    bias : [columns]
        Any of the dtypes, contiguous. Default: none.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes or dtypes do not fit, a layout is not accepted, or a tensor is on another device than `stream`.
    HipError
        The launch fails.
    """
    out = x if out is None else out
    plan = _plan(stream.device, kind, operands(stream, {"x": x, "out": out}, {"up": up, "bias": bias}))
    if plan is None:
        return
    kernel, config, sizes = plan
    kernel.launch(stream, config, ActivationParams(*addresses(stream, x, out, up, bias), *sizes))


@lru_cache(maxsize=4096)
def _plan(
    device: Device, kind: str, tensors: tuple[Operand, ...]
) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    if kind not in KINDS:
        raise ArgumentError(f"kind is {kind!r}; accepted: {', '.join(KINDS)}")
    _, x_dtype, x_shape, *_ = tensors[0]
    dtype = as_dtype(x_dtype, "x's dtype")
    given = {}
    for name, kind_of, shape, strides, _ in tensors:
        expected = x_shape[-1:] if name == "bias" else x_shape
        if shape != expected:
            raise ArgumentError(f"{name} has shape {shape}; it takes {expected}")
        if as_dtype(kind_of, f"{name}'s dtype") != dtype and name != "bias":
            raise ArgumentError(f"{name} is {kind_of.name}; it takes {dtype.name}, as x")
        given[name] = as_rows(name, shape, strides)
    bias = next((kind_of.name for name, kind_of, *_ in tensors if name == "bias"), None)
    if bias is None:
        given = dict(zip(given, joined(*given.values()), strict=True))
    rows, columns, _ = given["x"]
    if not rows * columns:
        return None
    vector = vector_width(*((address, each.itemsize, (given[name].stride,)) for name, each, _, _, address in tensors))
    row_shift, blocks_per_row, config = share(rows, columns, vector)
    kernel = load(specialise(dtype.name, vector, kind=kind, gated="up" in given, bias_dtype=bias), device)
    strides_of = (given[name].stride if name in given else 0 for name in ("x", "out", "up"))
    return kernel, config, (rows, columns, *strides_of, row_shift, blocks_per_row)
