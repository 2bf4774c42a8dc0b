"""What owns something of a device: memory, a stream, an event, a module, a handle."""

from __future__ import annotations

import sys
import warnings
from typing import Any, NoReturn, Self

from hipattn.runtime import bindings

__all__ = ["Owned"]


class Owned:
    """Releases what it owns once: when closed, when its context ends, or when collected. It cannot be copied.

    A derived class has `closed`, which is false only while it owns something, and `close`.
    """

    closed: Any

    def close(self) -> None:
        """Release what is owned. Closing twice does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self._release()

    # The defaults: at the interpreter's end a module's names are gone before its objects.
    def _release(
        self, finalizing: Any = sys.is_finalizing, bindings: Any = bindings, warn: Any = warnings.warn
    ) -> None:
        """Close from the destructor: a failure becomes a ResourceWarning, since nobody can catch it."""
        if finalizing():
            return  # the process's end releases everything, and the libraries may be gone already
        # The collector runs destructors anywhere, also between another object's choice of a device and its use.
        failed, current = bindings.hip.hipGetDevice()
        try:
            self.close()
        except Exception as error:
            warn(f"releasing a {type(self).__name__} failed: {error}", ResourceWarning, stacklevel=3)
        finally:
            if not failed:
                bindings.hip.hipSetDevice(current)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} owns something of the device: it cannot be copied or pickled")
