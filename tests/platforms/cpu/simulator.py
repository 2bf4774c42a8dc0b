"""hip-python over the simulated runtime, and its control functions."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["HipFailure", "Simulator"]


class Simulator:
    """hip-python over the simulated runtime, with an exception for every status that is not success."""

    def __init__(self, library: Path) -> None:
        from hipattn.runtime import bindings

        self.hip = bindings.hip
        self.control = ctypes.CDLL(str(library))
        self.control.sim_control_live_bytes.restype = ctypes.c_size_t
        self.control.sim_control_live_allocations.restype = ctypes.c_size_t
        self.control.sim_control_call_count.restype = ctypes.c_long

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.hip, name)

        def call(*arguments: Any) -> Any:
            status, *results = function(*arguments)
            if status != self.hip.hipError_t.hipSuccess:
                raise HipFailure(status.name, self.message(status))
            return results[0] if len(results) == 1 else results or None

        return call

    def message(self, status: Any) -> str:
        """Return hipGetErrorString's answer."""
        return str(self.hip.hipGetErrorString(status)[1])

    def status(self, name: str, *arguments: Any) -> str:
        """Return the name of the status that a call ends with."""
        return getattr(self.hip, name)(*arguments)[0].name  # type: ignore[no-any-return]


class HipFailure(Exception):  # noqa: N818
    def __init__(self, name: str, message: str) -> None:
        self.name = name
        self.message = message
        super().__init__(f"{name}: {self.message}")
