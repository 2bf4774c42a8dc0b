"""``hipattn cache``: the compiled kernels on disk."""

from __future__ import annotations

import argparse

from hipattn.cli.output import Commands, size
from hipattn.compiler.cache import DiskCache

__all__ = ["add_to", "run"]


def add_to(commands: Commands) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "cache",
        help="the compiled kernels on disk",
        description="Say where compiled kernels are kept, how many, and how large they are.",
    )
    parser.add_argument("--clear", action="store_true", help="remove them; what is needed is compiled again")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print it, and clear the cache if that is asked for."""
    cache = DiskCache()
    files = cache.files()
    nbytes = sum(file.stat().st_size for file in files)
    if arguments.clear:
        for file in files:
            file.unlink(missing_ok=True)
    print(f"{cache.folder}: {len(files)} kernels, {size(nbytes)}{', removed' if arguments.clear else ''}")
    return 0
