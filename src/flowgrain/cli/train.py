"""``flowgrain train``: run a recipe, dry-run it, or go on with it."""

from typing import TYPE_CHECKING, Annotated

import typer

from flowgrain.cli.drawn import print_origins, run_drawn

if TYPE_CHECKING:
    from flowgrain.config import Layered
    from flowgrain.train.loop import Observer, Outcome
    from flowgrain.train.recipe import Recipe
    from flowgrain.train.runtime import Runtime


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that comes with flowgrain.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the recipe's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    trial_update: Annotated[
        bool,
        typer.Option(
            "--trial-update", help="First run the largest micro-batch once: memory and time, or out of memory."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate, read the data, plan, print the arithmetic and stop.")
    ] = False,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Check the configuration alone: no data, no weights.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting with where it came from, and stop.")
    ] = False,
) -> None:
    """Train an adapter.

    Example:

        flowgrain train tiny-flux-granularity data.path=dataset output=runs/fox budget.amount=2000

    Run the same command with --resume to go on after an interruption. Ctrl-C finishes the running update, saves
    and exits.
    """
    from flowgrain.cli.processes import Spokesman
    from flowgrain.train.distributed import launched

    interrupted = False
    spokesman = Spokesman()
    with launched(spokesman.report) as runtime:
        config, layered = _load(recipe, overrides or [])
        spokesman.run = config.output
        if not (print_config or validate_only or dry_run):
            interrupted = _run(config, resume, runtime, trial_update)
        elif runtime.is_main:
            _describe(config, layered, print_config, dry_run)
    if interrupted:
        raise typer.Exit(130)


def _describe(config: "Recipe", layered: "Layered", print_config: bool, dry_run: bool) -> None:
    if print_config:
        print_origins(config, layered)
    elif dry_run:
        from flowgrain.train.forecast import forecast

        typer.echo(forecast(config))
    else:
        typer.echo(f"recipe '{config.name}' is valid")


def _load(recipe: str, overrides: list[str]) -> "tuple[Recipe, Layered]":
    from flowgrain.config import load_config
    from flowgrain.train.recipe import Recipe, find_recipe

    return load_config(Recipe, find_recipe(recipe), overrides)


def _run(config: "Recipe", resume: bool, runtime: "Runtime", trial: bool) -> bool:
    """Run a recipe and say how it went; True where it was interrupted."""
    from flowgrain.train.loop import train as run_recipe

    def run(observer: "Observer") -> "Outcome":
        return run_recipe(config, resume, observer, runtime, trial)

    return run_drawn(config.name, config.output, run, runtime)
