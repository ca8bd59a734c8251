"""Live progress of a judging: questions, cost so far, cost to come."""

from collections import Counter
from collections.abc import Callable

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flowgrain.cli.console import stderr_console
from flowgrain.evaluate.judge.run import Forecast, JudgeObserver
from flowgrain.vlm.log import Answer

STOPPING = "stopping after the questions in flight; pressing Ctrl-C again has no effect"


class JudgeProgress(JudgeObserver):
    """A context manager that owns the live display."""

    def __init__(self, describe: Callable[[Forecast], str]):
        self._describe = describe
        columns = (TextColumn("judging"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
        left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[detail]}"))
        self._bars = Progress(*columns, *left, console=stderr_console())
        self._task: TaskID | None = None
        self._priced = self.stop_requested = False
        self._statuses: Counter[str] = Counter()

    def __enter__(self) -> "JudgeProgress":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def forecast(self, forecast: Forecast) -> None:
        """See ``JudgeObserver.forecast``."""
        self._bars.console.print(self._describe(forecast), highlight=False, markup=False, soft_wrap=True)
        self._priced = forecast.cost is not None
        if forecast.open:
            self._task = self._bars.add_task("", total=forecast.open, detail="")

    def answered(self, answer: Answer, spent: float, expected_left: float) -> None:
        """See ``JudgeObserver.answered``."""
        self._statuses[answer.status] += 1
        if self._task is None:
            return
        detail = f"cost {spent:.4g} of about {spent + expected_left:.4g}" if self._priced else ""
        failed = self._statuses.total() - self._statuses["answered"]
        detail += f"  {failed} without answer" if failed else ""
        self._bars.update(self._task, advance=1, detail=STOPPING if self.stop_requested else detail)

    def stopping(self) -> None:
        """The bar tells at once; nothing is printed, as this runs in a signal handler."""
        self.stop_requested = True
        if self._task is not None:
            self._bars.update(self._task, detail=STOPPING)
