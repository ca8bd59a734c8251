"""What ``train`` and ``vae`` share: a run drawn on the terminal, stopped by Ctrl-C, and summed up in one line."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from flowgrain.config import Config, Layered
    from flowgrain.train.loop import Observer, Outcome
    from flowgrain.train.runtime import Runtime


def run_drawn(name: str, where: Path, run: "Callable[[Observer], Outcome]", runtime: "Runtime") -> bool:
    """Run and say how it went, what it made being at ``where``; True where it was interrupted."""
    from flowgrain.cli.progress import TrainingProgress
    from flowgrain.train.loop import Observer
    from flowgrain.train.signals import ignored_once

    observer = TrainingProgress(name) if runtime.is_main else Observer()
    with ignored_once(lambda: observer.stop_requested):
        with observer if isinstance(observer, TrainingProgress) else nullcontext():
            outcome = run(observer)
        if runtime.is_main:
            done = outcome.progress
            speed = done.slices / max(done.seconds, 1e-9)
            typer.echo(
                f"{name}: {done.updates} updates, {done.slices} slices in {done.seconds:.0f} s "
                f"({speed:.1f} slices/s) -> {where}"
            )
            if outcome.interrupted:
                typer.echo("stopped on request after saving; run the same command with --resume to go on", err=True)
    return outcome.interrupted


def print_origins(config: "Config", layered: "Layered") -> None:
    """Every setting with where it came from, a line each."""
    from flowgrain.config import describe_origins

    for key, value, origin in describe_origins(config, layered):
        typer.echo(f"{key} = {value!r}    # {origin}")
