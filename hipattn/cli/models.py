"""What the commands that run models share."""

from __future__ import annotations

import argparse
import os

__all__ = ["add_platform_and_dtype", "apply"]


def add_platform_and_dtype(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--platform", choices=("auto", "amd", "nvidia", "cpu"), help="default: HIPATTN_PLATFORM")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), help="default: float16, simulated float32"
    )


def apply(arguments: argparse.Namespace) -> None:
    """Set the platform, before its libraries are opened."""
    if arguments.platform:
        os.environ["HIPATTN_PLATFORM"] = arguments.platform
