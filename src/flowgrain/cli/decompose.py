"""``flowgrain decompose``: a folder of images in, a data set of macro, meso and micro slices out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from flowgrain.config import Layered
    from flowgrain.slices.config import DecomposeConfig
    from flowgrain.slices.decompose import Summary


def decompose(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Folder of images, each with its caption beside it.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win, for example levels.micro.max_instances=2"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DATASET", help="Folder of the data set; new, or made by decompose.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file; over --preset if one is named, else over the defaults.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", help="flux-1024 (without --config), sdxl-1024 or tiny-128.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide every slice, print the counts, write none.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting with where it came from, and stop.")
    ] = False,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Check the configuration alone: no images are read.")
    ] = False,
) -> None:
    """Cut images into slices.

    Examples:

        flowgrain decompose photos --out dataset

        flowgrain decompose icons --out dataset --preset tiny-128 trigger="openmoji style"

    Run it again after adding, changing or removing images: only those are done anew. Look at
    DATASET/contact_sheet.png before training.
    """
    settings, layered = _load(config, preset, overrides or [])
    if print_config:
        _print_config(settings, layered)
    elif validate_only:
        typer.echo(f"valid: levels {', '.join(settings.levels)}; {settings.mode}")
    elif dry_run:
        _report(_with_progress(source, None, settings), None)
    elif out is None:
        raise typer.BadParameter("missing; name the folder of the data set, or use --dry-run", param_hint="--out")
    else:
        _report(_with_progress(source, out, settings), out)


def _load(config: Path | None, preset: str | None, overrides: list[str]) -> "tuple[DecomposeConfig, Layered]":
    from flowgrain.config import load_config
    from flowgrain.slices.config import DecomposeConfig
    from flowgrain.slices.presets import DEFAULT_PRESET, preset_path

    if preset is None and config is None:
        preset = DEFAULT_PRESET
    files = [] if preset is None else [preset_path(preset)]
    return load_config(DecomposeConfig, files if config is None else [*files, config], overrides)


def _print_config(config: "DecomposeConfig", layered: "Layered") -> None:
    from flowgrain.config import describe_origins

    for key, value, origin in describe_origins(config, layered):
        typer.echo(f"{key} = {value!r}    # {origin}")


def _with_progress(source: Path, out: Path | None, config: "DecomposeConfig") -> "Summary":
    """Decompose, or survey where there is no ``out``, under a progress bar on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flowgrain.cli.console import stderr_console
    from flowgrain.slices.decompose import decompose as run
    from flowgrain.slices.decompose import survey

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    try:
        console = stderr_console()
        columns = (*columns, TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=None)

            def on_image(name: str, done: int, total: int) -> None:
                bar.update(task, completed=done, total=total, description=name)

            return survey(source, config, on_image) if out is None else run(source, out, config, on_image)
    except KeyboardInterrupt:
        typer.echo("stopped; finished images are kept, run the same command to go on", err=True)
        raise typer.Exit(130) from None


def _report(summary: "Summary", out: Path | None) -> None:
    from rich.console import Console

    console = Console()
    roots = summary.levels_per_root.total()
    console.print(_levels_table(summary))
    histogram = ", ".join(f"K={levels}: {count}" for levels, count in sorted(summary.levels_per_root.items()))
    buckets = ", ".join(f"{w}x{h}: {count}" for (w, h), count in summary.buckets.most_common())
    sources = ", ".join(f"{source}: {count}" for source, count in summary.caption_sources.most_common())
    console.print(f"levels per root  {histogram}", highlight=False)
    console.print(f"buckets          {buckets}", highlight=False)
    console.print(f"captions         {sources}", highlight=False)
    for level in summary.levels:
        if not summary.slices_by_level[level]:
            typer.echo(f"warning: level '{level}' has no slice; see the discards above", err=True)
    if summary.caption_sources["none"]:
        typer.echo(f"warning: {summary.caption_sources['none']} slices have no caption", err=True)
    unreadable = summary.rejects["", "unreadable"]
    if unreadable:
        typer.echo(f"warning: {unreadable} of {summary.images} images cannot be read", err=True)
    done = f"{summary.slices} slices of {roots} roots from {summary.images} images"
    if out is None:
        typer.echo(f"dry run: {done}; nothing was written")
        return
    removed = f", {summary.removed} removed" if summary.removed else ""
    typer.echo(f"{done} ({summary.unchanged} images unchanged{removed}) -> {out}")
    typer.echo(f"look at {out / 'contact_sheet.png'}; what was left out is in {out / 'rejects.jsonl'}")


def _levels_table(summary: "Summary") -> "Table":
    from rich.table import Table

    table = Table("level", "slices", "discarded boxes", box=None, pad_edge=False)
    for level in ("", *summary.levels):
        reasons = sorted((code, count) for (where, code), count in summary.rejects.items() if where == level)
        text = ", ".join(f"{code} {count}" for code, count in reasons)
        if level or text:
            table.add_row(level or "(images)", str(summary.slices_by_level[level]) if level else "", text or "-")
    return table
