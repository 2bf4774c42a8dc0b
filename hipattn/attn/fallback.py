"""What happens when a part of the computation fails on the GPU: HIPATTN_FALLBACK."""

from __future__ import annotations

import logging
import threading
from collections import Counter

from hipattn import config
from hipattn.errors import CodeObjectError, CompileError, HipError
from hipattn.runtime import bindings

__all__ = ["FAILURES", "Fallback"]

log = logging.getLogger("hipattn")

FAILURES = (HipError, CompileError, CodeObjectError)


class Fallback:
    """Decides whether what failed on the GPU is recomputed with NumPy; counts it, and logs a warning once a cause.

    Attributes
    ----------
    counts : Counter of str
        What failed → how many times it was recomputed.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def recover(self, name: str, error: Exception) -> None:
        """Return if `name`, which failed with `error`, is to be recomputed on the CPU.

        Raises
        ------
        HipError, CompileError, CodeObjectError
            The error, if HIPATTN_FALLBACK is error, or if the CPU could not have the data or not be sure of it.
        """
        # What was queued may have run, and some work in place; a broken device gives no data back, nor does one that
        # records a graph.
        queued = isinstance(error, HipError) and error.call == "hipStreamSynchronize"
        captured = isinstance(error, HipError) and error.name.startswith("hipErrorStreamCapture")
        if config.get("HIPATTN_FALLBACK") != "cpu" or queued or captured or bindings.fault is not None:
            raise error
        bindings.hip.hipGetLastError()  # dealt with here: nobody else's error
        cause = f"{name}: {error}"
        with self._lock:
            self.counts[name] += 1
            known = cause in self._warned
            self._warned.add(cause)
        if not known:
            log.warning("%s failed on the GPU and is recomputed on the CPU: %s", name, str(error))
