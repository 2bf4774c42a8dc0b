"""What AMD's compiler makes of every kernel on every architecture: ``python scripts/isa_report.py --json FILE``.

Each kernel that the library asks for by default is compiled and its machine code read: registers, LDS, occupancy,
and the instructions of its hottest loop. It needs ROCm's compiler and llvm-objdump, and no GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import track

from hipattn import HipattnError
from hipattn.cli import report
from hipattn.cli.compiler import require_compiler
from hipattn.cli.output import console
from hipattn.compiler.target import CHECKED_ARCHS


def main() -> None:
    """Compile, analyse and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="*", help="attention_softmax, or a pattern of forms (default: all)")
    parser.add_argument(
        "--arch", action="append", help=f"may be given several times (default: {' '.join(CHECKED_ARCHS)})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    arguments = parser.parse_args()
    wanted = [(s, arch) for arch in arguments.arch or CHECKED_ARCHS for s in report.select(arguments.kernel, arch)]
    require_compiler()
    # Processes, because compilations in one wait for each other; spawned, because ROCm is loaded in this one.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        measured = pool.map(report.measure, *zip(*wanted, strict=True))
        rows = list(track(measured, "compiling", len(wanted), console=Console(stderr=True)))
    report.show(rows, console())
    if arguments.json:
        arguments.json.write_text(json.dumps([row.facts() for row in rows], indent=1))


if __name__ == "__main__":
    try:
        main()
    except HipattnError as error:
        sys.exit(f"isa_report: {error}")
