"""Compile before the first call, for this machine's GPU or another's."""

from __future__ import annotations

from collections.abc import Iterable

from hipattn import config, kernels
from hipattn.compiler.loader import build
from hipattn.compiler.program import CodeObject
from hipattn.compiler.specialise import Specialisation
from hipattn.errors import PlatformError
from hipattn.runtime import bindings

__all__ = ["compile"]


def compile(  # noqa: A001
    arch: str, specialisations: Iterable[Specialisation] | None = None
) -> dict[str, CodeObject]:
    """Compile kernels into the disk cache, where a later call on a GPU of that architecture finds them.

    No such GPU need be present: the cache folder (HIPATTN_CACHE_DIR) can be filled on one machine and used on others
    that have the same ROCm. With HIPATTN_PLATFORM=cpu it is filled for a simulated one.

    Parameters
    ----------
    arch
        "gfx942".
    specialisations
        What to compile. Default: every kernel that the library asks for by default.

    Returns
    -------
    compiled : dict
        The kernel's readable name → its code object.

    Raises
    ------
    ArgumentError
        `arch` is not known.
    CompileError
        A source does not compile for `arch`.
    CodeObjectError
        A kernel does not fit its launches.
    PlatformError
        There is no compiler for AMD GPUs on this machine, or no GPU and HIPATTN_PLATFORM does not name AMD's.
    """
    wanted = list(kernels.defaults(arch) if specialisations is None else specialisations)
    if bindings.platform().simulated and config.get("HIPATTN_PLATFORM") == "auto":
        raise PlatformError(
            f"hipattn found no GPU and simulates one, whose code objects are of no use to a {arch}; "
            "HIPATTN_PLATFORM=amd compiles with ROCm and without a GPU, HIPATTN_PLATFORM=cpu for the simulator"
        )
    return {specialisation.name: build(specialisation, arch) for specialisation in wanted}
