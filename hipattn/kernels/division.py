"""Division on the device by a number that the host knows. Device side: ``kernels_src/include/division.h``."""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["divisor_fields", "set_divisor"]


def divisor_fields(name: str) -> tuple[tuple[str, Any], ...]:
    """Return the fields of an argument struct for dividing by `name`."""
    return (f"{name}_reciprocal", ctypes.c_uint32), (f"{name}_shift", ctypes.c_int32)


def set_divisor(arguments: ctypes.Structure, name: str, divisor: int) -> None:
    """Set the fields of `divisor_fields`.

    For divisor d: shift = 31 + ceil(log2 d), reciprocal = ceil(2^shift / d) < 2^32. Then n * reciprocal / 2^shift is
    n / d and too large by less than 1 / d for n < 2^31: cut off, the same number (Granlund and Montgomery, "Division by
    Invariant Integers using Multiplication", 1994, theorem 4.2).

    Parameters
    ----------
    arguments, name
        Whose fields.
    divisor
        1 .. 2^31 - 1.
    """
    shift = 31 + (divisor - 1).bit_length()
    setattr(arguments, f"{name}_reciprocal", -(-(1 << shift) // divisor))
    setattr(arguments, f"{name}_shift", shift)
