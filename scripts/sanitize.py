"""Run part of the test suite under compute-sanitizer: ``python scripts/sanitize.py``. Needs an NVIDIA GPU.

Each tool runs the kernels' and the pipeline's tests once: memcheck (accesses outside an allocation, leaks of the
driver's), racecheck (LDS races), initcheck (reads of memory that nothing wrote), synccheck (barriers that not all
threads reach). The exit status is 1 if one of them reports an error or makes no report. What the tests themselves
find is shown, and does not count: under the sanitizer Python's frames live longer, which the check for memory that
a test leaves takes for a leak.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from hipattn.kernels import FAMILIES

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
ROOT = Path(__file__).parents[1]
TESTS = ("tests/kernels", "tests/attn/test_staged.py", "tests/attn/test_decode.py::test_each_shape")

# Our kernels: these two tools are slow, and cuBLAS is not what is checked.
OURS = "regex=" + "|".join(sorted({kernel.kernel for family in FAMILIES for kernel in family.defaults("sm_90")}))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run tests under compute-sanitizer.")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="repeatable; default: all")
    parser.add_argument("--select", metavar="EXPRESSION", default="", help="pytest -k: only these tests")
    parser.add_argument("--log", metavar="FOLDER", type=Path, help="keep each tool's whole output there")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, help="for each tool")
    parser.add_argument("tests", nargs="*", default=TESTS, help=f"default: {' '.join(TESTS)}")
    return parser.parse_args()


def run(sanitizer: str, tool: str, options: argparse.Namespace) -> tuple[int, str, float]:
    """Return the exit status, the output and the seconds of the tests under one tool."""
    command = [sanitizer, f"--tool={tool}", "--target-processes=all"]
    if tool in ("initcheck", "racecheck"):
        command.append(f"--kernel-name={OURS}")
    command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options.tests]
    if options.select:
        command += ["-k", options.select]
    environment = os.environ | {"HIPATTN_PLATFORM": "nvidia"}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=options.timeout
        )
        status, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        status, output = 124, (error.stdout or b"").decode(errors="replace") + "\ntimed out\n"
    return status, output, time.perf_counter() - start


def main() -> int:
    """Run the tools and report."""
    options = arguments()
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(sanitizer).exists():
        print("sanitize: compute-sanitizer is not on the PATH nor in /usr/local/cuda/bin", file=sys.stderr)
        return 1
    table, failed = Table("tool", "tests", "errors", "seconds"), False
    for tool in options.tool or TOOLS:
        status, output, seconds = run(sanitizer, tool, options)
        if options.log:
            options.log.mkdir(parents=True, exist_ok=True)
            (options.log / f"{tool}.log").write_text(output)
        tests = re.findall(r"^.*\b(?:passed|failed|error)\b.* in .*$", output, re.MULTILINE)
        errors = re.findall(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (.*)$", output, re.MULTILINE)
        found = [lines[-1].strip(" =") if lines else "no report" for lines in (tests, errors)]
        table.add_row(tool, *found, f"{seconds:.0f}")
        if not errors or not errors[-1].startswith("0 "):
            failed = True
            print(f"--- {tool}: status {status}\n{output[-6000:]}")
    Console().print(table)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
