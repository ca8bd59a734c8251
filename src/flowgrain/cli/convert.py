"""``flowgrain convert``: a recipe from another trainer's configuration, with a report of every option."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowgrain.convert.draft import Draft

convert = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Write a recipe from kohya's or SimpleTuner's configuration and report what became of every option.\n\n"
    "Example:\n\n    flowgrain convert kohya train.toml --dataset dataset.toml --out recipe.yaml\n\n"
    "    flowgrain convert simpletuner config.json --dataset multidatabackend.json --out recipe.yaml",
)

Dataset = Annotated[Path | None, typer.Option("--dataset", help="Data-set file; default: the one that is named there.")]
Out = Annotated[Path | None, typer.Option("--out", help="Recipe to write (.yaml).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the recipe; the report goes to the error output.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")]


@convert.command(name="kohya")
def kohya(
    train: Annotated[Path | None, typer.Argument(help="Training TOML (kohya's --config_file).")] = None,
    dataset: Dataset = None,
    command: Annotated[
        str | None, typer.Option("--from-command", help="The training command itself, in quotation marks.")
    ] = None,
    out: Out = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Convert a LoRA training of kohya's sd-scripts: FLUX, SDXL or Stable Diffusion.

    Example:

        flowgrain convert kohya train.toml --dataset dataset.toml --out recipe.yaml

    A command: flowgrain convert kohya --from-command "accelerate launch flux_train_network.py --network_dim 16 ..."
    --out recipe.yaml
    """
    _check_target(out, dry_run, force)
    from flowgrain.convert.kohya import convert_kohya

    _finish(convert_kohya(train, dataset, command), out, dry_run)


@convert.command(name="simpletuner")
def simpletuner(
    config: Annotated[Path, typer.Argument(help="SimpleTuner's config.json.")],
    dataset: Dataset = None,
    out: Out = None,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Convert a FLUX LoRA training of SimpleTuner.

    Example:

        flowgrain convert simpletuner config.json --dataset multidatabackend.json --out recipe.yaml
    """
    _check_target(out, dry_run, force)
    from flowgrain.convert.simpletuner import convert_simpletuner

    _finish(convert_simpletuner(config, dataset), out, dry_run)


def _check_target(out: Path | None, dry_run: bool, force: bool) -> None:
    """Refuse a missing, wrongly named or existing target before any work."""
    from flowgrain.errors import ConfigError

    if dry_run:
        return
    if out is None:
        raise ConfigError("--out: name the recipe to write, for example --out recipe.yaml, or use --dry-run")
    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out: {out} must end in .yaml, the ending by which recipes are known")
    if out.exists() and not force:
        raise ConfigError(f"--out: {out} exists; choose another name or use --force")


def _finish(draft: "Draft", out: Path | None, dry_run: bool) -> None:
    from flowgrain.files import atomic_write_text

    recipe = draft.validated()
    if dry_run or out is None:
        typer.echo(draft.yaml(), nl=False)
        typer.echo(draft.report(), err=True)
        return
    atomic_write_text(out, draft.yaml())
    typer.echo(draft.report())
    typer.echo(f"\nrecipe '{recipe.name}' -> {out}; look at it, then run: flowgrain train {out} --dry-run")
