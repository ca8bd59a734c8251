"""``flowgrain sample``: draw pictures from a run's checkpoint or a base model, with a manifest."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flowgrain.cli.image_size import parse_size

if TYPE_CHECKING:
    from flowgrain.sample.generate import SampleConfig
    from flowgrain.sample.run_folder import Checkpoint, ModelChoice
    from flowgrain.sample.session import SampleOutcome, SamplePlan


def sample(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN]", help="Folder of 'flowgrain train'.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Text file, one prompt a line, # comments.")] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Pictures per prompt, seeds 0 to N - 1; 1 by default.")
    ] = None,
    at: Annotated[
        float | None, typer.Option("--at", help="Checkpoint at this multiple of the budget; the last one by default.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="One checkpoint folder, or 'best' of RUN: lowest held-out loss.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A model instead of RUN: folder, hub id, single file or tiny-flux.")
    ] = None,
    model_config: Annotated[
        str | None, typer.Option("--model-config", help="Folder or hub id that describes a single-file --model.")
    ] = None,
    vae: Annotated[
        str | None, typer.Option("--vae", help="Another autoencoder for --model: a folder of 'flowgrain vae', a model.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Sample folder; in RUN/samples by default.")] = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the sampler.")] = 28,
    guidance: Annotated[float, typer.Option("--guidance", min=0.0, help="Guidance scale.")] = 3.5,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", help="Pixels; the model's own by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Pictures drawn at once.")] = 4,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None, typer.Option("--dtype", help="Of the weights; the run's by default.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the plan, draw nothing.")] = False,
    protocol: Annotated[
        str | None,
        typer.Option("--protocol", help="Compare runs: granularity, urae, checkpoints or a .yaml file; needs --run."),
    ] = None,
    runs: Annotated[
        list[str] | None, typer.Option("--run", metavar="NAME=FOLDER", help="A run to compare, once for each.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option("--references", help="Real pictures of the domain, for the comparison.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Name of the domain; the name of --out by default.")
    ] = None,
    describe: Annotated[
        str, typer.Option("--describe", help="What the domain looks like, told to judges and participants.")
    ] = "",
    base: Annotated[bool, typer.Option("--base", help="Compare with the model without adapter as well.")] = False,
) -> None:
    """Draw pictures.

    Examples:

        flowgrain sample runs/fox --prompts prompts.txt --seeds 4

        flowgrain sample --model tiny-flux --prompts prompts.txt --out base

        flowgrain sample --protocol granularity --run baseline=runs/a --run granularity=runs/b
        --prompts prompts.txt --references held_out --out eval/fox

    A picture depends on its prompt and seed. The same command again draws only what is missing.
    """
    from flowgrain.cli.sample_protocol import read_protocol, request_of, sample_protocol
    from flowgrain.errors import ConfigError
    from flowgrain.sample.generate import SampleConfig
    from flowgrain.sample.prompts import read_prompts
    from flowgrain.sample.session import SamplePlan

    width, height = (None, None) if size is None else parse_size(size)
    config = SampleConfig(steps=steps, guidance=guidance, width=width, height=height, batch_size=batch_size)
    comparing = {
        "--run": runs,
        "--references": references,
        "--dataset": dataset,
        "--describe": describe,
        "--base": base,
    }
    if protocol is not None:
        alone = {
            "RUN": run,
            "--model": model,
            "--model-config": model_config,
            "--vae": vae,
            "--at": at,
            "--checkpoint": checkpoint,
        }
        _refuse(alone, "does not go with --protocol; name the runs with --run NAME=FOLDER")
        request = request_of(
            read_protocol(protocol), runs or [], prompts, seeds, config, base=base, dataset=dataset,
            description=describe, references=references, dtype=dtype, out=out,
        )  # fmt: skip
        return sample_protocol(request, device, dry_run)
    _refuse(comparing, "is read with --protocol alone")
    if prompts is None:
        raise ConfigError("--prompts is missing; give a text file with one prompt a line")
    name, choice, chosen = _choose(run, model, model_config, vae, dtype, at, checkpoint)
    plan = SamplePlan(
        run=name,
        model=choice,
        checkpoint=chosen,
        prompts=read_prompts(prompts),
        seeds=list(range(seeds or 1)),
        config=config,
        out=out or _default_out(run, chosen, config),
    )
    pictures = f"{len(plan.prompts)} prompts x {len(plan.seeds)} seeds = {len(plan.prompts) * len(plan.seeds)} pictures"
    weights = f"{choice.path} with {chosen.path}" if chosen else choice.path
    typer.echo(f"{name}: {pictures}, {steps} steps, guidance {guidance:g}, from {weights} to {plan.out}")
    if choice.prediction is not None or choice.zero_terminal_snr is not None:
        from flowgrain.adapters.trained_path import TrainedPath

        typer.echo(f"note: drawn with {TrainedPath(choice.prediction, choice.zero_terminal_snr)}, as trained", err=True)
    if dry_run:
        return
    outcome = _draw(plan, device)
    typer.echo(f"{name}: {outcome.drawn} pictures drawn, {outcome.kept} kept in {plan.out}")


def _refuse(options: dict[str, object], why: str) -> None:
    from flowgrain.errors import ConfigError

    given = [name for name, value in options.items() if value]
    if given:
        raise ConfigError(f"{given[0]} {why}")


def _choose(
    run: Path | None,
    model: str | None,
    model_config: str | None,
    vae: str | None,
    dtype: str | None,
    at: float | None,
    checkpoint: Path | None,
) -> "tuple[str, ModelChoice, Checkpoint | None]":
    """Run name, model and checkpoint that the options mean."""
    from flowgrain.errors import ConfigError
    from flowgrain.sample.run_folder import (
        ModelChoice,
        best_checkpoint,
        choose_checkpoint,
        on_path_of,
        open_checkpoint,
        read_run,
    )

    if (run is None) == (model is None):
        raise ConfigError("give either RUN, a folder of 'flowgrain train', or --model with a model, not both or none")
    if run is not None and model_config is not None:
        raise ConfigError("--model-config describes a single file that --model names; a RUN says its own")
    if run is not None and vae is not None:
        raise ConfigError("--vae goes with --model; a RUN says its own (model.vae)")
    if at is not None and (run is None or checkpoint is not None):
        raise ConfigError("--at chooses among the checkpoints of RUN; it does not go with --model or --checkpoint")
    best = run is not None and checkpoint == Path("best")
    chosen = open_checkpoint(checkpoint) if checkpoint and not best else None
    if run is None:
        name = "base" if chosen is None else chosen.path.name
        choice = ModelChoice(str(model), None, dtype or "float32", config=model_config, vae=vae)
        return name, on_path_of(choice, chosen.adapter) if chosen else choice, chosen
    name, choice = read_run(run)
    chosen = best_checkpoint(run) if best else chosen
    if dtype is not None:
        choice = replace(choice, dtype=dtype)
    return name, choice, chosen or choose_checkpoint(run, at)


def _default_out(run: Path | None, checkpoint: "Checkpoint | None", config: "SampleConfig") -> Path:
    """A folder for these weights and sampler options, in the run or beside the working folder's other samples."""
    parts = [checkpoint.path.name if checkpoint else "base", f"steps{config.steps}", f"guidance{config.guidance:g}"]
    if config.width is not None:
        parts.append(f"{config.width}x{config.height}")
    return (run or Path()) / "samples" / "-".join(parts)


def _draw(plan: "SamplePlan", device: str) -> "SampleOutcome":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from flowgrain.cli.console import stderr_console
    from flowgrain.cli.device import open_device
    from flowgrain.sample.session import draw, load_model

    family = load_model(plan.model, open_device(device))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr_console()) as bars:
        task = bars.add_task(f"{plan.run}: drawing", total=None)
        return draw(family, plan, lambda done, total: bars.update(task, completed=done, total=total))
