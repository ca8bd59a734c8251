"""``flowgrain status``: how a run stands."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flowgrain.train.status import RunState

_MEANING = {
    "running": "running",
    "finished": "finished",
    "interrupted": "interrupted on request; --resume goes on",
    "non-finite": "stopped by a loss or gradient that is not finite",
    "collapsed": "stopped because the autoencoder's output had become constant",
    "died": "died: its process is gone without having saved; --resume goes on from the last checkpoint",
    "unknown": "unknown: it was running on another machine when this was written",
}


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of 'flowgrain train'.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show how a run stands: progress, speed, time left, losses, checkpoints, disk.

    Example:

        flowgrain status runs/fox
    """
    from flowgrain.train.status import read_status, to_json

    state = read_status(run)
    typer.echo(to_json(state) if as_json else "\n".join(_lines(run, state)))


def _lines(run: Path, state: "RunState") -> list[str]:
    where = f" ({state.where})" if state.state in ("running", "died", "unknown") and state.where else ""
    lines = [
        f"{state.name}: {_MEANING[state.state]}{where}",
        f"update {state.update}, {state.slices} slices, {_duration(state.seconds)} of training; "
        f"{100 * state.part:.1f}% of {state.budget}",
    ]
    if state.slices_per_second is not None:
        left = "" if state.seconds_left is None else f", {_duration(state.seconds_left)} left"
        lines.append(f"speed: {state.slices_per_second:.1f} slices/s over the last updates{left}")
    if state.loss_by_level:
        lines.append("loss: " + ", ".join(f"{level} {loss:.4f}" for level, loss in state.loss_by_level.items()))
    if state.validation_loss is not None:
        best = f"; best {state.best.loss:.5f} at update {state.best.update}" if state.best else ""
        lines.append(f"validation: {state.validation_loss:.5f} at update {state.validation_update}{best}")
    for checkpoint in state.checkpoints:
        marks = ", ".join(f"{mark:g} N1" for mark in checkpoint.marks)
        best = "best" if state.best is not None and state.best.update == checkpoint.update else ""
        notes = ", ".join(note for note in (marks, best) if note) or "for resuming"
        lines.append(f"checkpoint: update {checkpoint.update}, {checkpoint.bytes / 2**20:.1f} MiB, {notes}")
    if not state.checkpoints:
        lines.append("checkpoint: none yet")
    lines.append(f"disk: {state.bytes / 2**20:.1f} MiB")
    if state.error_bundle is not None:
        from flowgrain.train.repro import BATCHES_NAME

        bundle = run / state.error_bundle
        replayed = (bundle / BATCHES_NAME).exists()  # an autoencoder's names its pictures alone
        lines.append(f"not finite: {f'flowgrain replay {bundle}' if replayed else bundle / 'update.json'}")
    return lines


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
