"""The command line, ``hipattn`` or ``python -m hipattn``: arguments and printing only."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from hipattn import __version__
from hipattn.cli import cache, compile, embed, generate, info, inspection  # noqa: A004
from hipattn.errors import HipattnError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status.

    0 if it did what was asked, 1 after an error, 2 for bad usage, 130 after an interrupt.
    """
    parser = argparse.ArgumentParser(prog="hipattn", description="Attention for AMD GPUs, compiled at run time.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (info, generate, embed, inspection, compile, cache):
        command.add_to(commands)
    arguments = parser.parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except HipattnError as error:
        print(f"hipattn: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # what reads stdout has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at exit
        return 1
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return status
