"""Every HIPATTN_* environment variable, in one table."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from hipattn.errors import ConfigError

__all__ = ["VARIABLES", "Variable", "cache_dir", "get"]


@dataclass(frozen=True)
class Variable:
    """An environment variable: its default, how its text is read, and what it means."""

    name: str
    default: str
    accepts: str
    meaning: str
    parse: Callable[[str], Any]


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse


def _flag(text: str) -> bool:
    return {"0": False, "1": True}[text]


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


# The archs that the cpu platform simulates.
SIMULATED_ARCHS = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1201")


def _archs(text: str) -> tuple[str, ...]:
    archs = tuple(arch.strip() for arch in text.split(","))
    if not set(archs) <= set(SIMULATED_ARCHS):
        raise ValueError
    return archs


def _calls(text: str) -> str:
    for each in text.split(",") if text else ():
        call, _, number = each.partition(":")
        if not (call.isidentifier() and call.startswith("hip") and number.isdecimal() and int(number)):
            raise ValueError
    return text


VARIABLES: dict[str, Variable] = {
    v.name: v
    for v in (
        Variable(
            "HIPATTN_PLATFORM",
            "auto",
            "auto, amd, nvidia or cpu",
            "Which libraries hip-python opens; auto takes the first platform that finds a device.",
            _one_of("auto", "amd", "nvidia", "cpu"),
        ),
        Variable(
            "HIPATTN_SYNC",
            "0",
            "0 or 1",
            "Synchronise after every launch, so that an asynchronous fault is reported with its kernel.",
            _flag,
        ),
        Variable(
            "HIPATTN_FALLBACK",
            "cpu",
            "cpu or error",
            "What happens when a GPU stage fails: recompute it with NumPy and warn, or raise.",
            _one_of("cpu", "error"),
        ),
        Variable(
            "HIPATTN_CACHE_DIR",
            "",
            "a directory",
            "Where compiled kernels and platform libraries are kept (default: the user's cache directory).",
            str,
        ),
        Variable(
            "HIPATTN_CXX",
            "",
            "a command",
            "The C++ compiler of the cpu and nvidia platforms, in place of ziglang's clang. For cpu: clang 18 or "
            "newer.",
            str,
        ),
        Variable(
            "HIPATTN_NVIDIA_NVRTC",
            "",
            "a file",
            "The libnvrtc of the nvidia platform (default: what cuda-pathfinder finds).",
            str,
        ),
        Variable(
            "HIPATTN_NVIDIA_CUBLAS",
            "",
            "a file",
            "The libcublas of the nvidia platform (default: what cuda-pathfinder finds).",
            str,
        ),
        Variable(
            "HIPATTN_CPU_ARCH",
            "gfx942",
            "a comma-separated list of " + ", ".join(SIMULATED_ARCHS),
            "The GPUs that the cpu platform simulates: device 0, device 1, ...",
            _archs,
        ),
        Variable(
            "HIPATTN_CPU_MEMORY",
            str(8 << 30),
            "a number of bytes",
            "The memory of each simulated GPU.",
            _count,
        ),
        Variable(
            "HIPATTN_CPU_THREADS",
            "0",
            "a number",
            "How many CPU threads run the blocks of simulated kernels (0: one a core).",
            _count,
        ),
        Variable(
            "HIPATTN_CPU_FAIL",
            "",
            "CALL:N, comma-separated",
            "Make the N-th call of a simulated HIP function fail, once: hipMalloc:3.",
            _calls,
        ),
        Variable(
            "HIPATTN_CPU_DELAY",
            "0",
            "a number of microseconds",
            "Delay each operation of a simulated stream by a random time up to this one.",
            _count,
        ),
        Variable(
            "HIPATTN_CPU_SEED",
            "",
            "a number, or empty",
            "Run simulated blocks and waves in an order shuffled by this seed, to bring races to light.",
            str,
        ),
    )
}


def get(name: str) -> Any:
    """Return the value of a HIPATTN_* variable, read from the environment now.

    Raises
    ------
    ConfigError
        The variable's text is not accepted.
    """
    variable = VARIABLES[name]
    text = os.environ.get(name) or variable.default
    try:
        return variable.parse(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{name} is {text!r}; accepted: {variable.accepts}") from None


def cache_dir() -> Path:
    """Return the directory for everything hipattn keeps between runs. It may not exist yet."""
    folder = get("HIPATTN_CACHE_DIR") or platformdirs.user_cache_dir("hipattn", appauthor=False)
    return Path(folder).expanduser().absolute()
