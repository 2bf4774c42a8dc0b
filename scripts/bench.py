"""How fast is hipattn here, beside its peers and the chip's own limits? ``python scripts/bench.py [SUITE ...]``.

Suites: staged (the pipeline of stages), flash (fused attention), decode (one query a sequence, as replays of a graph),
kernels (those bound by memory), host (the host's time for a warm call), compile. Peers are NumPy on the host (suite
staged) and PyTorch's SDPA back ends, where torch finds the GPU; one that is not here is shown as "–", with the reason
below.

Times are medians of samples of at least 20 ms between two events of the device, warm, over several sets of inputs
that exceed its caches together, the contenders taking turns. The ceilings are measured too: a copy on the device
(bytes read and written), and a large product (GEMM) in the dtype. FLOP are those of the two products, half of them
under a causal mask.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench_machine import Machine
from bench_report import markdown, notes, plot, rich_table
from bench_suites import SUITES
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import hipattn
from hipattn.compiler.specialise import SCALARS

SIMULATED = (
    "THIS GPU IS SIMULATED ON THE CPU: THE TIMES BELOW SAY NOTHING ABOUT ANY GPU. Sizes are tiny; only what runs, and "
    "what is missing, means something."
)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the suites and return the document that --json writes."""
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    start = time.perf_counter()
    with (
        Machine(quick=options.quick) as machine,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        suites = []
        for name in options.suites:
            suite = SUITES[name]
            cases = list(suite.cases(machine, options.dtype or suite.dtypes))
            rows, task = [], progress.add_task(name, total=len(cases))
            for case in cases:
                what = " ".join(str(value) for value in case.what.values())
                progress.update(task, description=f"{name}: {what}")
                machine.ceiling(case.ceiling)
                rows.append(case.run(machine))
                release(machine)
                progress.advance(task)
            suites.append({"name": name, "title": suite.title, "unit": suite.unit, "rows": rows})
        seconds = round(time.perf_counter() - start, 1)
        return {**machine.describe(), "seconds": seconds, "ceilings": machine.ceilings, "suites": suites}


def release(machine: Machine) -> None:
    """Give back what a case held: hipattn's memory, and torch's."""
    machine.kernels.close()
    hipattn.free_scratch()
    gc.collect()
    machine.device.trim()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()


def report(console: Console, document: dict[str, Any], *, as_markdown: bool) -> None:
    """Print where this was measured, and a table a suite."""
    console.print(f"{document['device']}: {document['what']}; platform {document['platform']}", style="bold")
    console.print(document["software"])
    if document["simulated"]:
        console.print(SIMULATED, style="bold red")
    for name, value in document["ceilings"].items():
        unit = "TB/s, read and written" if name == "copy" else "TFLOP/s"
        console.print(f"ceiling, {name}: {value / 1e12:.3g} {unit}" if value else f"ceiling, {name}: not measured")
    for suite in document["suites"]:
        console.print()
        if as_markdown:
            console.print(f"{suite['title']}:\n\n{markdown(suite, document['ceilings'])}\n", soft_wrap=True)
        else:
            console.print(rich_table(suite, document["ceilings"]))
        for note in notes(suite):
            console.print(note, style="dim", soft_wrap=True)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Time hipattn beside its peers and the chip's limits.")
    add = parser.add_argument
    add("suites", nargs="*", metavar="SUITE", help=f"{', '.join(SUITES)}; default: all")
    add("--platform", choices=("auto", "amd", "nvidia", "cpu"), help="default: HIPATTN_PLATFORM, or auto")
    add("--dtype", action="append", choices=tuple(SCALARS), help="repeatable; default: each suite's own")
    add("--quick", action="store_true", help="tiny sizes and few samples: to see that all runs, not how fast")
    add("--markdown", action="store_true", help="tables for a README")
    add("--json", metavar="FILE", help="write all samples to FILE; -: to stdout, and no table")
    add("--load", metavar="FILE", help="measure nothing: show what --json wrote")
    add("--plot", metavar="FILE.png", help="draw TFLOP/s over tokens; needs matplotlib: pip install 'hipattn[bench]'")
    options = parser.parse_args()
    unknown = [name for name in options.suites if name not in SUITES]
    if unknown:
        parser.error(f"unknown suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    options.suites = options.suites or list(SUITES)
    return options


def main() -> int:
    """Measure and report."""
    options = arguments()
    if options.plot:
        try:
            import matplotlib as mpl  # noqa: F401  before anything is measured
        except ImportError:
            print("bench: --plot needs matplotlib: pip install 'hipattn[bench]'", file=sys.stderr)
            return 1
    # A stage that is computed on the CPU instead would be timed as the GPU's. Read at the first use of a device.
    os.environ["HIPATTN_FALLBACK"] = "error"
    if options.platform:
        os.environ["HIPATTN_PLATFORM"] = options.platform
    try:
        document = json.loads(Path(options.load).read_text()) if options.load else run(options)
    except (hipattn.PlatformError, hipattn.ConfigError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    if options.json == "-":
        print(json.dumps(document))
    else:
        width = None if sys.stdout.isatty() else 200
        console = Console(markup=False, highlight=False, emoji=False, width=width)
        report(console, document, as_markdown=options.markdown)
        if options.json:
            Path(options.json).write_text(json.dumps(document, indent=1) + "\n")
    if options.plot:
        try:
            plot(document["suites"], document["device"], options.plot)
        except ValueError as error:
            print(f"bench: no plot: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
