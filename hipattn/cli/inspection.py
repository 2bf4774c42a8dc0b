"""``hipattn inspect``: what AMD's compiler made of a kernel."""

from __future__ import annotations

import argparse
import json

from hipattn.cli import report
from hipattn.cli.compiler import require_compiler
from hipattn.cli.output import Commands, console

__all__ = ["add_to", "run"]


def add_to(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "inspect",
        help="registers, occupancy and hottest loop of a kernel",
        description="Compile a kernel in each form that the library asks for by default, and report its registers, "
        "occupancy and hottest loop. It needs ROCm's compiler and llvm-objdump, and no GPU.",
    )
    parser.add_argument(
        "kernel", metavar="KERNEL", help="attention_softmax, or a pattern of forms: 'attention_softmax_float32_*'"
    )
    parser.add_argument("--arch", action="append", required=True, help="gfx942; may be given several times")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compile, analyse and print."""
    wanted = [(s, arch) for arch in arguments.arch for s in report.select(arguments.kernel, arch)]
    require_compiler()
    rows = [report.measure(specialisation, arch) for specialisation, arch in wanted]
    if arguments.json:
        print(json.dumps([row.facts() for row in rows], indent=2))
    else:
        report.show(rows, console())
    return 0
