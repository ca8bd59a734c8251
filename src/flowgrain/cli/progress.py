"""Live progress of training and its preparation, drawn with rich."""

from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from flowgrain.cli.console import stderr_console
from flowgrain.train.loop import Observer
from flowgrain.train.schedule import Progress as TrainingCounters
from flowgrain.train.step import UpdateResult

STOPPING = "stopping after this update; pressing Ctrl-C again has no effect"


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
        self._start = TrainingCounters()
        self._told = False

    def __enter__(self) -> "TrainingProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, what: str, done: int, total: int) -> None:
        """See ``Observer.stage``."""
        if what not in self._stages:
            self._stages[what] = self._bars.add_task(f"{self._name}: {what}", total=total, detail="")
        self._bars.update(self._stages[what], completed=done, total=total, detail=f"{done}/{total}")

    def started(self, progress: TrainingCounters, part: float) -> None:
        """See ``Observer.started``: a resumed run's bar starts where the run stands."""
        self._start = progress
        detail = f"from update {progress.updates}" if progress.updates else ""
        self._training = self._bars.add_task(
            f"{self._name}: training",
            total=1.0,
            completed=part,  # pyright: ignore[reportArgumentType] (it counts in fractions, as update() does)
            detail=detail,
        )

    def updated(self, progress: TrainingCounters, part: float, result: UpdateResult) -> None:
        """See ``Observer.updated``; the speed is that of this session."""
        if self._training is None:
            return
        detail = f"update {progress.updates}  loss {result.loss:.4f}  {self.speed(progress):.1f} slices/s"
        if self.stop_requested:
            detail = STOPPING
            self._tell_once()
        self._bars.update(self._training, completed=part, detail=detail)

    def speed(self, progress: TrainingCounters) -> float:
        """Slices a second of training in this session: earlier ones may have run on another machine."""
        return (progress.slices - self._start.slices) / max(progress.seconds - self._start.seconds, 1e-9)

    def saved(self, path: Path) -> None:
        """See ``Observer.saved``."""
        self._bars.console.print(f"{self._name}: saved {path}", highlight=False)

    def stopping(self) -> None:
        """See ``Observer.stopping``: the bar tells at once; what is printed waits for the update's end.

        In a signal handler nothing may be printed: the handler can interrupt a print to the same stream.
        """
        super().stopping()
        if self._training is not None:
            self._bars.update(self._training, detail=STOPPING)

    def noted(self, message: str) -> None:
        """See ``Observer.noted``."""
        self._bars.console.print(f"{self._name}: {message}", highlight=False, markup=False, soft_wrap=True)

    def _tell_once(self) -> None:
        if not self._told and not self._bars.console.is_terminal:
            self._told = True
            self.noted(STOPPING)
