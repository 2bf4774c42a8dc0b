"""Eight-bit floats, e4m3: which of the two formats a chip uses. On the device: ``kernels_src/include/float8.h``."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["E4M3_FNUZ", "E4M3_OCP", "e4m3"]

E4M3_OCP: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fn)
E4M3_FNUZ: np.dtype[Any] = np.dtype(ml_dtypes.float8_e4m3fnuz)


def e4m3(arch: str) -> np.dtype[Any]:
    """Return the e4m3 format of an architecture's instructions: FNUZ on gfx942, on all others that of the OCP."""
    return E4M3_FNUZ if arch == "gfx942" else E4M3_OCP
