"""``flowgrain preview-times``: which noise levels each granularity will be trained at, before training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowgrain.cli.image_size import parse_size

if TYPE_CHECKING:
    from flowgrain.train.time_preview import TimePreview


def preview_times(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe (.yaml) or the name of a packaged one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the recipe's.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", metavar="WxH", help="Pixels of every slice, instead of the data set's sizes."),
    ] = None,
    form: Annotated[Literal["text", "json"], typer.Option("--format", help="text or json.")] = "text",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.html", help="Also write a page with figures here.")
    ] = None,
) -> None:
    """Show the noise levels and loss weights that each granularity will be trained with, with and without modulation.

    Sizes are those of the recipe's data set where it is there, else --size, data.resolution or the model's own. Reads
    configuration files of the model, never its weights.

    Example:

        flowgrain preview-times tiny-flux-granularity data.path=dataset
        flowgrain preview-times flux-dev-granularity --size 1280x1280 time.granularity_shift.macro=1 --out times.html
    """
    from flowgrain.errors import ConfigError
    from flowgrain.report.preview_times import as_json
    from flowgrain.train import time_preview
    from flowgrain.train.recipe import find_recipe

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: a page is written, name it FILE.html; --format json prints the numbers")
    chosen = None if size is None else parse_size(size)
    preview = time_preview.preview_times(time_preview.read_recipe(find_recipe(recipe), overrides or []), chosen)
    if form == "json":
        typer.echo(as_json(preview), nl=False)
    else:
        _print(preview)
    if out is not None:
        from flowgrain.report.preview_times_page import preview_page

        preview_page(preview).write(out)
        typer.echo(f"preview-times: {out}", err=True)


def _print(preview: "TimePreview") -> None:
    from flowgrain.cli.console import stdout_console
    from flowgrain.report.preview_times import (
        TIME_COLUMNS,
        WEIGHT_COLUMNS,
        headline,
        remarks,
        time_rows,
        weight_rows,
    )

    console = stdout_console()

    def table(columns: tuple[str, ...], rows: list[tuple[str, ...]], right: range) -> None:
        from rich.table import Table

        drawn = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))  # 80 columns hold it
        for index, name in enumerate(columns):
            drawn.add_column(name, justify="right" if index in right else "left")
        for row in rows:
            drawn.add_row(*row)
        console.print(drawn)

    typer.echo(f"recipe {preview.recipe} on {preview.model}, {preview.law.replace('_', '-')} law of t (1 = noise)")
    typer.echo(f"sizes: {preview.sizes}")
    typer.echo("\n".join([headline(preview), *remarks(preview)]) + "\n")
    table(TIME_COLUMNS, time_rows(preview), range(2, len(TIME_COLUMNS)))
    typer.echo()
    table(WEIGHT_COLUMNS, weight_rows(preview), range(1, len(WEIGHT_COLUMNS) - 1))
