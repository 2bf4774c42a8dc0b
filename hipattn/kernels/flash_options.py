"""What the flash kernels share: the options that are compiled in, and the arguments that go with them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hipattn.errors import ArgumentError
from hipattn.kernels.flash_tiles import Tiles
from hipattn.kernels.mods import MAX_VALUES, MaskMod, ScoreMod
from hipattn.kernels.rows import check_device
from hipattn.runtime.device import Device
from hipattn.runtime.stream import Stream
from hipattn.tensor import DeviceTensor

__all__ = ["OPTIONS", "OPTION_FIELDS", "Features", "Formula", "dtype_names", "fill", "is_wide", "resolve"]

_USER_VALUES = 2 * MAX_VALUES  # tensors, floats and integers each, of a call's score_mod and mask_mod

OPTIONS = ("slopes", "sinks", "bias", "mask")
"""The arguments that point to an option's tensor."""

OPTION_FIELDS: Sequence[tuple[str, Any]] = (
    *((name, ctypes.c_void_p) for name in OPTIONS),
    ("slopes_batch", ctypes.c_int64),
    *((f"{name}_{axis}", ctypes.c_int64) for name in ("bias", "mask") for axis in ("batch", "head", "row", "column")),
    *((name, ctypes.c_int32) for name in ("left", "right", "negate")),
    *((name, ctypes.c_float) for name in ("scale", "softcap", "softcap_inverse")),
    ("user_tensors", ctypes.c_void_p * _USER_VALUES),
    ("user_floats", ctypes.c_float * _USER_VALUES),
    ("user_ints", ctypes.c_int32 * _USER_VALUES),
)
"""Of an argument struct: what ``flash_score.h`` and ``flash_range.h`` read. Strides in elements."""


Formula = tuple[float, bool, tuple[int | None, int | None], float | None]
"""Scale, causal, window, softcap."""


@dataclass(frozen=True)
class Features:
    """What a call asks of the kernel beyond the product and the softmax: each is compiled in or not.

    Attributes
    ----------
    left, right : bool
        Keys are bounded on the left (window) or right (causal, window) of a query's own position.
    scaled : bool
        The scale is applied before all else. Otherwise it is part of the exponent, which a scale of 0 in float32 cannot
        be: -inf, of a hidden key, times 0 is NaN.
    bias : str
        The dtype of the bias; "" without one.
    score_mod, mask_mod : str
        Their rendered functions; "" without one.
    varlen : bool
        Sequences are packed one after the other.
    """

    left: bool = False
    right: bool = False
    scaled: bool = False
    softcap: bool = False
    alibi: bool = False
    sinks: bool = False
    bias: str = ""
    mask: bool = False
    score_mod: str = ""
    mask_mod: str = ""
    lse: bool = False
    varlen: bool = False

    @classmethod
    def of(
        cls,
        formula: Formula,
        others: Sequence[str | None],
        score_mod: str | None,
        mask_mod: str | None,
        *,
        varlen: bool = False,
    ) -> Features:
        """Return what a call asks for.

        Parameters
        ----------
        formula
            The call's.
        others
            The dtypes of the LSE and of the options' tensors, in the order of `OPTIONS`.
        score_mod, mask_mod
            Their rendered functions.
        varlen
            Whether sequences are packed.
        """
        scale, causal, (left, right), softcap = formula
        lse, slopes, sinks, bias, mask = others
        return cls(
            left=left is not None,
            right=causal or right is not None,
            scaled=ctypes.c_float(scale).value == 0,
            softcap=softcap is not None,
            alibi=slopes is not None,
            sinks=sinks is not None,
            bias=bias or "",
            mask=mask is not None,
            score_mod=score_mod or "",
            mask_mod=mask_mod or "",
            lse=lse is not None,
            varlen=varlen,
        )

    @property
    def constants(self) -> dict[str, bool]:
        """What is rendered in front of the source."""
        return {
            "BOUND_LEFT": self.left,
            "BOUND_RIGHT": self.right,
            "SCALED": self.scaled,
            "SOFTCAP": self.softcap,
            "ALIBI": self.alibi,
            "SINKS": self.sinks,
            "BIAS": bool(self.bias),
            "MASK": self.mask,
            "SCORE_MOD": bool(self.score_mod),
            "MASK_MOD": bool(self.mask_mod),
            "LSE": self.lse,
        }

    def prelude(self, params: str) -> str:
        """Return the functions of the modifications, for a kernel that takes the struct `params`."""
        # `if constexpr` outside a template still looks names up.
        no_score_mod = f"__device__ float user_score_mod(float, int, int, int, int, const {params}&);\n"
        no_mask_mod = f"__device__ bool user_mask_mod(int, int, int, int, const {params}&);\n"
        return (self.score_mod or no_score_mod) + (self.mask_mod or no_mask_mod)


def dtype_names(tensors: tuple[DeviceTensor | None, ...]) -> tuple[str | None, ...]:
    """Return the names of their dtypes, None for one that is not there."""
    if tensors.count(None) == len(tensors):  # in most calls
        return tensors  # type: ignore[return-value]
    return tuple(None if tensor is None else tensor.dtype.name for tensor in tensors)


def resolve(p: Any, formula: Formula) -> None:
    """Write the formula's numbers to the arguments."""
    scale, causal, (left, right), softcap = formula
    p.scale, p.negate = abs(scale), scale < 0
    p.left, p.right = left or 0, 0 if causal else right or 0
    if softcap is not None:
        p.softcap, p.softcap_inverse = softcap, 1 / softcap


def fill(
    p: Any,
    tensors: dict[str, DeviceTensor | None],
    score_mod: ScoreMod | None,
    mask_mod: MaskMod | None,
    stream: Stream,
) -> dict[str, DeviceTensor]:
    """Write what few calls have to the arguments, and return the tensors that they point to.

    Parameters
    ----------
    p
        The arguments.
    tensors
        By the argument's name.
    score_mod, mask_mod
        On any device.
    stream
        Where the kernel is launched.

    Raises
    ------
    ArgumentError
        A tensor is on another device.
    """
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    for mod, first in ((score_mod, 0), (mask_mod, MAX_VALUES)):
        if mod is not None:
            mod = mod.on(stream)
            mod.fill(p, first, first)
            given |= {f"{mod.argument} {n}": tensor for n, tensor in enumerate(mod.tensors)}
    check_device(stream, **given)
    for name, tensor in given.items():
        if name in ("bias", "mask"):
            for axis, stride in zip(("batch", "head", "row", "column"), tensor.strides, strict=True):
                setattr(p, f"{name}_{axis}", stride)
        elif name == "slopes":
            p.slopes_batch = tensor.strides[0] if tensor.ndim == 2 else 0
        if hasattr(p, name):
            setattr(p, name, tensor.pointer)
        tensor.buffer.used_on(stream)
    return given


def is_wide(device: Device, dtype: np.dtype[Any], tiles: Tiles, k_row: int, v_row: int) -> bool:
    """Return whether a tile of keys or values spans 2^31 bytes.

    Raises
    ------
    ArgumentError
        It does, on a chip where the kernels cannot serve it.
    """
    wide = max(k_row, v_row) * tiles.block_n * dtype.itemsize >= 2**31
    # AMD's compiler (ROCm 7.2) aborts on some combinations, and the process with it.
    if wide and device.arch == "gfx90a":
        raise ArgumentError(
            f"k and v have rows {k_row} and {v_row} elements apart; on gfx90a, {tiles.block_n} rows take fewer than "
            "2^31 bytes"
        )
    return wide
