"""``flowgrain diagnose``: the geometry of a run's training as a page with figures."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowgrain.diagnose.conduct import Plan
    from flowgrain.diagnose.config import DiagnoseConfig


def diagnose(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of 'flowgrain train', finished or running.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="What moved since training: data.path, validation.path, ..."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the page; RUN/diagnose if left out.")] = None,
    checkpoint: Annotated[
        list[int] | None,
        typer.Option("--checkpoint", metavar="UPDATE", help="Update of a checkpoint; repeat it. At most 6 are chosen."),
    ] = None,
    sections: Annotated[
        str | None, typer.Option("--sections", help="Comma-separated parts to measure; all if left out.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option("--levels", help="Comma-separated noise levels t, 0 = data, 1 = noise.")
    ] = None,
    queries: Annotated[int, typer.Option("--queries", min=2, help="Query points of each noise level.")] = 32,
    max_slices: Annotated[
        int, typer.Option("--max-slices", min=2, help="Training slices to read; whole roots are drawn beyond.")
    ] = 10_000,
    memory: Annotated[int, typer.Option("--memory", min=16, help="MiB that fields and latents may take.")] = 256,
    updates: Annotated[int, typer.Option("--updates", min=1, help="Updates whose gradients are measured.")] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws query points, noise and controls.")] = 0,
    device: Annotated[
        str | None, typer.Option("--device", help="auto, cpu, cuda or cuda:N; the recipe's if left out.")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Where the data set is now: short for data.path.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured, load no model.")] = False,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Write the page anew from diagnose.json alone.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything again.")] = False,
) -> None:
    """Measure interference, gradients, the training path and more of a run, and write a page that explains them.

    Finished parts are kept in OUT/diagnose.json: run it again to go on, or to add checkpoints. The run's own files are
    only read.

    Example:

        flowgrain diagnose runs/fox
        flowgrain diagnose runs/fox --sections interference --levels 0.9,0.95,0.98 --out fox-geometry
    """
    from flowgrain.diagnose.config import DiagnoseConfig
    from flowgrain.diagnose.store import read_document
    from flowgrain.errors import CheckpointError, ConfigError

    folder = out or run / "diagnose"
    if rebuild:
        document = read_document(folder)
        if document is None:
            raise CheckpointError(f"{folder}: no diagnose.json here; run 'flowgrain diagnose' without --rebuild first")
        _write(document, folder)
        return
    config = DiagnoseConfig(
        checkpoints=None if not checkpoint else tuple(checkpoint),
        levels=None if levels is None else _numbers(levels),
        queries=queries,
        max_slices=max_slices,
        memory_mib=memory,
        updates=updates,
        seed=seed,
    )
    changes = [*(overrides or [])]
    changes += [] if data is None else [f"data.path={data}"]
    changes += [] if device is None else [f"device={device}"]
    if data is not None and any(text.startswith("data.path=") for text in changes[:-1]):
        raise ConfigError("--data and data.path=... say the same thing: give one of them")
    _measure(run, folder, config, changes, sections, fresh, dry_run)


def _measure(
    run: Path, out: Path, config: "DiagnoseConfig", changes: list[str], sections: str | None, fresh: bool, dry_run: bool
) -> None:
    from flowgrain.diagnose.conduct import conduct, make_plan
    from flowgrain.diagnose.sections import choose_sections

    names = None if sections is None else tuple(part.strip() for part in sections.split(",") if part.strip())
    plan = make_plan(run, out, config, changes, choose_sections(names), fresh)
    _announce(plan)
    if dry_run:
        return
    from flowgrain.cli.progress import TrainingProgress

    with TrainingProgress("diagnose") as bars:
        document = conduct(plan, bars.stage)
    _write(document, out)


def _announce(plan: "Plan") -> None:
    points = ", ".join(point.name for point in plan.points)
    typer.echo(f"diagnose: states: {points}", err=True)
    kept = [entry.name for entry in plan.sections if entry not in plan.pending]
    if kept:
        typer.echo(f"diagnose: measured before and kept: {', '.join(kept)} (--fresh measures them again)", err=True)
    for entry in plan.pending:
        typer.echo(f"diagnose: to measure: {entry.name} ({entry.meaning})", err=True)


def _write(document: dict, out: Path) -> None:
    from flowgrain.diagnose.store import PAGE_NAME
    from flowgrain.report.diagnose_page import diagnose_page, summary_lines

    page = out / PAGE_NAME
    diagnose_page(document).write(page)
    for line in summary_lines(document):
        typer.echo(f"- {line}")
    typer.echo(f"diagnose: {page}", err=True)


def _numbers(text: str) -> tuple[float, ...]:
    from flowgrain.errors import ConfigError

    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--levels {text}: give numbers between 0 and 1, for example 0.9,0.95,0.98") from None
    if not all(0 < value < 1 for value in values):
        raise ConfigError(f"--levels {text}: noise levels lie strictly between 0 (data) and 1 (noise)")
    return values
