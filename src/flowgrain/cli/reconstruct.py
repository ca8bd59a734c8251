"""``flowgrain reconstruct``: how well do autoencoders give pictures back?"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

if TYPE_CHECKING:
    import torch

    from flowgrain.evaluate.reconstruction.autoencoder import Autoencoder
    from flowgrain.evaluate.reconstruction.pictures import Preparation
    from flowgrain.evaluate.reconstruction.session import ReconstructionOutcome, ReconstructionPlan

MeasureT = TypeVar("MeasureT")


def reconstruct(
    models: Annotated[
        list[str], typer.Argument(metavar="[NAME=]MODEL...", help="Model folder, hub id, AutoencoderKL or tiny-flux.")
    ],
    pictures: Annotated[Path, typer.Option("--pictures", help="Folder of pictures, with its subfolders.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for reconstructions and results.")] = Path(
        "reconstructions"
    ),
    size: Annotated[
        int | None, typer.Option("--size", min=32, help="Scale the short side to this and crop a centred square.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=3, help="Take the first pictures only.")] = None,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1024, help="Without --size: larger pictures are scaled down to this.")
    ] = 4_194_304,
    posterior: Annotated[
        Literal["mean", "sample"], typer.Option("--posterior", help="What is decoded: its mean, or a seeded sample.")
    ] = "mean",
    perceptual: Annotated[
        str | None, typer.Option("--perceptual", help="st-lpips[:vgg], lpips-alex:FILE, lpips-vgg:FILE or none.")
    ] = None,
    lpips_heads: Annotated[
        Path | None, typer.Option("--lpips-heads", help="Heads of LPIPS where its package is not installed.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option("--encoder", help="For the Frechet distance: mobilenet, inception:FILE, ... or none.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="Of the autoencoders' weights.")
    ] = "float32",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, stop.")] = False,
) -> None:
    """Encode and decode pictures, and measure what is lost.

    Examples:

        flowgrain reconstruct tiny-flux --pictures photos --size 128

        flowgrain reconstruct before=tiny-flux after=runs/vae --pictures photos --out lost

    Models are compared on the same pictures. The same command again reconstructs only what is missing. Results are
    OUT/metrics.md (csv, json), OUT/pictures.csv and OUT/sheet.png, which shows the worst and the best.
    """
    from flowgrain.cli.device import open_device
    from flowgrain.errors import ConfigError
    from flowgrain.evaluate.encoders.registry import open_encoder
    from flowgrain.evaluate.reconstruction.folder import find_sources
    from flowgrain.evaluate.reconstruction.measure import PIXEL_SCORES
    from flowgrain.evaluate.reconstruction.perceptual_weights import open_perceptual
    from flowgrain.evaluate.reconstruction.session import ReconstructionPlan

    named = _named(models)
    if out.resolve().is_relative_to(pictures.resolve()):
        raise ConfigError(f"--out {out}: lies in --pictures, where reconstructions would be taken for originals")
    where = open_device(device)
    distance = _measure(perceptual, "st-lpips", lambda spec: open_perceptual(spec, lpips_heads, str(where)))
    plan = ReconstructionPlan(
        arms={name: _loader(name, location, dtype, where, posterior) for name, location in named.items()},
        sources=find_sources(pictures, limit),
        preparation=_preparation(list(named.values()), size, max_pixels),
        scores=[*PIXEL_SCORES, distance] if distance else list(PIXEL_SCORES),
        ranked_by=distance or PIXEL_SCORES[0],
        encoder=_measure(encoder, "mobilenet", lambda spec: open_encoder(spec, str(where))),
        out=out,
    )
    _announce(plan, posterior)
    if not dry_run:
        _report(plan, _with_progress(plan))


def _named(models: list[str]) -> dict[str, str]:
    """Name -> location, names from NAME=MODEL or the last part of the model's path."""
    from flowgrain.errors import ConfigError
    from flowgrain.families.embedded import resolve_model

    named: dict[str, str] = {}
    for model in models:
        name, equals, location = model.partition("=")
        if not equals:
            name, location = Path(model).resolve().name if Path(model).exists() else model.rpartition("/")[2], model
        if not name or not location:
            raise ConfigError(f"'{model}': expected MODEL or NAME=MODEL")
        if name in named:
            raise ConfigError(f"two models are called '{name}'; name them apart: NAME=MODEL")
        named[name] = resolve_model(location)
    return named


def _preparation(locations: list[str], size: int | None, max_pixels: int) -> "Preparation":
    """One way to prepare pictures that suits all autoencoders."""
    import math

    from flowgrain.errors import ConfigError
    from flowgrain.evaluate.reconstruction.autoencoder import vae_multiple
    from flowgrain.evaluate.reconstruction.pictures import Preparation

    multiple = math.lcm(*(vae_multiple(location) for location in locations))
    if size is not None and size % multiple:
        raise ConfigError(f"--size {size}: must be a multiple of {multiple} pixels; use {size - size % multiple}")
    return Preparation(size=size, max_pixels=None if size else max_pixels, multiple=multiple)


def _loader(
    name: str, location: str, dtype: str, device: "torch.device", posterior: str
) -> "Callable[[], Autoencoder]":
    def load() -> "Autoencoder":
        import torch

        from flowgrain.evaluate.reconstruction.autoencoder import DiffusersAutoencoder, load_vae
        from flowgrain.families.fingerprint import module_digest

        vae = load_vae(location, getattr(torch, dtype), device)
        return DiffusersAutoencoder(name, vae, module_digest({"vae": vae}), None if posterior == "mean" else 0)

    return load


def _measure(spec: str | None, default: str, opened: Callable[[str], MeasureT]) -> MeasureT | None:
    """The measure of an option; where none was asked for, the default one if its weights are installed."""
    from flowgrain.errors import ModelError

    if spec == "none":
        return None
    if spec is not None:
        return opened(spec)
    try:
        return opened(default)
    except ModelError as error:
        typer.echo(f"note: left out: {error}", err=True)
        return None


def _announce(plan: "ReconstructionPlan", posterior: str) -> None:
    preparation = plan.preparation
    if preparation.size:
        sized = f"squares of {preparation.size} pixels"
    else:
        sized = f"at most {preparation.max_pixels} pixels, sides cropped to multiples of {preparation.multiple}"
    models = f"{len(plan.arms)} model" + ("s" if len(plan.arms) > 1 else "")
    measures = ", ".join([score.title for score in plan.scores])
    if plan.encoder is not None:
        measures += f", Frechet distance ({plan.encoder.family})"
    typer.echo(f"{len(plan.sources)} pictures x {models} ({', '.join(plan.arms)}), {sized}, posterior {posterior}")
    typer.echo(f"measures: {measures}; results in {plan.out}")


def _with_progress(plan: "ReconstructionPlan") -> "ReconstructionOutcome":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from flowgrain.cli.console import stderr_console
    from flowgrain.evaluate.reconstruction.session import run

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    stages: dict[str, TaskID] = {}
    try:
        with Progress(*columns, console=stderr_console()) as bars:

            def on_progress(stage: str, done: int, total: int) -> None:
                if stage not in stages:
                    stages[stage] = bars.add_task(stage, total=total)
                bars.update(stages[stage], completed=done)

            return run(plan, on_progress)
    except KeyboardInterrupt:
        typer.echo("stopped; finished reconstructions are kept, run the same command to go on", err=True)
        raise typer.Exit(130) from None


def _report(plan: "ReconstructionPlan", outcome: "ReconstructionOutcome") -> None:
    typer.echo(f"{outcome.done} reconstructed, {outcome.kept} kept")
    width = max(len(result.name) for result in outcome.table.results)
    for result in outcome.table.results:
        interval = f"{result.value:10.4g}  [{result.low:.4g}, {result.high:.4g}]"
        typer.echo(f"{result.name:<{width}}  {interval:<34}  {result.arm}")
    for item in outcome.table.differences:
        change = f"{item.value:+.4g} [{item.low:+.4g}, {item.high:+.4g}]"
        typer.echo(f"{item.name}: {item.second} - {item.first} = {change}; ahead: {item.ahead or 'neither'}")
    if outcome.problems:
        from flowgrain.data.quarantine import describe_problems

        listed = describe_problems(outcome.problems)
        typer.echo(f"warning: pictures left out: {len(outcome.problems)} (quarantine.jsonl): {listed}", err=True)
    typer.echo(f"look at {plan.out / 'sheet.png'}")
