"""What is exported: an adapter, the model that it belongs to, and a name for the file."""

from dataclasses import dataclass, replace
from pathlib import Path

from flowgrain.adapters.source import locate_adapter
from flowgrain.errors import ConfigError
from flowgrain.sample.run_folder import (
    Checkpoint,
    ModelChoice,
    best_checkpoint,
    choose_checkpoint,
    on_path_of,
    open_checkpoint,
    read_run,
)


@dataclass(frozen=True)
class ExportSource:
    """An adapter and its model."""

    name: str
    """For the names of files: the run and its checkpoint, or the file."""
    adapter: Path
    """A file, or the folder of fully fine-tuned components."""
    model: ModelChoice
    folder: Path
    """Where exports go by default."""

    @property
    def whole(self) -> bool:
        """Whether whole weights were trained (adapter.kind full)."""
        return self.adapter.is_dir()


def open_source(path: Path, at: float | None, checkpoint: Path | None, model: ModelChoice | None) -> ExportSource:
    """The adapter that ``path`` means: a run's last checkpoint or the one chosen, else an adapter folder or file.

    ``checkpoint`` is a checkpoint folder or ``best``. ``model`` takes the place of the run's, in the run's dtype; it is
    needed where the adapter is no run's. Raises ConfigError and CheckpointError for what is missing, unfinished or
    contradictory.
    """
    if (path / "recipe.yaml").is_file():
        return _of_run(path, _chosen(path, at, checkpoint), model)
    if at is not None or checkpoint is not None:
        raise ConfigError(f"--at and --checkpoint choose among the checkpoints of a run; {path} is none")
    adapter, run = locate_adapter(path), path.resolve().parent.parent
    if (path / "COMPLETE").is_file() and (run / "recipe.yaml").is_file():
        return _of_run(run, open_checkpoint(path), model)
    if model is None:
        raise ConfigError(f"--model is missing; {path} is no run, give the model that its adapter belongs to")
    name = adapter.stem if path.is_file() else path.resolve().name
    return ExportSource(name, adapter, on_path_of(model, adapter), Path())


def _chosen(run: Path, at: float | None, checkpoint: Path | None) -> Checkpoint:
    if checkpoint is None:
        return choose_checkpoint(run, at)
    if at is not None:
        raise ConfigError("--at and --checkpoint both choose a checkpoint; give one of them")
    return best_checkpoint(run) if checkpoint == Path("best") else open_checkpoint(checkpoint)


def _of_run(run: Path, checkpoint: Checkpoint, model: ModelChoice | None) -> ExportSource:
    name, choice = read_run(run)
    found = locate_adapter(checkpoint.adapter)
    if model is not None:
        choice = on_path_of(replace(model, dtype=choice.dtype), found)
    return ExportSource(f"{name}-{checkpoint.path.name}", found, choice, run / "exports")
