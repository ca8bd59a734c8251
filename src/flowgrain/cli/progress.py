"""Live progress of training and its preparation, drawn with rich."""

from pathlib import Path
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flowgrain.cli.console import stderr_console
from flowgrain.train.loop import Observer
from flowgrain.train.schedule import Progress as TrainingCounters
from flowgrain.train.step import UpdateResult


class TrainingProgress(Observer):
    """A context manager that owns the live display."""

    def __init__(self, name: str):
        self._name = name
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=stderr_console(),
        )
        self._stages: dict[str, TaskID] = {}
        self._training: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, what: str, done: int, total: int) -> None:
        """See ``Observer.stage``."""
        if what not in self._stages:
            self._stages[what] = self._bars.add_task(f"{self._name}: {what}", total=total, detail="")
        self._bars.update(self._stages[what], completed=done, total=total, detail=f"{done}/{total}")

    def updated(self, progress: TrainingCounters, part: float, result: UpdateResult) -> None:
        """See ``Observer.updated``."""
        if self._training is None:
            self._training = self._bars.add_task(f"{self._name}: training", total=1.0, detail="")
        speed = progress.slices / max(progress.seconds, 1e-9)
        detail = f"update {progress.updates}  loss {result.loss:.4f}  {speed:.1f} slices/s"
        self._bars.update(self._training, completed=part, detail=detail)

    def saved(self, path: Path) -> None:
        """See ``Observer.saved``."""
        self._bars.console.print(f"{self._name}: saved {path}", highlight=False)
