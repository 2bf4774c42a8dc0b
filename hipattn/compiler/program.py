"""Compile HIP source with hiprtc."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hipattn.compiler.cache import DiskCache
from hipattn.compiler.target import wave_size
from hipattn.errors import CompileError
from hipattn.runtime import bindings
from hipattn.runtime.bindings import check

__all__ = ["CodeObject", "Program", "compiler_version", "hiprtc_version"]

_OPTIONS = ("-std=c++17", "-O3")

# The folder of one compilation: files are known by the names that the program gave them.
_TEMPORARY = re.compile(r"[^\s'\"]*/comgr-[^/\s]+/(input|include)/")


@dataclass(frozen=True)
class CodeObject:
    """A compiled program.

    Attributes
    ----------
    image : bytes
        The ELF file that `Module` loads.
    arch : str
        The architecture it was compiled for.
    lowered : mapping of str to str
        Name expression → the name of the kernel in the image.
    """

    image: bytes = field(repr=False)
    arch: str
    lowered: Mapping[str, str]


@functools.cache
def compiler_version() -> str:
    """Identify the compiler: the platform, its build, and hiprtc's version."""
    platform = bindings.platform()
    return f"{platform.name}:{platform.fingerprint}:{hiprtc_version()}"


def hiprtc_version() -> str:
    """Return the version that hiprtc gives itself: "9.0"."""
    bindings.platform()
    major, minor = check(bindings.hiprtc.hiprtcVersion(), "hiprtcVersion")
    return f"{major}.{minor}"


class Program:
    """HIP source text, to be compiled for an architecture.

    Parameters
    ----------
    source
        HIP C++17. No standard headers; fp16, bf16, vector types and math are built in.
    name
        A file name for messages.
    headers
        Include name → text.
    options
        For hiprtc, beside the architecture and the defaults (``-std=c++17 -O3``).
    name_expressions
        Names whose lowered (mangled) names are wanted: "scale<float>".
    """

    def __init__(
        self,
        source: str,
        name: str = "program.hip",
        *,
        headers: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        name_expressions: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.name = name
        self.headers = dict(headers or {})
        self.options = (*_OPTIONS, *options)
        self.name_expressions = tuple(dict.fromkeys(name_expressions))  # AMD's compiler takes each once

    def compile(self, arch: str, cache: DiskCache | None = None) -> CodeObject:
        """Compile, or take the result of an earlier compilation of the same thing from `cache`.

        Parameters
        ----------
        arch
            "gfx942". No device of that architecture need be present.
        cache
            Default: no cache.

        Raises
        ------
        ArgumentError
            `arch` is not known.
        CompileError
            The source does not compile.
        HipError
            hiprtc fails in another way.
        """
        wave_size(arch)  # refuses an unknown arch; the compiler's own log is empty then
        options = (f"--offload-arch={arch}", *self.options)
        key = ""
        if cache is not None and not self.name_expressions:
            headers = [text for item in sorted(self.headers.items()) for text in item]
            key = cache.key(compiler_version(), self.name, self.source, *options, *headers)
            image = cache.get(key)
            if image is not None:
                return CodeObject(image, arch, {})
        code = self._compile(arch, options)
        if cache is not None and key:
            cache.put(key, code.image)
        return code

    def _compile(self, arch: str, options: tuple[str, ...]) -> CodeObject:
        rtc = bindings.hiprtc
        texts = [text.encode() for text in self.headers.values()]
        names = [name.encode() for name in self.headers]
        native = check(
            rtc.hiprtcCreateProgram(self.source.encode(), self.name.encode(), len(texts), texts or None, names or None),
            "hiprtcCreateProgram",
            program=self.name,
        )
        try:
            for expression in self.name_expressions:
                check(rtc.hiprtcAddNameExpression(native, expression.encode()), "hiprtcAddNameExpression")
            encoded = [option.encode() for option in options]
            status = rtc.hiprtcCompileProgram(native, len(encoded), encoded)[0]
            if status:
                if status.name != "HIPRTC_ERROR_COMPILATION":
                    raise bindings.failure(status, "hiprtcCompileProgram", program=self.name, options=options)
                raise CompileError(self.name, _log(native), options, self.source)
            image = bytearray(check(rtc.hiprtcGetCodeSize(native), "hiprtcGetCodeSize"))
            check(rtc.hiprtcGetCode(native, image), "hiprtcGetCode")
            lowered = {e: _lowered(native, e) for e in self.name_expressions}
            return CodeObject(bytes(image), arch, lowered)
        finally:
            check(rtc.hiprtcDestroyProgram(native.createRef()), "hiprtcDestroyProgram")


def _log(native: Any) -> str:
    size = check(bindings.hiprtc.hiprtcGetProgramLogSize(native), "hiprtcGetProgramLogSize")
    log = bytearray(size)
    if size:
        check(bindings.hiprtc.hiprtcGetProgramLog(native, log), "hiprtcGetProgramLog")
    return _TEMPORARY.sub("", log.rstrip(b"\0").decode(errors="replace"))


def _lowered(native: Any, expression: str) -> str:
    name = check(bindings.hiprtc.hiprtcGetLoweredName(native, expression.encode()), "hiprtcGetLoweredName")
    return name.decode() if isinstance(name, bytes) else str(name)
