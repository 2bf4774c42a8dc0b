"""The command line in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

__all__ = ["run"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, with no HIPATTN_* variables but those given."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HIPATTN_")}
    clean["HIPATTN_CACHE_DIR"] = os.environ["HIPATTN_CACHE_DIR"]
    return subprocess.run(
        [sys.executable, "-m", "hipattn", *arguments], env=clean | environment, capture_output=True, text=True
    )
