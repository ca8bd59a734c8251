"""``flowgrain vae``: fine-tune an autoencoder, dry-run it, or go on with it."""

from typing import TYPE_CHECKING, Annotated

import typer

from flowgrain.cli.drawn import print_origins, run_drawn

if TYPE_CHECKING:
    from flowgrain.train.runtime import Runtime
    from flowgrain.train.vae_recipe import VaeRecipe


def vae(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that comes with flowgrain.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the recipe's.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
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
    """Fine-tune an autoencoder: reconstruction, discriminator, structure of a vision model, deeper compression.

    Examples:

        flowgrain vae tiny-vae data.path=photos

        flowgrain vae gram-vae model.path=FLUX.1-dev data.path=photos gram.encoder.model=dino:dinov2-base

    OUTPUT/vae is an ordinary AutoencoderKL of diffusers; measure it with flowgrain reconstruct. Run the same command
    with --resume to go on after an interruption. Ctrl-C finishes the running update, saves and exits.
    """
    from flowgrain.cli.processes import Spokesman
    from flowgrain.config import load_config
    from flowgrain.train.distributed import launched
    from flowgrain.train.recipe import find_recipe
    from flowgrain.train.vae_recipe import VaeRecipe

    interrupted = False
    spokesman = Spokesman()
    with launched(spokesman.report) as runtime:
        config, layered = load_config(VaeRecipe, find_recipe(recipe), overrides or [])
        spokesman.run = config.output
        if not (print_config or validate_only or dry_run):
            interrupted = _run(config, resume, runtime)
        elif print_config and runtime.is_main:
            print_origins(config, layered)
        elif runtime.is_main:
            typer.echo(_forecast(config) if dry_run else f"recipe '{config.name}' is valid")
    if interrupted:
        raise typer.Exit(130)


def _forecast(config: "VaeRecipe") -> str:
    from flowgrain.train.vae_forecast import forecast_vae

    return forecast_vae(config)


def _run(config: "VaeRecipe", resume: bool, runtime: "Runtime") -> bool:
    """Run a recipe and say how it went; True where it was interrupted."""
    from flowgrain.train.vae_run import train_vae

    return run_drawn(config.name, config.output / "vae", lambda seen: train_vae(config, resume, seen, runtime), runtime)
