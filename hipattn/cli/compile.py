"""``hipattn compile``: fill the cache, for this machine or others."""

from __future__ import annotations

import argparse
import time

import hipattn
from hipattn import kernels
from hipattn.cli.compiler import require_compiler
from hipattn.cli.output import Commands
from hipattn.compiler.cache import DiskCache

__all__ = ["add_to", "run"]


def add_to(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "compile",
        help="fill the cache",
        description="Compile every kernel that the library asks for by default. It needs ROCm's compiler and no GPU; "
        "the cache serves every machine with the same ROCm.",
    )
    parser.add_argument("--arch", action="append", required=True, help="gfx942; may be given several times")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compile."""
    wanted = {arch: list(kernels.defaults(arch)) for arch in arguments.arch}
    require_compiler()
    for arch, specialisations in wanted.items():
        start = time.perf_counter()
        hipattn.compile(arch, specialisations)
        print(f"{arch}: {len(specialisations)} kernels in {time.perf_counter() - start:.1f} s")
    print(f"in {DiskCache().folder}")
    return 0
