"""``flowgrain sample --protocol``: every run at every budget of a protocol, and the file that says what was drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from flowgrain.evaluate.protocol import ProtocolConfig
    from flowgrain.sample.comparison import ComparisonRequest
    from flowgrain.sample.generate import SampleConfig


def read_protocol(text: str) -> "ProtocolConfig":
    """A preset by its name, or a YAML file of ProtocolConfig; raises ConfigError naming the presets."""
    from flowgrain.config import load_config
    from flowgrain.errors import ConfigError
    from flowgrain.evaluate.protocol import PRESETS, ProtocolConfig

    if text in PRESETS:
        return ProtocolConfig.model_validate(text)
    if text.endswith((".yaml", ".yml")):
        return load_config(ProtocolConfig, Path(text), [])[0]
    raise ConfigError(f"--protocol {text}: expected one of {', '.join(PRESETS)}, or a .yaml file with its settings")


def read_runs(texts: list[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` options; raises ConfigError for another form or a name that comes twice."""
    from flowgrain.errors import ConfigError

    runs: dict[str, Path] = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        if not separator or not name.strip() or not folder.strip():
            raise ConfigError(f"--run {text}: expected NAME=FOLDER, for example baseline=runs/baseline")
        if name.strip() in runs:
            raise ConfigError(f"--run {text}: the name '{name.strip()}' is given twice")
        runs[name.strip()] = Path(folder.strip())
    return runs


def request_of(
    protocol: "ProtocolConfig",
    runs: list[str],
    prompts: Path | None,
    seeds: int | None,
    config: "SampleConfig",
    *,
    base: bool,
    dataset: str | None,
    description: str,
    references: Path | None,
    dtype: str | None,
    out: Path | None,
) -> "ComparisonRequest":
    """The options as one request; raises ConfigError for what is missing."""
    from flowgrain.errors import ConfigError
    from flowgrain.evaluate.comparison import read_references
    from flowgrain.evaluate.protocol import urae_prompts
    from flowgrain.sample.comparison import ComparisonRequest
    from flowgrain.sample.prompts import read_prompts

    if out is None:
        raise ConfigError("--protocol needs --out: the folder for comparison.yaml, the pictures and all results")
    if prompts is None and protocol.preset == "urae":
        prompts = urae_prompts()
    if prompts is None:
        raise ConfigError("--prompts is missing; give a text file with one prompt a line")
    if references is not None:
        read_references(references)
    return ComparisonRequest(
        protocol=protocol,
        runs=read_runs(runs),
        base=base,
        dataset=dataset or out.absolute().name,
        description=description,
        references=references,
        prompts=read_prompts(prompts),
        seeds=list(range(protocol.seeds if seeds is None else seeds)),
        config=config,
        dtype=dtype,
        out=out,
    )


def sample_protocol(request: "ComparisonRequest", device: str, dry_run: bool) -> None:
    """Print the plan, then draw."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flowgrain.cli.console import stderr_console
    from flowgrain.cli.device import open_device
    from flowgrain.sample.comparison import draw_comparison, plan_comparison
    from flowgrain.sample.session import load_model

    plan = plan_comparison(request)
    for note in plan.notes:
        typer.echo(f"note: {note}", err=True)
    variants = plan.config.datasets[0].variants
    each = len(request.prompts) * len(request.seeds)
    typer.echo(
        f"{request.dataset}: {len(variants)} variants x {len(request.prompts)} prompts x {len(request.seeds)} seeds = "
        f"{len(variants) * each} pictures, {request.config.steps} steps, guidance {request.config.guidance:g}, "
        f"to {request.out}"
    )
    for variant, samples in zip(variants, plan.samples, strict=True):
        weights = samples.checkpoint.path if samples.checkpoint else "no adapter"
        typer.echo(f"  {variant.name}: {samples.model.path}, {weights}")
    if dry_run:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr_console()) as bars:
        tasks = {variant.name: bars.add_task(variant.name, total=None, start=False) for variant in variants}

        def advance(name: str, done: int, total: int) -> None:
            bars.start_task(tasks[name])
            bars.update(tasks[name], completed=done, total=total)

        outcome = draw_comparison(plan, request.out, lambda model: load_model(model, open_device(device)), advance)
    typer.echo(f"{request.dataset}: {outcome.drawn} pictures drawn, {outcome.kept} kept")
    typer.echo(f"next: flowgrain evaluate {request.out}")
