"""The training loop: plan, update, log, measure, save; resume exactly.

It owns the plan, the state and the signals, and knows nothing of what is minimised: that is the stage's. Every
process runs it alike; only the main one writes.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowgrain.config import dump_yaml
from flowgrain.data.quarantine import QUARANTINE_NAME, describe_problems, write_quarantine
from flowgrain.data.tuples import plan_hash
from flowgrain.errors import CheckpointError, CollapseError, NonFiniteError
from flowgrain.files import atomic_write_text, remove_directory
from flowgrain.locks import locked
from flowgrain.train.best import Best, best_of_log, improves, write_best
from flowgrain.train.disk import low_space, writing
from flowgrain.train.fine_tuning_stage import FineTuningStage
from flowgrain.train.log import RunLog, read_log
from flowgrain.train.recipe import Recipe
from flowgrain.train.repro import bundle_path
from flowgrain.train.resume import clean, restore, starting_point
from flowgrain.train.run_file import RunStatus, start_date, write_run_file
from flowgrain.train.runtime import ALONE, Runtime
from flowgrain.train.schedule import Progress, finished, learning_rate_factor, milestones_reached, spent
from flowgrain.train.setup import prepare
from flowgrain.train.signals import graceful_signals
from flowgrain.train.stage import AnyRecipe, Measurement, Stage
from flowgrain.train.state import (
    RECIPE_NAME,
    RUN_NAME,
    CheckpointInfo,
    checkpoint_bytes,
    checkpoint_path,
    complete_checkpoints,
    prune_resume_points,
    write_checkpoint,
)
from flowgrain.train.step import UpdateResult
from flowgrain.train.trial import trial_update


class Observer:
    """Sees a run go by; the command line draws it, this one is silent."""

    stop_requested = False

    def stage(self, what: str, done: int, total: int) -> None:
        """Preparation advanced."""

    def started(self, progress: Progress, part: float) -> None:
        """Training begins or goes on with ``part`` of the budget spent."""

    def updated(self, progress: Progress, part: float, result: UpdateResult) -> None:
        """One update is done; ``part`` of the whole budget is spent."""

    def saved(self, path: Path) -> None:
        """A checkpoint is complete."""

    def stopping(self) -> None:
        """A signal was received: the run finishes its update, saves and ends. Called from the signal handler."""
        self.stop_requested = True

    def noted(self, message: str) -> None:
        """Something that the user should know, in one line."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    progress: Progress
    interrupted: bool


def train(recipe: Recipe, resume: bool, observer: Observer, runtime: Runtime = ALONE, trial: bool = False) -> Outcome:
    """Fine-tune by a recipe to the end of its budget, or until a signal asks to stop.

    ``trial`` first runs the largest micro-batch forward and backward, to meet the memory's limit before update one.
    Raises as :func:`run_stage`.
    """

    def stage() -> Stage:
        session = prepare(recipe, observer.stage, runtime)
        if trial:
            observer.noted(trial_update(session).line())
        return FineTuningStage(session)

    return run_stage(recipe, resume, observer, runtime, stage)


def run_stage(
    recipe: AnyRecipe, resume: bool, observer: Observer, runtime: Runtime, prepared: Callable[[], Stage]
) -> Outcome:
    """Run what ``prepared`` gives to the end of the recipe's budget, or until a signal asks to stop.

    Raises FolderError when the output folder is in use; CheckpointError when it holds another run, cannot be written
    (disk full), or, resuming, holds a checkpoint of another recipe, data set or plan; NonFiniteError when a loss or
    gradient is not finite; CollapseError when the output is constant; MissingExtraError when a logger is not installed.
    """
    recipe.log.check()
    with locked(recipe.output) if runtime.is_main else nullcontext():
        start = starting_point(recipe, resume)
        if runtime.is_main:
            clean(recipe.output)
        if resume and start is None:
            observer.noted(f"{recipe.output}: no complete checkpoint yet, starting from the beginning")
        stage = prepared()
        progress = restore(stage, start) if start is not None else Progress()
        runtime.require_equal({"number of updates done": str(progress.updates)})
        log = _open_folder(stage, progress, resumed=start is not None, observer=observer)
        note = stage.note()
        if note is not None:
            observer.noted(note)
        run = _Run(stage, observer, log, progress)
        try:
            with graceful_signals(observer.stopping) as received:
                return run.to_the_end(received)
        finally:
            if log is not None:
                log.close()


def _open_folder(stage: Stage, progress: Progress, resumed: bool, observer: Observer) -> RunLog | None:
    """Write what the run folder starts with and open its log; None in processes that do not write."""
    if not stage.runtime.is_main:
        return None
    recipe, problems = stage.recipe, stage.dataset.problems
    output = recipe.output
    with writing(output, output / RECIPE_NAME):
        atomic_write_text(output / RECIPE_NAME, dump_yaml(recipe))
        if problems:
            write_quarantine(output / QUARANTINE_NAME, problems)
            observer.noted(
                f"{len(problems)} files left out ({describe_problems(problems)}); all in {output / QUARANTINE_NAME}"
            )
        else:
            (output / QUARANTINE_NAME).unlink(missing_ok=True)
        keep_until = progress.updates if resumed else -1
        return RunLog(output, keep_until, recipe.log, recipe.model_dump(mode="json"), observer.noted)


class _Run:
    """The mutable side of one run."""

    def __init__(self, stage: Stage, observer: Observer, log: RunLog | None, progress: Progress):
        self._stage = stage
        self._runtime = stage.runtime
        self._recipe = stage.recipe
        self._output = stage.recipe.output
        self._observer = observer
        self._log = log
        self._progress = progress
        self._plan = stage.plan(progress.epoch)
        self._date = start_date(self._output)
        self._saved_at = progress.updates
        self._warned_of_space = False
        self._best: Best | None = None

    def to_the_end(self, received: list[int]) -> Outcome:
        """Update after update until the budget is spent or a signal came."""
        self._write_run("running")
        self._tidy()
        self._observer.started(self._progress, self._part())
        if self._progress.updates == 0:
            self._validate((0.0,))
            self._preview()
        stop = self._asked_to_stop(received)
        while not stop and not finished(self._progress, self._recipe.budget):
            if self._progress.window >= len(self._plan):
                self._progress = self._progress.next_epoch()
                self._plan = self._stage.plan(self._progress.epoch)
            before = self._progress
            self._one_update()
            self._after_update(milestones_reached(before, self._progress, self._recipe.budget))
            stop = self._asked_to_stop(received)
        interrupted = not finished(self._progress, self._recipe.budget)
        if self._saved_at != self._progress.updates:
            self._save(())
        self._write_run("interrupted" if interrupted else "finished")
        return Outcome(self._progress, interrupted)

    def _asked_to_stop(self, received: list[int]) -> bool:
        """Whether any process of the run was asked to stop."""
        return bool(self._runtime.maximum(float(bool(received)))[0])

    def _tidy(self) -> None:
        """Bring best.json, kept checkpoints and pooled measurements to what the log says: a kill can come between."""
        if not self._runtime.is_main:
            return
        self._tidy_best()
        self._stage.remember(read_log(self._output))
        if self._progress.updates > 0:
            self._prune()

    def _tidy_best(self) -> None:
        validation = self._recipe.validation
        if self._runtime.is_main and validation is not None and validation.keep_best:
            self._best = best_of_log(self._output)
            with writing(self._output, self._output):
                write_best(self._output, self._best)

    def _prune(self) -> None:
        prune_resume_points(self._output, {self._progress.updates} | ({self._best.update} if self._best else set()))

    def _one_update(self) -> None:
        stage, before = self._stage, self._progress
        whole = self._plan[before.window]
        stage.before_update(whole, before)
        started = time.perf_counter()
        factor = learning_rate_factor(self._recipe.schedule, before, self._recipe.budget)
        try:
            result = stage.update(whole, before, factor)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {self._record_failure(str(error))}") from None
        except CollapseError as error:
            raise CollapseError(f"{error}; {self._go_back()}") from None
        # all processes count the slowest one's time, so that a budget in seconds ends for all at once
        seconds = self._runtime.maximum(time.perf_counter() - started)[0]
        self._progress = before.after_update(whole.slices, whole.roots, seconds)
        if self._log is not None:
            with writing(self._output, self._output):
                self._log.update(self._line(result, whole.slices, seconds, factor))
        self._log_measurements(stage.measurements(self._progress.updates))
        self._observer.updated(self._progress, self._part(), result)

    def _log_measurements(self, measurements: list[Measurement]) -> None:
        if self._log is None:
            return
        kinds = {"interference": self._log.interference, "modulation": self._log.modulation}
        with writing(self._output, self._output):
            for kind, line in measurements:
                kinds[kind]({**self._place(), **line})

    def _place(self) -> dict[str, Any]:
        """Where in the run a line stands."""
        return {"update": self._progress.updates, "slices": self._progress.slices}

    def _record_failure(self, message: str) -> str:
        """Save the last good parameters and what the failure can be looked at by; says where they are."""
        number = self._progress.updates + 1
        path = bundle_path(self._output, number)
        outcome = f"update {number} is recorded in {path}"
        try:
            if self._runtime.is_main:
                with writing(self._output, path):
                    outcome += f": {self._stage.write_failure(path, self._progress, message)}"
            if self._saved_at != self._progress.updates:
                self._save(())
            self._write_run("non-finite")
        except CheckpointError as failure:
            outcome = f"it could not be recorded: {failure}"
        return self._runtime.gather(outcome)[0]  # no process ends before the main one has written

    def _go_back(self) -> str:
        """Leave as the last checkpoint a state from before a collapse; says which."""
        healthy, back = self._stage.go_back(self._progress)
        found = [int(folder.name.removeprefix("update-")) for folder in complete_checkpoints(self._output)]
        kept = self._runtime.gather(max((update for update in found if update <= healthy), default=0))[0]
        outcome = "no state from before is left: start again from the model"
        try:
            if self._runtime.is_main:
                for update in (each for each in found if each > healthy):  # --resume would go on from them
                    remove_directory(checkpoint_path(self._output, update))
            self._tidy_best()
            if back is not None and back.updates > kept:
                self._progress, self._plan, kept = back, self._stage.plan(back.epoch), back.updates
                self._save(())
            elif kept and self._runtime.is_main:
                restore(self._stage, checkpoint_path(self._output, kept))
                self._stage.publish()
            if kept:
                outcome = f"the state after update {kept}, from before, is {checkpoint_path(self._output, kept)}"
            self._write_run("collapsed")
        except CheckpointError as failure:
            outcome = f"the state from before could not be saved: {failure}"
        return self._runtime.gather(outcome)[0]

    def _part(self) -> float:
        """The part of the whole budget that is spent, in [0, 1]."""
        return min(spent(self._progress, self._recipe.budget) / self._recipe.budget.checkpoints[-1], 1.0)

    def _after_update(self, reached: tuple[float, ...]) -> None:
        updates, recipe = self._progress.updates, self._recipe
        validation, previews = recipe.validation, recipe.previews
        improved = False
        if reached or (validation is not None and _due(updates, validation.every)):
            improved = self._validate(reached)
        if reached or (previews is not None and _due(updates, previews.every)):
            self._preview()
        if reached or improved or _due(updates, recipe.save_every):
            self._save(reached)

    def _line(self, result: UpdateResult, slices: int, seconds: float, factor: float) -> dict[str, Any]:
        return {
            "update": self._progress.updates,
            "epoch": self._progress.epoch,
            "slices": self._progress.slices,
            "seconds": round(self._progress.seconds, 4),
            "loss": result.loss,
            "loss_by_level": result.levels.loss,
            "mean_t_by_level": result.levels.t,
            "count_by_level": result.levels.count,
            "grad_norm": result.grad_norm,
            "lr": self._recipe.optimizer.lr * factor,
            "slices_in_update": slices,
            "update_seconds": round(seconds, 4),
            **result.levels.watched.line(),
            **result.extra,
        }

    def _save(self, reached: tuple[float, ...]) -> None:
        stage, log = self._stage, self._log
        if log is not None:
            tensors, optimizer = stage.tensors(), stage.optimizer_state()
            info = CheckpointInfo(
                progress=self._progress,
                budget_fraction=reached[-1] if reached else None,
                budget_fractions=reached,
                recipe_identity=self._recipe.identity(),
                data_fingerprint=stage.dataset.fingerprint,
                plan_hash=plan_hash(self._plan),
                precision=stage.precision,
            )
            needed = checkpoint_bytes(tensors, optimizer)
            with writing(self._output, checkpoint_path(self._output, self._progress.updates), needed):
                log.sync()
                path = write_checkpoint(self._output, info, tensors, optimizer, self._save_artefact)
                stage.publish()
                write_best(self._output, self._best)
            self._prune()
            self._observer.saved(path)
            self._warn_of_space(needed)
        self._saved_at = self._progress.updates

    def _warn_of_space(self, needed: int) -> None:
        warning = None if self._warned_of_space else low_space(self._output, needed)
        if warning is not None:
            self._warned_of_space = True
            self._observer.noted(warning)

    def _save_artefact(self, folder: Path) -> None:
        self._stage.save(folder / self._stage.artefact, self._progress, self._date)

    def _validate(self, reached: tuple[float, ...]) -> bool:
        """Measure on held-out pictures; True where a checkpoint is to be kept as the best so far."""
        config = self._recipe.validation
        if config is None:
            return False
        found = self._stage.validate(self._progress.updates, _due(self._progress.updates, config.every))
        if found is None:
            return False
        values, fraction = found.values, reached[-1] if reached else None
        if self._log is not None:
            with writing(self._output, self._output):
                self._log.validation({**self._place(), "budget_fraction": fraction, **values})
        self._log_measurements(found.measurements)
        if self._log is None:
            return False
        improved = config.keep_best and self._progress.updates > 0 and improves(self._best, values["loss"])
        if improved:
            self._best = Best(self._progress.updates, values["loss"])
        return improved

    def _preview(self) -> None:
        folder = self._stage.preview_folder(self._progress.updates)
        if folder is not None:
            with writing(self._output, folder):
                self._stage.preview(self._progress.updates, self._log)

    def _write_run(self, status: RunStatus) -> None:
        if self._runtime.is_main:
            with writing(self._output, self._output / RUN_NAME):
                write_run_file(self._stage, status, self._progress, len(self._plan), self._date)


def _due(updates: int, every: int | None) -> bool:
    return every is not None and updates % every == 0
