"""One error tree. Every error that hipattn raises on purpose is a `HipattnError`."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = [
    "ArgumentError",
    "CacheFullError",
    "ClosedError",
    "CodeObjectError",
    "CompileError",
    "ConfigError",
    "HipError",
    "HipattnError",
    "ModelError",
    "OutOfPagesError",
    "PlatformError",
]

_OF_AN_EXPRESSION = re.compile(r"^(\S*/)?(score_mod|mask_mod)[:(]", re.MULTILINE)


class HipattnError(Exception):
    """Base of all errors that hipattn raises."""


class ArgumentError(HipattnError, ValueError):
    """A shape, dtype, device or value that a function does not take.

    The message names the argument, what it got and what is accepted. Raised before anything is allocated or
    launched.
    """


class ClosedError(HipattnError, ValueError):
    """Something was used after it was closed: a buffer, a stream, an event, a module."""


class CacheFullError(HipattnError, ValueError):
    """A KV cache has no room for what was to be appended; it is left as it was."""


class OutOfPagesError(HipattnError, ValueError):
    """A paged KV cache has too few free pages for what was asked for; it is left as it was."""


class ConfigError(HipattnError, ValueError):
    """A HIPATTN_* variable has a value that is not accepted."""


class ModelError(HipattnError, ValueError):
    """A pretrained model cannot be fetched, or its file is not one that hipattn reads."""


class PlatformError(HipattnError, RuntimeError):
    """No platform, or not the one that was asked for, can be used on this machine."""


class HipError(HipattnError, RuntimeError):
    """A call into HIP, hiprtc or hipBLAS returned a status other than success.

    Attributes
    ----------
    status : int
        The numeric status.
    name : str
        Its name, for example ``hipErrorOutOfMemory``.
    call : str
        The function that returned it.
    """

    def __init__(self, status: int, name: str, call: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.name = name
        self.call = call

    def __reduce__(self) -> tuple[type[HipError], tuple[int, str, str, str]]:
        return type(self), (self.status, self.name, self.call, str(self))


class CodeObjectError(HipattnError, RuntimeError):
    """A code object is damaged, or what it holds is not what is to be launched."""


class CompileError(HipattnError, RuntimeError):
    """A kernel does not compile.

    Attributes
    ----------
    name : str
        The program's name.
    log : str
        The compiler's log.
    options : tuple of str
        The options it was given.
    source : str
        The source, as the compiler saw it.
    """

    def __init__(self, name: str, log: str, options: Sequence[str], source: str) -> None:
        self.name = name
        self.log = log
        self.options = tuple(options)
        self.source = source
        message = f"{name} does not compile\n{log.strip()}\n\noptions: {' '.join(self.options)}"
        # What is wrong in a user's expression is wrong there: its line is in the log, and the kernel around it no help.
        if _OF_AN_EXPRESSION.search(log) is None:
            numbered = "\n".join(f"{i:5d} | {line}" for i, line in enumerate(source.splitlines(), 1))
            message += f"\n\nsource:\n{numbered}"
        super().__init__(message)

    def __reduce__(self) -> tuple[type[CompileError], tuple[str, str, tuple[str, ...], str]]:
        return type(self), (self.name, self.log, self.options, self.source)
