"""Kernels as AMD's compiler made them: a row for each specialisation and arch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table

from hipattn.compiler.isa import Analysis, analyse
from hipattn.compiler.loader import build
from hipattn.compiler.specialise import Specialisation
from hipattn.errors import ArgumentError
from hipattn.kernels import defaults

__all__ = ["Row", "measure", "select", "show"]


class Row(NamedTuple):
    """A kernel's specialisation and what it became on an arch."""

    specialisation: Specialisation
    analysis: Analysis

    def facts(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {"specialisation": self.specialisation.name, **asdict(self.analysis)}


def select(kernel: str, arch: str) -> list[Specialisation]:
    """Return the default specialisations of a kernel, or those whose names fit a pattern.

    Raises
    ------
    ArgumentError
        There is none, or `arch` is not known.
    """
    known = list(defaults(arch))
    found = [s for s in known if kernel in (s.kernel, s.source) or fnmatchcase(s.name, kernel)]
    if not found:
        kernels = sorted({s.kernel for s in known})
        raise ArgumentError(
            f"KERNEL is {kernel!r}; accepted: {', '.join(kernels)}, or a pattern such as {known[0].name}"
        )
    return found


def measure(specialisation: Specialisation, arch: str) -> Row:
    """Compile (or take from the cache) and analyse."""
    analyses = analyse(build(specialisation, arch).image, arch)
    return Row(specialisation, next(a for a in analyses if a.kernel.name == specialisation.kernel))


def show(rows: Sequence[Row], console: Console) -> None:
    """Print a table for each specialisation, with a line for each arch."""
    by_name: dict[str, list[Analysis]] = {}
    for specialisation, analysis in rows:
        by_name.setdefault(specialisation.name, []).append(analysis)
    for name, analyses in by_name.items():
        table = Table(title=name, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for column in ("arch", *_COLUMNS):
            table.add_column(column, justify="left" if column == "arch" else "right")
        for analysis in analyses:
            table.add_row(analysis.arch, *_cells(analysis))
        console.print(table)
    console.print(_LEGEND)


_COLUMNS = (
    *("VGPRs", "AGPRs", "SGPRs", "LDS B", "spills", "waves"),
    *("matrix", "exp", "VALU", "LDS", "memory", "wait", "branch", "SALU", "cycles"),
)

_LEGEND = """\
waves: that a SIMD holds at once, by registers, LDS and block size
matrix to SALU: instructions of the hottest loop (in parentheses: of a kernel without loops); exp: exp, log, rcp, ...
cycles: llvm-mca's, of one wave through all blocks of the loop; for comparing kernels on one chip, not across chips"""


def _cells(analysis: Analysis) -> list[str]:
    kernel, counts = analysis.kernel, analysis.counts
    needs = (kernel.vgprs, kernel.agprs, kernel.sgprs, kernel.lds, kernel.vgpr_spills + kernel.sgpr_spills)
    does = [str(n) if analysis.in_loop else f"({n})" for n in counts.values()]
    cycles = "-" if analysis.cycles is None else f"{analysis.cycles:.0f}"
    return [*map(str, needs), f"{analysis.occupancy:g}", *does, cycles]
