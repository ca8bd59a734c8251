"""``flowgrain demo``: the main job on the embedded bundle, start to report."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def demo(
    arch: Annotated[
        Literal["flux", "sdxl"],
        typer.Option("--arch", help="Embedded model: a flow-matching transformer or a diffusion U-Net."),
    ] = "flux",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for everything that the demo makes; demo or demo-sdxl.")
    ] = None,
    domain: Annotated[
        str, typer.Option("--domain", help="Embedded style: fluent3d, openmoji or streamline.")
    ] = "fluent3d",
    arms: Annotated[str, typer.Option("--arms", help="Recipes to compare, comma separated.")] = "baseline,granularity",
    slices: Annotated[int, typer.Option("--slices", min=8, help="Budget N1: slices that each arm trains on.")] = 2400,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Pictures drawn for each prompt and arm.")] = 2,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of training.")] = 0,
) -> None:
    """Decompose a domain, train the arms for the same budget, sample, measure and write a report.

    Example:

        flowgrain demo --domain openmoji --out demo-openmoji

        flowgrain demo --arch sdxl

    Run the same command again after an interruption: finished steps are kept.
    """
    from flowgrain.cli.progress import TrainingProgress
    from flowgrain.clock import Clock
    from flowgrain.demo.domains import load_domain
    from flowgrain.demo.page import REPORT_NAME, gather_arms, measure, write_report
    from flowgrain.demo.study import BASE, DemoPlan, check_arms, cut, draw_pictures, recipe, train_arm

    if out is None:
        out = Path("demo" if arch == "flux" else f"demo-{arch}")
    names = check_arms(arms, arch)
    plan = DemoPlan(load_domain(domain), out, arch, names, budget=slices, seeds=seeds, seed=seed)
    clock = Clock()
    speeds: dict[tuple[str, float | None], float | None] = {}
    with TrainingProgress("demo") as progress:
        with clock.stage("cutting slices"):
            cut(plan, progress.stage)
    for arm in plan.arms:
        with TrainingProgress(arm) as progress, clock.stage(f"training {arm}"):
            finished = train_arm(plan, arm, progress)
        if not finished:
            typer.echo("stopped on request after saving; run the same command again to go on", err=True)
            raise typer.Exit(130)
    checkpoints = recipe(plan, plan.arms[0]).budget.checkpoints
    drawn = [(BASE, None), *((arm, fraction) for fraction in checkpoints for arm in plan.arms)]
    with TrainingProgress("demo") as progress:
        with clock.stage("drawing pictures"):
            for name, fraction in drawn:
                speeds[name, fraction] = draw_pictures(plan, name, fraction, progress.stage)
        with clock.stage("measuring"):
            progress.stage("measuring", 0, 1)
            gathered = gather_arms(plan, speeds)
            metrics = measure(plan, gathered)
            progress.stage("measuring", 1, 1)
    report = out / REPORT_NAME
    write_report(plan, gathered, metrics, clock.seconds, report)
    typer.echo(f"report: {report.resolve()}")
