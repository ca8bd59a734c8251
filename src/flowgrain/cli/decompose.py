"""``flowgrain decompose``: pictures in, a data set of macro, meso and micro slices out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flowgrain.config import Layered
    from flowgrain.data.collections import Collection
    from flowgrain.slices.config import DecomposeConfig
    from flowgrain.slices.decompose import OnImage, RunOptions
    from flowgrain.slices.summary import Summary


def decompose(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="Folder of images, each with its caption beside it; or WebDataset tars (a folder, one, or a pattern); "
            "or hf:DATASET, a Hugging Face data set by folder or id.",
        ),
    ],
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
        list[str] | None,
        typer.Option(
            "--preset",
            help="What is in the pictures (portrait, illustration, object, product, scene), what they are for "
            "(sd15-512, sdxl-1024, flux-1024, flux-1280, tiny-128), or one of each: give it twice.",
        ),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            "--detector", metavar="LEVEL=KIND[:VALUE]", help="Detector of a level, for example micro=people:eyes"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes; as many as cores if not given, one for a few images."),
    ] = None,
    executor: Annotated[
        str, typer.Option("--executor", help="local, or ray: a Ray cluster (RAY_ADDRESS), else one on this machine.")
    ] = "local",
    device: Annotated[
        str, typer.Option("--device", help="Where detectors and upscalers compute: auto, cpu, cuda or cuda:N.")
    ] = "auto",
    sample: Annotated[
        int | None,
        typer.Option("--sample", min=1, help="Cut so many images only, with a report and a forecast for all."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide every slice, print the counts, write none.")
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print every setting with where it came from, and stop.")
    ] = False,
    image: Annotated[
        str | None, typer.Option("--image", help="With --print-config: the settings of this image of SRC.")
    ] = None,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Check the configuration alone: no images are read.")
    ] = False,
) -> None:
    """Cut images into slices.

    Examples:

        flowgrain decompose photos --out dataset

        flowgrain decompose photos --out dataset --preset portrait --preset flux-1024

        flowgrain decompose photos --out try --sample 24 --detector micro=people:eyes

        flowgrain decompose icons --out dataset --preset tiny-128 trigger="openmoji style"

    Run it again after adding, changing or removing images: only those are done anew. Look at
    DATASET/report.html before training.
    """
    settings, layered = _load(source, preset or [], config, detector or [], overrides or [])
    if print_config:
        _print_config(settings, layered, source, image)
    elif image is not None:
        raise typer.BadParameter("is read with --print-config alone", param_hint="--image")
    elif validate_only:
        typer.echo(f"valid: levels {', '.join(settings.levels)}; {settings.mode}")
    elif out is None and not dry_run:
        raise typer.BadParameter("missing; name the folder of the data set, or use --dry-run", param_hint="--out")
    else:
        _run(source, None if dry_run else out, settings, layered, _options(source, executor, workers, device), sample)


def _run(
    source: str,
    out: Path | None,
    settings: "DecomposeConfig",
    layered: "Layered",
    options: "RunOptions",
    sample: int | None,
) -> None:
    from flowgrain.cli.decompose_text import print_forecast, print_summary
    from flowgrain.config import describe_origins
    from flowgrain.data.collections import open_collection
    from flowgrain.report.slices_page import RunNotes, write_slices_page
    from flowgrain.slices.store import writing
    from flowgrain.slices.tuning import forecast, sampled

    collection = open_collection(source)
    chosen: Collection = collection if sample is None else sampled(collection, sample)
    summary = _with_progress(chosen, out, settings, options)
    expected = None if sample is None else forecast(summary, len(collection.names()), out)
    if out is not None:
        origins = {key: origin for key, _, origin in describe_origins(settings, layered)}
        with writing(out):
            write_slices_page(out, RunNotes(origins=origins, forecast=expected))
    print_summary(summary, out)
    if expected is not None:
        print_forecast(expected)


def _options(source: str, executor: str, workers: int | None, device: str) -> "RunOptions":
    from flowgrain.cli.device import open_device
    from flowgrain.slices.decompose import RunOptions
    from flowgrain.slices.executors import make_executor

    origin = str(Path(source).resolve()) if Path(source).exists() else source
    return RunOptions(make_executor(executor, workers), str(open_device(device)), None, origin)


def _detector_override(text: str) -> str:
    level, equals, detector = text.partition("=")
    if not equals or not level or not detector:
        raise typer.BadParameter(f"'{text}': expected LEVEL=KIND[:VALUE]", param_hint="--detector")
    return f"levels.{level}.detector={json.dumps(detector, ensure_ascii=False)}"


def _load(
    source: str, presets: list[str], config: Path | None, detectors: list[str], overrides: list[str]
) -> "tuple[DecomposeConfig, Layered]":
    from flowgrain.errors import ConfigError
    from flowgrain.slices.settings import load_settings

    folder = Path(source) if Path(source).is_dir() else None
    given = [_detector_override(text) for text in detectors]
    try:
        return load_settings(presets, folder, config, [*given, *overrides])
    except ConfigError as error:
        levels = list(_levels_without_detectors(presets, folder, config, overrides))
        unknown = next((text for text in detectors if levels and text.partition("=")[0] not in levels), None)
        if unknown is None:
            raise
        raise ConfigError(
            f"--detector {unknown}: no level of that name, levels are {', '.join(levels)}; one of your own needs its "
            "granularity too, for example levels.NAME.granularity=micro"
        ) from error


def _levels_without_detectors(
    presets: list[str], folder: Path | None, config: Path | None, overrides: list[str]
) -> "Iterable[str]":
    from flowgrain.errors import ConfigError
    from flowgrain.slices.settings import load_settings

    try:
        return load_settings(presets, folder, config, overrides)[0].levels
    except ConfigError:  # then it is not the detectors alone
        return ()


def _print_config(config: "DecomposeConfig", layered: "Layered", source: str, image: str | None) -> None:
    from flowgrain.config import describe_origins
    from flowgrain.data.collections import open_collection
    from flowgrain.errors import DataError
    from flowgrain.slices.settings import settings_of_image

    if image is not None:
        collection = open_collection(source)
        names = collection.names()
        if image not in names:
            raise DataError(f"--image {image}: no such image in {source}; they are called like '{names[0]}'")
        config, layered = settings_of_image(config, layered, collection, image)
    for key, value, origin in describe_origins(config, layered):
        typer.echo(f"{key} = {value!r}    # {origin}")


def _with_progress(
    collection: "Collection", out: Path | None, config: "DecomposeConfig", options: "RunOptions"
) -> "Summary":
    """Decompose, or survey where there is no ``out``, under a progress bar on stderr."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flowgrain.cli.console import stderr_console

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    try:
        console = stderr_console()
        columns = (*columns, TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("", total=None)

            def on_image(name: str, done: int, total: int) -> None:
                bar.update(task, completed=done, total=total, description=name)

            return _work(out, options, on_image)(collection, config)
    except KeyboardInterrupt:
        typer.echo("stopped; finished chunks are kept, run the same command to go on", err=True)
        raise typer.Exit(130) from None


def _work(
    out: Path | None, options: "RunOptions", on_image: "OnImage"
) -> "Callable[[Collection, DecomposeConfig], Summary]":
    from flowgrain.slices.decompose import decompose as run
    from flowgrain.slices.decompose import survey

    if out is None:
        return lambda collection, config: survey(collection, config, on_image, options)
    return lambda collection, config: run(collection, out, config, on_image, options)
