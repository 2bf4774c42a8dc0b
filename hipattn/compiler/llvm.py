"""LLVM's tools, which ROCm brings along: machine code as text, and how long a loop of it takes."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hipattn.errors import PlatformError

__all__ = ["cycles", "disassemble", "find"]

_PASSES = 100


@cache
def find(tool: str) -> Path | None:
    """Return where a tool of LLVM is: ROCm's own, else the newest on PATH (llvm-objdump-22), None if there is none."""
    rocm = Path(os.environ.get("ROCM_PATH") or "/opt/rocm", "llvm", "bin", tool)
    if rocm.exists():
        return rocm
    found: dict[int, Path] = {}
    for folder in map(Path, os.get_exec_path()):
        for path in folder.glob(f"{tool}*"):
            version = re.fullmatch(rf"{tool}(?:-(\d+))?", path.name)
            if version:
                found.setdefault(int(version[1] or 0), path)
    return found[max(found)] if found else None


def disassemble(image: bytes, arch: str) -> str:
    """Return the text of a code object's instructions; ``<L3>:`` stands before one that a branch goes to.

    Raises
    ------
    PlatformError
        There is no llvm-objdump, or it does not know `arch`.
    """
    with tempfile.NamedTemporaryFile(suffix=".co") as file:
        file.write(image)
        file.flush()
        options = ("--disassemble", "--symbolize-operands", "--no-show-raw-insn", f"--mcpu={arch}")
        return _run("llvm-objdump", arch, *options, file.name)


def cycles(instructions: Sequence[str], arch: str) -> float | None:
    """Return how many cycles llvm-mca expects of one pass through a loop of `instructions`.

    Of one wave alone, with the latencies that LLVM's scheduler assumes; on gfx9 a cycle is an issue slot of 4 clocks.
    Good for comparing versions of a kernel on one chip, not chips.

    Returns
    -------
    cycles : float or None
        None if there is no llvm-mca.
    """
    if find("llvm-mca") is None or not instructions:
        return None
    with tempfile.NamedTemporaryFile("w", suffix=".s") as file:
        file.write("\n".join([*instructions, ""]))
        file.flush()
        options = ("-mtriple=amdgcn-amd-amdhsa", f"-mcpu={arch}", f"-iterations={_PASSES}")
        text = _run("llvm-mca", arch, *options, "-skip-unsupported-instructions=any", file.name)
    total = re.search(r"^Total Cycles:\s+(\d+)", text, re.MULTILINE)
    return int(total[1]) / _PASSES if total else None


def _run(tool: str, arch: str, *arguments: str) -> str:
    path = find(tool)
    if path is None:
        raise PlatformError(
            f"{tool} was found neither in $ROCM_PATH/llvm/bin nor on PATH; it comes with ROCm and with LLVM 20 or newer"
        )
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    if "is not a recognized processor" in done.stderr:  # it goes on all the same, for another one
        raise PlatformError(f"{path} does not know {arch}; a newer LLVM does")
    if done.returncode:
        raise PlatformError(f"{path} fails with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
