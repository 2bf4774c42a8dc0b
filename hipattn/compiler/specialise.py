"""Specialise a kernel source: constants, type names and the argument struct, rendered in front of it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from hipattn.compiler.target import wave_size
from hipattn.errors import ArgumentError
from hipattn.runtime.module import Arguments

__all__ = ["Specialisation", "headers", "render_struct", "source_dir"]

_C_TYPES: dict[type, str] = {
    ctypes.c_void_p: "void*",
    ctypes.c_int32: "int",
    ctypes.c_uint32: "unsigned",
    ctypes.c_int64: "long long",
    ctypes.c_float: "float",
}

# What a dtype is called in HIP.
SCALARS = {"float32": "float", "float16": "_Float16", "bfloat16": "__bf16"}


@cache
def source_dir() -> Path:
    """Return the folder of the kernel sources: in the package as installed, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "kernels_src", package.parent / "kernels_src"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"kernels_src is neither in {package} nor beside it: the installation is incomplete")


@cache
def headers() -> Mapping[str, str]:
    """Return the device headers: the name that a kernel includes → text."""
    return {f"include/{path.name}": path.read_text() for path in sorted((source_dir() / "include").glob("*.h"))}


def render_struct(struct: type[Arguments]) -> str:
    """Return the C++ definition of an argument struct, with a check that its layout is the one that Python sends."""
    name = struct.__name__
    members, checks = [], [f"sizeof({name}) == {ctypes.sizeof(struct)}"]
    fields: Any = struct._fields_
    for field_name, kind in fields:
        length = ""
        if issubclass(kind, ctypes.Array):
            length, kind = f"[{kind._length_}]", kind._type_
        if kind not in _C_TYPES:
            raise ArgumentError(f"{name}.{field_name} is {kind.__name__}; accepted: {[k.__name__ for k in _C_TYPES]}")
        members.append(f"    {_C_TYPES[kind]} {field_name}{length};\n")
        checks.append(f"__builtin_offsetof({name}, {field_name}) == {getattr(struct, field_name).offset}")
    layout = " &&\n    ".join(checks)
    message = f"{name} differs from its declaration in Python"
    return f'struct {name} {{\n{"".join(members)}}};\nstatic_assert({layout},\n    "{message}");\n'


@dataclass(frozen=True)
class Specialisation:
    """A kernel source with everything decided that is decided at compile time.

    Attributes
    ----------
    source : str
        The stem of a file in kernels_src: "softmax".
    kernel : str
        The kernel's name in it.
    arguments : type of Arguments
        The struct that the kernel takes.
    constants : mapping of str to int, bool or float
        Rendered as ``constexpr``.
    types : mapping of str to str
        A name in the source → a dtype: {"scalar": "float16"}.
    includes : tuple of str
        Headers to include in front of the source, after the above: the layer it is written over.
    prelude : str
        Text in front of the source, after the headers: a user's functions.
    """

    source: str
    kernel: str
    arguments: type[Arguments]
    constants: Mapping[str, int | bool | float] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    includes: tuple[str, ...] = ()
    prelude: str = ""

    def __hash__(self) -> int:
        decided = frozenset(self.constants.items()), frozenset(self.types.items())
        return hash((self.source, self.kernel, *decided, self.includes, self.prelude))

    @property
    def name(self) -> str:
        """A readable name: the kernel and what was decided, for messages and the cache.

        Without what is off: AMD's compiler makes files of this name, with up to 20 characters more, and a file's name
        has at most 255.
        """
        constants = (f"{key.lower()}{float(value):g}" for key, value in self.constants.items() if value is not False)
        return "_".join([self.kernel, *self.types.values(), *constants])

    def render(self, arch: str) -> str:
        """Return the whole source for an architecture."""
        lines = [f"constexpr int WAVE_SIZE = {wave_size(arch)};"]
        for key, value in self.constants.items():
            kind, text = _constant(value)
            lines.append(f"constexpr {kind} {key} = {text};")
        lines += [f"using {key} = {SCALARS[dtype]};" for key, dtype in self.types.items()]
        lines.append(render_struct(self.arguments))
        lines += [f'#include "{name}"' for name in self.includes]
        path = source_dir() / f"{self.source}.hip"
        return "\n".join([*lines, self.prelude, f'#line 1 "{path.name}"', path.read_text()])

    def headers(self) -> Mapping[str, str]:
        """Return the headers that the source includes, directly or through another one."""
        found: dict[str, str] = {}
        texts = [(source_dir() / f"{self.source}.hip").read_text(), *(f'#include "{name}"' for name in self.includes)]
        while texts:
            for name in re.findall(r'^\s*#include "([^"]+)"', texts.pop(), re.MULTILINE):
                path = name if name in headers() else f"include/{name}"
                if name not in found:
                    found[name] = headers()[path]
                    texts.append(found[name])
        return found


def _constant(value: int | bool | float) -> tuple[str, str]:
    if isinstance(value, bool):
        return "bool", str(value).lower()
    if isinstance(value, int):
        return ("int", str(value)) if -(2**31) <= value < 2**31 else ("long long", f"{value}LL")
    return "float", f"{float(value).hex()}f"
