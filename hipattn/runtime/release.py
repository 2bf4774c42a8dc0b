"""Release a resource from a destructor."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

from hipattn.runtime import bindings

__all__ = ["release"]


def release(close: Callable[[], None]) -> None:
    """Call `close` from a destructor: a failure there becomes a ResourceWarning, since nobody can catch it."""
    if sys.is_finalizing():
        return  # the process's end releases everything, and the libraries may be gone already
    # The collector runs destructors anywhere, also between another object's choice of a device and its use.
    failed, current = bindings.hip.hipGetDevice()
    try:
        close()
    except Exception as error:
        warnings.warn(f"releasing a resource failed: {error}", ResourceWarning, stacklevel=3)
    finally:
        if not failed:
            bindings.hip.hipSetDevice(current)
