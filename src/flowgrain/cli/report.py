"""``flowgrain report``: one page of a comparison, with Markdown, figures and tables beside it; or of a data set."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowgrain.report.evaluation import Evaluation


def report(
    comparisons: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="COMPARISON...", help="comparison.yaml files or their folders; or one DATASET of decompose."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="HTML file; report.html beside the first comparison, or in the data set, by default."
        ),
    ] = None,
    metrics: Annotated[
        Path | None, typer.Option("--metrics", help="metrics.json of 'flowgrain evaluate', or its folder.")
    ] = None,
    judge: Annotated[Path | None, typer.Option("--judge", help="Folder of 'flowgrain judge'.")] = None,
    study: Annotated[
        Path | None, typer.Option("--study", help="Folder of 'flowgrain study new', or its results.")
    ] = None,
    runs: Annotated[
        list[str] | None,
        typer.Option(
            "--runs", metavar="NAME=RUN", help="Run folder for learning curves; those of the comparison by default."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Title of the page.")] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows of pictures embedded for each data set.")] = 8,
    side: Annotated[
        int, typer.Option("--side", min=64, help="Longest side of embedded pictures in pixels; larger are scaled down.")
    ] = 512,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the page would hold, write nothing.")] = False,
) -> None:
    """Write what is known about a comparison, or about a data set of slices, as one page.

    Examples:

        flowgrain report eval

        flowgrain report eval/alpha eval/beta --out both.html --runs baseline=runs/baseline

        flowgrain report dataset

    Metrics, judge and study are read where they are; what is missing is said on the page, with the command for it.
    """
    if any(map(_is_data_set, comparisons or [])):
        _report_data_set(comparisons or [], (metrics, judge, study, runs), out, title, dry_run)
        return
    from flowgrain.config import printable
    from flowgrain.report.evaluation_page import evaluation_page
    from flowgrain.report.output import LARGE_PAGE_MB, check_target, write_report
    from flowgrain.report.sheets import sheets_of
    from flowgrain.report.sources import Places, read_evaluation

    places = Places(metrics, judge, study, _read_runs(runs or []))
    evaluation = read_evaluation(comparisons or [], places)
    path = out or evaluation.comparison.folder / "report.html"
    check_target(path)
    typer.echo("\n".join(map(printable, _found(evaluation))))
    if dry_run:
        typer.echo(f"would write {path}, {path.with_suffix('.md').name} and tables beside it")
        return
    page = evaluation_page(evaluation, title, rows=rows, side=side)
    written = write_report(page, sheets_of(evaluation), path)
    typer.echo(
        f"{written.page}: {written.megabytes:.1f} MB, pictures of at most {side} pixels; beside it "
        f"{written.markdown.name}, {len(written.figures)} figures, {len(written.tables)} tables"
    )
    if written.megabytes > LARGE_PAGE_MB:
        typer.echo(
            f"warning: the page is larger than {LARGE_PAGE_MB:g} MB, slow on phones; choose fewer --rows or a smaller "
            "--side",
            err=True,
        )


def _is_data_set(path: Path) -> bool:
    from flowgrain.slices.recorded import is_data_set

    return is_data_set(path)


def _report_data_set(
    folders: list[Path], elsewhere: tuple[object, ...], out: Path | None, title: str | None, dry_run: bool
) -> None:
    from flowgrain.errors import ConfigError
    from flowgrain.report.output import check_target
    from flowgrain.report.slices_page import REPORT_NAME, write_slices_page

    if len(folders) > 1:
        raise ConfigError("report: a data set is reported alone; name one folder of decompose, or comparisons only")
    if any(elsewhere):
        raise ConfigError("--metrics, --judge, --study and --runs are about comparisons; a data set has none of them")
    path = out or folders[0] / REPORT_NAME
    check_target(path)
    if dry_run:
        typer.echo(f"would write {path}")
        return
    write_slices_page(folders[0], out=path, title=title)
    typer.echo(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def _read_runs(texts: list[str]) -> "dict[str, Path] | None":
    from flowgrain.errors import ConfigError

    runs: dict[str, Path] = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        if not separator or not name.strip() or not folder.strip():
            raise ConfigError(f"--runs {text}: expected NAME=RUN, for example baseline=runs/baseline")
        if name.strip() in runs:
            raise ConfigError(f"--runs {text}: the name '{name.strip()}' is given twice")
        runs[name.strip()] = Path(folder.strip())
    return runs or None


def _found(evaluation: "Evaluation") -> list[str]:
    """What was read, a line each, and what is missing."""
    from flowgrain.report.sections.missing import gaps_of

    comparison = evaluation.comparison
    lines = [
        f"pictures: {len(comparison.variants)} variants on {len(comparison.datasets)} data sets, "
        f"{len(comparison.items())} of each"
    ]
    if evaluation.metrics.results:
        names = {(result.name, result.subset) for result in evaluation.metrics.results}
        lines.append(f"metrics: {len(names)} measures, {len(evaluation.metrics.differences)} paired differences")
    lines += [f"{ballot.title}: {ballot.summary.counts.rankings} answers" for ballot in evaluation.ballots]
    lines += [f"run {run.name}: {len(run.log.validations)} validations" for run in evaluation.runs]
    lines += [f"not measured: {gap.what}; {gap.remedy}" for gap in gaps_of(evaluation)]
    return lines
