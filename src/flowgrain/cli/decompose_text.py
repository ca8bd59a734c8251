"""What ``flowgrain decompose`` says at its end."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from flowgrain.slices.summary import Summary
    from flowgrain.slices.tuning import Forecast


def print_summary(summary: "Summary", out: Path | None) -> None:
    """Counts by level, roots, buckets and captions, warnings, and where to look."""
    from flowgrain.cli.console import stdout_console

    console = stdout_console()
    console.print(_levels_table(summary))
    histogram = ", ".join(f"K={levels}: {count}" for levels, count in sorted(summary.levels_per_root.items()))
    buckets = ", ".join(f"{w}x{h}: {count}" for (w, h), count in summary.buckets.most_common())
    sources = ", ".join(f"{source}: {count}" for source, count in summary.caption_sources.most_common())
    console.print(f"levels per root  {histogram}", highlight=False)
    console.print(f"buckets          {buckets}", highlight=False)
    console.print(f"captions         {sources}", highlight=False)
    if summary.seconds:
        total = sum(summary.seconds.values())
        stages = sorted(summary.seconds.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in stages)
        console.print(f"time             {total:.1f} s of all processes: {shares}", highlight=False)
    for level in summary.levels:
        if not summary.slices_by_level[level]:
            typer.echo(f"warning: level '{level}' has no slice; see the discards above", err=True)
    if summary.caption_sources["none"]:
        typer.echo(f"warning: {summary.caption_sources['none']} slices have no caption", err=True)
    unused = sum(count for (level, _), count in summary.rejects.items() if not level)
    if unused:
        typer.echo(f"warning: {unused} of {summary.images} images cannot be used", err=True)
    done = f"{summary.slices} slices of {summary.roots} roots from {summary.images} images"
    if out is None:
        typer.echo(f"dry run: {done}; nothing was written")
        return
    removed = f", {summary.removed} removed" if summary.removed else ""
    typer.echo(f"{done} ({summary.unchanged} images unchanged{removed}) -> {out}")
    typer.echo(f"look at {out / 'contact_sheet.png'}; what was left out is in {out / 'rejects.jsonl'}")


def print_forecast(forecast: "Forecast") -> None:
    """What all images would take."""
    typer.echo(forecast.text())


def _levels_table(summary: "Summary") -> "Table":
    from rich.table import Table

    table = Table("level", "slices", "found by", "discarded boxes", box=None, pad_edge=False)
    for level in ("", *summary.levels):
        reasons = sorted((code, count) for (where, code), count in summary.rejects.items() if where == level)
        text = ", ".join(f"{code} {count}" for code, count in reasons)
        found = ", ".join(f"{kind} {n}" for (where, kind), n in sorted(summary.detectors.items()) if where == level)
        if level or text:
            count = str(summary.slices_by_level[level]) if level else ""
            table.add_row(level or "(images)", count, found, text or "-")
    return table
