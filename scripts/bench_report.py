"""What ``bench.py`` shows of its results: a table, the same as Markdown, and a plot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

__all__ = ["cells", "markdown", "notes", "plot", "rich_table"]

Rows = list[list[str]]
SCALE = {"TFLOP/s": 1e12, "TB/s": 1e12}


def cells(suite: dict[str, Any], ceilings: dict[str, float]) -> tuple[list[str], Rows]:
    """Return the header and the rows of a suite's table.

    Times are of hipattn, or of all where there is no work to count; a peer has its rate and how many times as long
    it takes as the first contender does.
    """
    unit, rows = suite["unit"], suite["rows"]
    columns = list(dict.fromkeys(key for row in rows for key in row["what"]))
    contenders = list(dict.fromkeys(name for row in rows for name in row["results"]))
    first = contenders[:1]
    header = [column.replace("_", " ") for column in columns]
    for name in contenders:
        header += [name, unit, f"of {'copy' if unit == 'TB/s' else 'GEMM'}"] if unit and name in first else [name]
    table = []
    for row in rows:
        line = [_value(row["what"].get(column, "")) for column in columns]
        lead = row["results"].get(first[0], {}).get("seconds") if first else None
        for name in contenders:
            result = row["results"].get(name, {})
            seconds = result.get("seconds")
            if seconds is None:
                line += ["error" if "error" in result else "–", *(["", ""] if unit and name in first else [])]
                continue
            ratio = f" ({seconds / lead:.3g}x)" if lead and name not in first else ""
            if not unit:
                line.append(_time(seconds) + ratio)
                continue
            rate, most = row["work"] / seconds, ceilings.get(row["ceiling"])
            shown = f"{rate / SCALE[unit]:.3g}"
            line += [_time(seconds), shown, f"{rate / most:.0%}" if most else "–"] if name in first else [shown + ratio]
        table.append(line)
    return header, table


def notes(suite: dict[str, Any]) -> Iterator[str]:
    """Yield what the table leaves open: who is absent or failed, and why."""
    said: dict[str, int] = {}
    for row in suite["rows"]:
        if "skipped" in row:
            yield f"skipped: {_named(row['what'])}: {row['skipped']}"
        for name, result in row["results"].items():
            for kind in ("absent", "error"):
                if kind in result:
                    text = f"{name}: {'–' if kind == 'absent' else 'error'}: {result[kind]}"
                    said[text] = said.get(text, 0) + 1
    for text, count in said.items():
        yield text if count == len(suite["rows"]) else f"{text} ({count} of {len(suite['rows'])} rows)"
    if suite["unit"]:
        yield f"In a peer's column: its {suite['unit']}, and how many times the first contender's time it takes."


def rich_table(suite: dict[str, Any], ceilings: dict[str, float]) -> Table:
    """Return the table for a terminal."""
    header, rows = cells(suite, ceilings)
    table = Table(title=suite["title"], title_justify="left", padding=(0, 1, 0, 0))
    for name in header:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(suite: dict[str, Any], ceilings: dict[str, float]) -> str:
    """Return the table for a README."""
    header, rows = cells(suite, ceilings)
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(suites: Sequence[dict[str, Any]], title: str, path: str) -> None:
    """Draw TFLOP/s over the number of tokens: a panel for each set of other settings, a line for each contender.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    ValueError
        Nothing was measured over a number of tokens.
    """
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for suite in suites:
        for row in suite["rows"] if suite["unit"] == "TFLOP/s" else ():
            # Suite flash has batch · tokens fixed; elsewhere the batch is a setting like others.
            over = {"tokens", "batch"} if suite["name"] == "flash" else {"tokens"}
            others = {key: value for key, value in row["what"].items() if key not in over}
            lines = panels.setdefault(_named(others), {})
            for name, result in row["results"].items():
                if "seconds" in result:
                    point = row["what"]["tokens"], row["work"] / result["seconds"] / 1e12
                    lines.setdefault(name, []).append(point)
    longest = max((len(points) for lines in panels.values() for points in lines.values()), default=0)
    panels = {  # of one point only if there are no others
        name: lines
        for name, lines in panels.items()
        if any(len(points) >= min(2, longest) for points in lines.values())
    }
    if not panels:
        raise ValueError("nothing was measured over a number of tokens (suites staged and flash are)")
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4 * across, 3.2 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (name, lines) in zip(axes.flat, panels.items(), strict=False):
        for contender, points in lines.items():
            ours = contender.startswith("hipattn")
            axis.plot(*zip(*sorted(points), strict=True), "o-", label=contender, linewidth=2.5 if ours else 1.2)
        axis.set(title=name, xscale="log", xlabel="tokens", ylabel="TFLOP/s", ylim=(0, None))
        axis.set_xscale("log", base=2)
        axis.title.set_fontsize(9)
        axis.legend(fontsize=7)
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _named(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items())


def _value(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
