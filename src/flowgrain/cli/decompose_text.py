"""What ``flowgrain decompose`` says at its end."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from flowgrain.slices.summary import Summary
    from flowgrain.slices.tuning import Forecast
    from flowgrain.vlm.asker import AskingForecast, Spending


def print_summary(summary: "Summary", out: Path | None) -> None:
    """Counts by level, roots, buckets and captions, warnings, and where to look."""
    from flowgrain.cli.console import stdout_console
    from flowgrain.vlm.asker import Spending

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
    if summary.spent != Spending():
        console.print(f"models           {_spending(summary.spent)}", highlight=False, soft_wrap=True)
    if summary.forecast is not None:
        console.print(f"models           {_forecast(summary.forecast)}", highlight=False, soft_wrap=True)
    unasked = "" if summary.forecast is None else "; a model that finds its boxes was not asked"
    for level in summary.levels:
        if not summary.slices_by_level[level]:
            typer.echo(f"warning: level '{level}' has no slice; see the discards above{unasked}", err=True)
    if summary.caption_sources["none"]:
        typer.echo(f"warning: {summary.caption_sources['none']} slices have no caption", err=True)
    if summary.unusable:
        typer.echo(f"warning: {summary.unusable} of {summary.images} images cannot be used", err=True)
    done = f"{summary.slices} slices of {summary.roots} roots from {summary.images} images"
    if out is None:
        typer.echo(f"dry run: {done}; nothing was written")
        return
    removed = f", {summary.removed} removed" if summary.removed else ""
    typer.echo(f"{done} ({summary.unchanged} images unchanged{removed}) -> {out}")
    typer.echo(f"look at {out / 'report.html'}; what was left out, and why, is in {out / 'rejects.jsonl'}")


def _spending(spent: "Spending") -> str:
    about = "about " if spent.estimated else ""
    cost = f", cost {spent.cost:.4g}" if spent.cost else ""
    return (
        f"{spent.questions} questions asked, {spent.cached} answered before, {spent.failed} without a usable answer; "
        f"{spent.requests} requests, {about}{spent.tokens_in} tokens in and {spent.tokens_out} out{cost}"
    )


def _forecast(forecast: "AskingForecast") -> str:
    cost = "cost unknown without prices" if forecast.cost is None else f"cost {forecast.cost:.4g}"
    return (
        f"not asked in a dry run: {forecast.questions} questions, about {forecast.tokens_in} tokens in and "
        f"{forecast.tokens_out} out, {cost}; captions of slices whose boxes a model would find come on top"
    )


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
