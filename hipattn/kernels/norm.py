"""RMSNorm and LayerNorm over rows, of a sum if asked for. Kernel: ``kernels_src/norm.hip``."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from functools import lru_cache

from hipattn.arguments import number
from hipattn.compiler.loader import load
from hipattn.compiler.specialise import SCALARS, Specialisation
from hipattn.compiler.target import wave_size
from hipattn.errors import ArgumentError
from hipattn.kernels.operands import Operand, addresses, operands
from hipattn.kernels.rows import MAX_BLOCKS, as_rows, vector_width, widest
from hipattn.kernels.softmax import choose
from hipattn.runtime.device import Device
from hipattn.runtime.module import Arguments, Kernel, LaunchConfig
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor, as_dtype

__all__ = ["KINDS", "NormParams", "defaults", "launch", "specialise"]

KINDS = ("rms", "layer")
_ROWS = ("x", "out", "residual", "sum_out")


class NormParams(Arguments):
    """What ``norm_rows`` takes."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("sum_out", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("in_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("residual_stride", ctypes.c_int64),
        ("sum_stride", ctypes.c_int64),
        ("eps", ctypes.c_float),
    )


def specialise(
    in_dtype: str,
    out_dtype: str,
    weight_dtype: str,
    constants: Mapping[str, int],
    *,
    kind: str,
    bias: bool = False,
    residual: bool = False,
    sum_out: bool = False,
) -> Specialisation:
    """Return the kernel for three dtypes, the constants of `softmax.choose`, and what it is given."""
    types = {"in_scalar": in_dtype, "out_scalar": out_dtype, "weight_scalar": weight_dtype}
    options = {"LAYER": kind == "layer", "BIAS": bias, "RESIDUAL": residual, "SUM": sum_out}
    return Specialisation("norm", "norm_rows", NormParams, {**constants, **options}, types)


def defaults(arch: str) -> Iterator[Specialisation]:
    """Return the kernels for aligned rows of 1024 and 4096 elements, with the options that whole models ask for."""
    for dtype in SCALARS:
        chosen = {tuple(choose(columns, widest(dtype), wave_size(arch)).items()) for columns in (1024, 4096)}
        for constants in sorted(chosen):
            for kind, bias, residual in (("rms", False, False), ("rms", False, True), ("layer", True, True)):
                options = {"bias": bias, "residual": residual, "sum_out": residual}
                yield specialise(dtype, dtype, dtype, dict(constants), kind=kind, **options)


def launch(
    x: DeviceTensor,
    weight: DeviceTensor,
    out: DeviceTensor | None = None,
    *,
    bias: DeviceTensor | None = None,
    eps: float,
    kind: str = "rms",
    residual: DeviceTensor | None = None,
    sum_out: DeviceTensor | None = None,
    stream: Stream,
) -> None:
    """Normalise rows, in float32, rounded once to the dtype of `out`: of `x`, or of `x` + `residual`.

    "rms" divides by √(mean(x²) + eps). "layer" subtracts the mean and divides by √(variance + eps). Both then
    multiply by `weight` and add `bias`. A NaN or infinity spoils its row and no other.

    Parameters
    ----------
    x : [..., columns]
        float32, float16 or bfloat16, rows of contiguous elements at an even distance.
    weight : [columns]
        Any of the dtypes, contiguous.
    out : like `x`, any of the dtypes
        Default: `x` itself.
    bias : like `weight`, of its dtype
        Default: none.
    eps
        0 or more.
    kind
        "rms" or "layer".
    residual : like `x`, of its dtype
        What to add to `x` before. Default: nothing.
    sum_out : like `x`, of its dtype
        Where to write `x` + `residual`, rounded; what is normalised is the sum before rounding. It may be `x` or
        `residual`. Default: nowhere.
    stream
        Where the launch is added.

    Raises
    ------
    ArgumentError
        Shapes or dtypes do not fit, a layout is not accepted, `sum_out` is given without a `residual`, or a tensor is
        on another device than `stream`.
    HipError
        The launch fails.
    """
    out = x if out is None else out
    optional = {"bias": bias, "residual": residual, "sum_out": sum_out}
    plan = _plan(stream.device, kind, operands(stream, {"x": x, "weight": weight, "out": out}, optional))
    if number("eps", eps) < 0:
        raise ArgumentError(f"eps is {eps}; it takes 0 or more")
    if sum_out is not None and sum_out.pointer == out.pointer:
        raise ArgumentError("sum_out is out, or x where out is not given; the two results take different memory")
    if plan is None:
        return
    kernel, config, sizes = plan
    pointers = addresses(stream, x, weight, out, bias, residual, sum_out)
    kernel.launch(stream, config, NormParams(*pointers, *sizes, eps))


@lru_cache(maxsize=4096)
def _plan(
    device: Device, kind: str, tensors: tuple[Operand, ...]
) -> tuple[Kernel, LaunchConfig, tuple[int, ...]] | None:
    if kind not in KINDS:
        raise ArgumentError(f"kind is {kind!r}; accepted: {', '.join(KINDS)}")
    _, x_dtype, x_shape, *_ = tensors[0]
    if not x_shape:
        raise ArgumentError("x has shape (); it takes [..., columns]")
    dtypes = {name: as_dtype(dtype, f"{name}'s dtype") for name, dtype, *_ in tensors}
    if "sum_out" in dtypes and "residual" not in dtypes:
        raise ArgumentError("sum_out is given without residual; it takes x + residual")
    for name, like in (("residual", "x"), ("sum_out", "x"), ("bias", "weight")):
        if name in dtypes and dtypes[name] != dtypes[like]:
            raise ArgumentError(f"{name} is {dtypes[name].name}; it takes {dtypes[like].name}, as {like}")
    strides: dict[str, int] = {}
    for name, _, shape, steps, _ in tensors:
        expected = x_shape if name in _ROWS else x_shape[-1:]
        if shape != expected:
            raise ArgumentError(f"{name} has shape {shape}; it takes {expected}")
        strides[name] = as_rows(name, shape, steps).stride
    rows, columns, _ = as_rows("x", x_shape, tensors[0][3])
    if not rows * columns:
        return None
    vector = vector_width(*((address, dtype.itemsize, (strides[name],)) for name, dtype, _, _, address in tensors))
    constants = choose(columns, vector, device.wave_size)
    options = {name: name in dtypes for name in ("bias", "residual", "sum_out")}
    specialisation = specialise(
        x_dtype.name, dtypes["out"].name, dtypes["weight"].name, constants, kind=kind, **options
    )
    kernel = load(specialisation, device)
    blocks = -(-rows * constants["GROUP"] // constants["BLOCK"])
    config = LaunchConfig(min(MAX_BLOCKS, blocks), constants["BLOCK"])
    return kernel, config, (rows, columns, *(strides.get(name, 0) for name in _ROWS))
