"""Release a resource from a destructor."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

__all__ = ["release"]


def release(close: Callable[[], None]) -> None:
    """Call `close` from a destructor: a failure there becomes a ResourceWarning, since nobody can catch it."""
    if sys.is_finalizing():
        return  # the process's end releases everything, and the libraries may be gone already
    try:
        close()
    except Exception as error:
        warnings.warn(f"releasing a resource failed: {error}", ResourceWarning, stacklevel=3)
