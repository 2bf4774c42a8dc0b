"""What the commands print with."""

from __future__ import annotations

import argparse
import sys
from typing import TypeAlias

from rich.console import Console

__all__ = ["Commands", "console", "size"]

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def console() -> Console:
    """Return a console that prints tables whole where nothing limits the width."""
    return Console(width=None if sys.stdout.isatty() else 200, markup=False, highlight=False, emoji=False)


def size(nbytes: float) -> str:
    """Return a number of bytes as people read it: "1.5 MiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} GiB"
