"""``flowgrain export`` and ``flowgrain import``: adapters for other programs, and adapters of theirs."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from flowgrain.adapters.fitting import LayerUpdates
    from flowgrain.export.layout import Target
    from flowgrain.export.source import ExportSource
    from flowgrain.families.base import Family
    from flowgrain.sample.run_folder import ModelChoice

Dtype = Literal["float32", "bfloat16", "float16"]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, print what would be written, write nothing.")
]
ModelConfig = Annotated[
    str | None, typer.Option("--model-config", help="Folder or hub id that describes a single-file --model.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing file or folder.")]


def export(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Run, checkpoint or adapter folder, or adapter file.")
    ],
    to: Annotated[Literal["diffusers", "kohya", "comfyui", "merged"], typer.Option("--to", help="What it is for.")],
    at: Annotated[
        float | None, typer.Option("--at", help="Checkpoint at this multiple of the budget; the last one by default.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="One checkpoint folder, or 'best' of the run: lowest loss.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Base model; the run's by default.")] = None,
    model_config: ModelConfig = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File (.safetensors) or folder; in RUN/exports by default.")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option("--dtype", help="Of what is written; float32 by default, merged: the run's.")
    ] = None,
    component_only: Annotated[
        bool, typer.Option("--component-only", help="merged: only the parts that the adapter changes.")
    ] = False,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Write a trained adapter as other programs load it.

    Examples:

        flowgrain export runs/fox --to comfyui

        flowgrain export runs/fox --to kohya --checkpoint best --dtype float16 --out fox.safetensors

        flowgrain export runs/fox --to merged --dtype bfloat16 --out fox-model

        flowgrain export fox.safetensors --model tiny-flux --to kohya --dry-run

    diffusers: pipe.load_lora_weights(FILE). kohya: sd-scripts, and whatever reads its names. comfyui: the LoraLoader
    node. merged: a whole model in diffusers layout, for every program and every kind of adapter.
    """
    from flowgrain.errors import CheckpointError, ConfigError
    from flowgrain.export.source import open_source
    from flowgrain.sample.run_folder import ModelChoice

    if model_config is not None and model is None:
        raise ConfigError("--model-config describes a single file that --model names; give both")
    if component_only and to != "merged":
        raise ConfigError("--component-only is read with --to merged alone; remove it")
    choice = None if model is None else ModelChoice(model, None, "float32", config=model_config)
    found = open_source(source, at, checkpoint, choice)
    if to == "merged":
        _merge(found, out or found.folder / f"{found.name}-merged", dtype, component_only, dry_run, force)
        return
    if found.whole:
        raise CheckpointError(
            f"{found.adapter}: holds whole weights (adapter.kind full), which no adapter file does; use --to merged"
        )
    file_name = f"{found.name}-{to}.safetensors"
    target = found.folder / file_name if out is None else out if out.suffix == ".safetensors" else out / file_name
    _convert(found, to, target, dtype or "float32", dry_run, force)


def import_adapter(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Adapter file (.safetensors) of kohya's tools, ComfyUI or diffusers.")
    ],
    model: Annotated[
        str, typer.Option("--model", help="Model that it belongs to: folder, hub id, single file or tiny-flux.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Checkpoint folder to write.")],
    model_config: ModelConfig = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", min=0.0, help="The alpha it was trained with, where the file says none.")
    ] = None,
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Leave out tensors that have no place in the model.")
    ] = False,
    dry_run: DryRun = False,
    force: Force = False,
) -> None:
    """Read another program's LoRA, LoCon or DoRA as a checkpoint of ours.

    Examples:

        flowgrain import fox.safetensors --model sdxl-folder --out adapters/fox

        flowgrain sample --model sdxl-folder --checkpoint adapters/fox --prompts prompts.txt

    A recipe goes on from it with adapter.init_from.path=adapters/fox.
    """
    from flowgrain.errors import CheckpointError, ConfigError
    from flowgrain.export.adapter_import import IMPORTED_NAME, read_any, write_adapter
    from flowgrain.sample.run_folder import ModelChoice

    if alpha == 0:
        raise ConfigError("--alpha must be positive: with 0 the adapter would change nothing")
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; give an adapter file")
    _refuse_existing(out, dry_run, force, IMPORTED_NAME)
    skeleton = _skeleton(ModelChoice(model, None, "float32", config=model_config))
    imported = read_any(skeleton, file, alpha, ignore_unknown=ignore_unknown)
    if imported.ignored:
        typer.echo(f"left out: {', '.join(imported.ignored)}", err=True)
    scales = sorted({(update.rank, update.alpha) for update in imported.updates.values()})
    sizes = ", ".join(f"rank {rank} alpha {own:g}" for rank, own in scales[:8])
    kind = "DoRA" if any(update.magnitude is not None for update in imported.updates.values()) else "LoRA"
    typer.echo(f"{file}: {kind} of {len(imported.updates)} layers of {_components(imported.updates)}; {sizes}")
    if not dry_run:
        write_adapter(skeleton, imported, out)
        typer.echo(f"checkpoint -> {out}")


def _convert(found: "ExportSource", to: "Target", target: Path, dtype: Dtype, dry_run: bool, force: bool) -> None:
    import torch

    from flowgrain.adapters.trained_path import path_notes
    from flowgrain.export.adapter_export import convert, summary, tensors_of, write_exported
    from flowgrain.export.layout import file_format

    _refuse_existing(target, dry_run, force)
    skeleton = _skeleton(found.model)
    exported = convert(skeleton, found.adapter, file_format(skeleton, to))
    for line in summary(exported) if dry_run else ():
        typer.echo(line)
    for note in (*exported.notes, *path_notes(skeleton, found.adapter)):
        typer.echo(f"note: {note}", err=True)
    kind = getattr(torch, dtype)
    size = sum(tensor.nbytes for tensor in tensors_of(exported, kind).values()) / 2**20
    if not dry_run:
        write_exported(exported, target, kind)
    typer.echo(
        f"{found.name}: {exported.layers} layers -> {len(exported.entries)} modules, {size:.1f} MiB in {dtype}"
        f"{' would be written to' if dry_run else ' ->'} {target}"
    )


def _merge(
    found: "ExportSource", out: Path, dtype: Dtype | None, component_only: bool, dry_run: bool, force: bool
) -> None:
    import torch

    from flowgrain.adapters.trained_path import path_notes
    from flowgrain.export.merged import RECORD_NAME, check_space, merge, plan_merge
    from flowgrain.sample.session import load_model

    _refuse_existing(out, dry_run, force, RECORD_NAME)
    chosen = dtype or found.model.dtype
    skeleton = _skeleton(found.model)
    plan = plan_merge(skeleton, found, getattr(torch, chosen), component_only=component_only)
    for note in path_notes(skeleton, found.adapter) if component_only else ():
        typer.echo(f"note: {note}", err=True)
    check_space(plan, out)
    others = f", copied: {', '.join(path.name for path in plan.copied)}" if plan.copied else ""
    others += f", saved too: {', '.join(plan.saved)}" if plan.saved else ""
    if not dry_run:
        merge(load_model(replace(found.model, dtype=chosen), torch.device("cpu")), plan, out)
    typer.echo(
        f"{found.name}: merged into {', '.join(plan.components)} of {found.model.path} in {chosen}{others}; "
        f"{plan.needed / 2**20:,.1f} MiB{' would be written to' if dry_run else ' ->'} {out}"
    )


def _skeleton(model: "ModelChoice") -> "Family":
    import torch

    from flowgrain.families.registry import load_skeleton

    return load_skeleton(model.path, model.family, torch.float32, model.config, model.vae)


def _refuse_existing(out: Path, dry_run: bool, force: bool, marker: str | None = None) -> None:
    """Raise ConfigError for a target that is there; with ``force`` for a folder without ``marker``, a stranger's."""
    from flowgrain.errors import ConfigError

    if dry_run or not out.exists():
        return
    if not force:
        raise ConfigError(f"--out: {out} exists; choose another name or use --force")
    if out.is_dir() and (marker is None or not (out / marker).is_file()):
        raise ConfigError(f"--out: {out} is a folder that this command did not write; choose another name")


def _components(updates: "LayerUpdates") -> str:
    return " and ".join(dict.fromkeys(component for component, _ in updates))
