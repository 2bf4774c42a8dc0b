"""Does hipattn work on this machine? Measure it, and report check by check: ``python scripts/verify.py``.

Each row of the report is measured in this run, on the device named above the table; its evidence is numbers.
"a ≤ b" is the largest error beside its bound, both relative to the largest value expected. Against attention
in float64 the bound is twice the error of the same formula evaluated in the input dtype, but not below
`verify_checks.FLOOR`. The exit status is 1 if anything failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text
from verify_checks import CHECKS, RUN, Check, Evidence, Gpu, Result
from verify_models import MODELS

import hipattn
from hipattn import Device, HipAttentionKernels, Stream, config
from hipattn.compiler.program import compiler_version
from hipattn.runtime import bindings


def wanted(options: argparse.Namespace) -> list[Check]:
    """Return the checks that were asked for."""
    found = [item for item in CHECKS if options.models or item.section != MODELS]
    return sorted(found, key=lambda item: item.section == RUN)


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Yield what device 0 is, then the result of each check on it."""
    device = Device(0)
    yield {
        "device": device.name,
        "platform": bindings.platform().name,
        "arch": device.arch,
        "what": f"{device.arch}, wave {device.wave_size}, {device.lds_bytes >> 10} KiB of LDS, "
        f"{device.compute_units} compute units, {device.total_memory / 2**30:.0f} GiB",
        "software": f"hipattn {hipattn.__version__}, hip-python {version('hip-python')}, "
        f"hiprtc {compiler_version().rpartition(':')[2]}, Python {platform.python_version()}",
        "simulated": device.simulated,
    }
    with bindings.record() as calls, Stream(device) as stream, HipAttentionKernels(device) as kernels:
        gpu = Gpu(device, stream, kernels, calls, options.quick)
        for item in wanted(options):
            yield item.run(gpu)


def measure_apart(options: argparse.Namespace, arch: str) -> Iterator[Result]:
    """Do what `measure` does for one arch, in a process of its own: a process has one platform."""
    command = [
        sys.executable,
        __file__,
        "--arch",
        arch,
        "--json",
        "-",
        *["--quick"] * options.quick,
        *["--models"] * options.models,
    ]
    count = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for count, line in enumerate(process.stdout or (), 1):  # noqa: B007
            yield json.loads(line)
    if count <= len(wanted(options)):
        ended = Evidence(f"the process ended after {count} lines with status {process.returncode}", status="failed")
        yield {"section": "Run", "name": "all checks made", **ended._asdict(), "trace": ""}


def measure_all(options: argparse.Namespace) -> dict[str, list[Result]]:
    """Return arch → what `measure` yields, showing progress on a terminal."""
    console = Console(stderr=True)
    columns = TextColumn("{task.fields[arch]}"), BarColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def collect(arch: str, results: Iterator[Result]) -> list[Result]:
            task = progress.add_task("", total=len(wanted(options)) + 1, arch=arch)
            found = []
            for item in results:
                found.append(item)
                progress.update(task, advance=1, description=item.get("name", ""))
            return found

        if len(options.arch) <= 1:
            found = collect("".join(options.arch), measure(options))
            return {found[0]["arch"]: found}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            runs = {arch: pool.submit(collect, arch, measure_apart(options, arch)) for arch in options.arch}
            return {arch: run.result() for arch, run in runs.items()}


# ---- the report ----

MARKS = {
    "passed": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "pending": ("pending", "yellow"),
    "not run": ("not run", "dim"),
}


def report(console: Console, runs: dict[str, list[Result]], *, models: bool) -> None:
    """Print what was measured where, the table, and what failed in full."""
    described = [item for found in runs.values() for item in found if "device" in item]
    for facts in described:
        console.print(f"{facts['device']}: {facts['what']}; platform {facts['platform']}", style="bold")
    for software in {facts["software"] for facts in described}:
        console.print(software)
    if any(facts["simulated"] for facts in described):
        console.print(
            "A simulated GPU proves logic, memory layouts, indexing and synchronisation. "
            "It proves nothing about speed or about AMD's compiler.",
            style="yellow",
        )
    table = Table("check", "evidence", padding=(0, 1, 0, 0))
    for arch in runs:
        table.add_column(arch if len(runs) > 1 else "", justify="center", no_wrap=True)
    rows: dict[tuple[str, str], dict[str, Result]] = {}
    for arch, found in runs.items():
        for item in found:
            if "status" in item:
                rows.setdefault((item["section"], item["name"]), {})[arch] = item
    for section, group in itertools.groupby(rows, key=lambda row: row[0]):
        table.add_section()
        table.add_row(Text(section, "bold"))
        for row in group:
            marks = [Text(*MARKS[rows[row][arch]["status"]]) if arch in rows[row] else "" for arch in runs]
            table.add_row(f" {row[1]}", evidence(rows[row]), *marks)
    console.print(table)
    if len(runs) > 1:
        console.print("Evidence that differs is that of the arch in brackets, nearest to its bound.", style="dim")
    if not models:
        console.print(f"{MODELS}: not run (--models)", style="dim")
    for arch, item in ((arch, item) for by_arch in rows.values() for arch, item in by_arch.items()):
        if item["status"] == "failed":
            console.print(f"\n✗ {item['name']} ({arch})", style="bold red")
            console.print(item["trace"] or item["text"])


def evidence(by_arch: dict[str, Result]) -> str:
    """Return the evidence of a row: of a failure, or of the arch that is nearest to its bound."""
    arch = max(by_arch, key=lambda arch: (by_arch[arch]["status"] == "failed", by_arch[arch]["share"]))
    text = str(by_arch[arch]["text"])
    return text if len({item["text"] for item in by_arch.values()}) == 1 else f"{text} ({arch})"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Measure whether hipattn works here, check by check.")
    add = parser.add_argument
    add("--platform", choices=("auto", "amd", "nvidia", "cpu"), help="default: HIPATTN_PLATFORM, or auto")
    simulated: Any = {"choices": config.SIMULATED_ARCHS, "help": "GPU to simulate (cpu platform); repeatable"}
    add("--arch", action="append", default=[], **simulated)
    add("--models", action="store_true", help="add real models, fetched at first use: SmolLM2, MiniLM")
    add("--quick", action="store_true", help="small shapes only, for slow devices")
    add("--json", metavar="FILE", help="write the results to FILE; -: to stdout, a line a check, no table")
    options = parser.parse_args()
    if options.arch and options.platform in ("amd", "nvidia"):
        parser.error("--arch is for the cpu platform; a GPU has its own")
    return options


def main() -> int:
    """Measure and report."""
    options = arguments()
    # hipattn reads its environment at the first use of a device, which is after this.
    os.environ["HIPATTN_FALLBACK"] = "error"
    if options.arch or options.platform:
        os.environ["HIPATTN_PLATFORM"] = "cpu" if options.arch else options.platform
    if len(options.arch) == 1:
        os.environ["HIPATTN_CPU_ARCH"] = options.arch[0]
    start, statuses = time.perf_counter(), Counter[str]()
    try:
        if options.json == "-":
            for item in measure(options):
                print(json.dumps(item), flush=True)
                statuses[item.get("status", "")] += 1
            return int(bool(statuses["failed"]))
        runs = measure_all(options)
    except (hipattn.PlatformError, hipattn.ConfigError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 1
    console = Console(markup=False, highlight=False, emoji=False)
    report(console, runs, models=options.models)
    statuses.update(item["status"] for found in runs.values() for item in found if "status" in item)
    counts = ", ".join(f"{statuses[status]} {status}" for status in MARKS if statuses[status])
    seconds = time.perf_counter() - start
    console.print(f"{counts} in {seconds:.0f} s", style="bold red" if statuses["failed"] else "bold green")
    if options.json:
        document = {"passed": not statuses["failed"], "seconds": round(seconds, 1), "archs": runs}
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    return int(bool(statuses["failed"]))


if __name__ == "__main__":
    sys.exit(main())
