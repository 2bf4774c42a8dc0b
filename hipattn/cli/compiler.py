"""AMD's compiler, for the commands that need no GPU."""

from __future__ import annotations

import os

from hipattn import config
from hipattn.errors import PlatformError
from hipattn.runtime import bindings

__all__ = ["require_compiler"]


def require_compiler() -> None:
    """Make AMD's compiler the one that this process uses, whether there is a GPU or not.

    Raises
    ------
    PlatformError
        It is not installed, or HIPATTN_PLATFORM names another.
    """
    if config.get("HIPATTN_PLATFORM") == "auto":
        os.environ["HIPATTN_PLATFORM"] = "amd"  # auto would pass over ROCm where it finds no GPU
    try:
        simulated = bindings.platform().simulated
    except PlatformError as error:
        raise PlatformError(f"code for AMD GPUs needs ROCm's compiler (libhiprtc), and no GPU: {error}") from error
    if simulated:
        raise PlatformError(
            "the cpu platform's code objects hold instructions of this machine's CPU, not of an AMD GPU; "
            "install ROCm's compiler (libhiprtc; no GPU is needed) and set HIPATTN_PLATFORM=amd"
        )
