"""The training loop: plan, update, log, measure, save; resume exactly.

It owns the plan, the state and the signals, and knows nothing of what is minimised: that is the objective's. Every
process runs it alike; only the main one writes.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from flowgrain import rng
from flowgrain.config import dump_yaml
from flowgrain.data.quarantine import QUARANTINE_NAME, describe_problems, write_quarantine
from flowgrain.data.records import Update
from flowgrain.data.tuples import plan_hash, shard
from flowgrain.errors import CheckpointError, NonFiniteError
from flowgrain.files import atomic_write_text
from flowgrain.locks import locked
from flowgrain.train.adapter_header import adapter_header
from flowgrain.train.best import Best, best_of_log, improves, write_best
from flowgrain.train.disk import low_space, writing
from flowgrain.train.log import RunLog, read_log
from flowgrain.train.optimizers import set_learning_rates
from flowgrain.train.recipe import Recipe
from flowgrain.train.repro import bundle_path, write_bundle
from flowgrain.train.resume import clean, restore, starting_point
from flowgrain.train.run_file import RunStatus, start_date, write_run_file
from flowgrain.train.runtime import ALONE, Runtime
from flowgrain.train.schedule import Progress, finished, learning_rate_factor, milestones_reached, spent
from flowgrain.train.setup import Session, prepare
from flowgrain.train.signals import graceful_signals
from flowgrain.train.state import (
    RECIPE_NAME,
    RUN_NAME,
    CheckpointInfo,
    checkpoint_bytes,
    checkpoint_path,
    prune_resume_points,
    write_checkpoint,
)
from flowgrain.train.step import UpdateResult, run_update
from flowgrain.train.trial import trial_update


class Observer:
    """Sees a run go by; the command line draws it, this one is silent."""

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

    def noted(self, message: str) -> None:
        """Something that the user should know, in one line."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    progress: Progress
    interrupted: bool


def train(recipe: Recipe, resume: bool, observer: Observer, runtime: Runtime = ALONE, trial: bool = False) -> Outcome:
    """Run a recipe to the end of its budget, or until a signal asks to stop.

    ``trial`` first runs the largest micro-batch forward and backward, to meet the memory's limit before update one.
    Raises FolderError when the output folder is in use; CheckpointError when it holds another run, cannot be written
    (disk full), or, resuming, holds a checkpoint of another recipe, data set or plan; NonFiniteError when a loss or
    gradient is not finite; MissingExtraError when a logger is not installed.
    """
    recipe.log.check()
    with locked(recipe.output) if runtime.is_main else nullcontext():
        start = starting_point(recipe, resume)
        if runtime.is_main:
            clean(recipe.output)
        if resume and start is None:
            observer.noted(f"{recipe.output}: no complete checkpoint yet, starting from the beginning")
        session = prepare(recipe, observer.stage, runtime)
        if trial:
            observer.noted(trial_update(session).line())
        progress = restore(session, start) if start is not None else Progress()
        runtime.require_equal({"number of updates done": str(progress.updates)})
        log = _open_folder(session, progress, resumed=start is not None, observer=observer)
        if session.modulation is not None and session.modulation.note():
            observer.noted(session.modulation.note())
        run = _Run(session, observer, log, progress)
        try:
            with graceful_signals(observer.stopping) as received:
                return run.to_the_end(received)
        finally:
            if log is not None:
                log.close()


def _open_folder(session: Session, progress: Progress, resumed: bool, observer: Observer) -> RunLog | None:
    """Write what the run folder starts with and open its log; None in processes that do not write."""
    if not session.runtime.is_main:
        return None
    recipe, problems = session.recipe, session.dataset.problems
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

    def __init__(self, session: Session, observer: Observer, log: RunLog | None, progress: Progress):
        self._session = session
        self._runtime = session.runtime
        self._recipe = session.recipe
        self._output = session.recipe.output
        self._observer = observer
        self._log = log
        self._progress = progress
        self._plan = session.plan(progress.epoch)
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
                self._plan = self._session.plan(self._progress.epoch)
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
        validation = self._recipe.validation
        if validation is not None and validation.keep_best:
            self._best = best_of_log(self._output)
            with writing(self._output, self._output):
                write_best(self._output, self._best)
        if self._session.interference is not None:
            self._session.interference.remember(read_log(self._output))
        if self._progress.updates > 0:
            self._prune()

    def _prune(self) -> None:
        prune_resume_points(self._output, {self._progress.updates} | ({self._best.update} if self._best else set()))

    def _one_update(self) -> None:
        session = self._session
        epoch = self._progress.epoch
        whole = self._plan[self._progress.window]
        if session.interference is not None:
            session.interference.before(whole, self._progress.updates + 1)
        started = time.perf_counter()
        weighed = whole if session.modulation is None else session.modulation.weigh(whole)
        own = shard(weighed, self._runtime.rank, self._runtime.world)
        factor = learning_rate_factor(self._recipe.schedule, self._progress, self._recipe.budget)
        set_learning_rates(session.optimizer, factor)
        batches = (session.builder.build(micro, epoch) for micro in own.micro_batches)
        try:
            # adapter dropout is the one draw from torch's global generator
            with rng.seeded(self._recipe.seed, epoch, self._progress.window, "dropout"):
                result = run_update(
                    session.objective, batches, session.optimizer, self._recipe.clip, session.autocast, self._runtime
                )
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}; {self._record_failure(weighed, str(error))}") from None
        if session.ema is not None:
            session.ema.update()
        # all processes count the slowest one's time, so that a budget in seconds ends for all at once
        seconds = self._runtime.maximum(time.perf_counter() - started)[0]
        self._progress = self._progress.after_update(whole.slices, whole.roots, seconds)
        if self._log is not None:
            with writing(self._output, self._output):
                self._log.update(self._line(result, whole.slices, seconds, factor))
        self._log_interference()
        self._observer.updated(self._progress, self._part(), result)

    def _log_interference(self) -> None:
        """Log what was measured of the update just done, if anything was."""
        interference = self._session.interference
        line = interference.after(self._progress.updates) if interference is not None else None
        if line is None:
            return
        if self._log is not None:
            with writing(self._output, self._output):
                self._log.interference({**self._place(), **line})
        if self._session.modulation is not None:
            self._log_modulation(self._session.modulation.interfered(self._progress.updates, line))

    def _log_modulation(self, line: dict[str, Any] | None) -> None:
        if line is not None and self._log is not None:
            with writing(self._output, self._output):
                self._log.modulation({**self._place(), **line})

    def _place(self) -> dict[str, Any]:
        """Where in the run a line stands."""
        return {"update": self._progress.updates, "slices": self._progress.slices}

    def _record_failure(self, update: Update, message: str) -> str:
        """Save the last good parameters and a bundle that reproduces the failure; says where they are."""
        number = self._progress.updates + 1
        path = bundle_path(self._output, number)
        outcome = f"update {number} is recorded in {path}: look at it with 'flowgrain replay {path}'"
        try:
            if self._runtime.is_main:
                with writing(self._output, path):
                    write_bundle(path, self._session, self._progress, update, message)
            if self._saved_at != self._progress.updates:
                self._save(())
            self._write_run("non-finite")
        except CheckpointError as failure:
            outcome = f"it could not be recorded: {failure}"
        return self._runtime.gather(outcome)[0]  # no process ends before the main one has written

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
        }

    def _save(self, reached: tuple[float, ...]) -> None:
        session, log = self._session, self._log
        if log is not None:
            tensors: dict[str, Tensor] = {
                f"parameter.{name}": parameter.detach() for name, parameter in session.objective.parameters()
            }
            if session.ema is not None:
                tensors |= {f"ema.{name}": value for name, value in session.ema.values.items()}
            if session.interference is not None:
                tensors |= session.interference.tensors()
            if session.modulation is not None:
                tensors |= session.modulation.tensors()
            info = CheckpointInfo(
                progress=self._progress,
                budget_fraction=reached[-1] if reached else None,
                budget_fractions=reached,
                recipe_identity=self._recipe.identity(),
                data_fingerprint=session.dataset.fingerprint,
                plan_hash=plan_hash(self._plan),
                precision=session.precision,
            )
            optimizer = session.optimizer.state_dict()
            needed = checkpoint_bytes(tensors, optimizer)
            with writing(self._output, checkpoint_path(self._output, self._progress.updates), needed):
                log.sync()
                path = write_checkpoint(self._output, info, tensors, optimizer, self._save_adapter)
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

    def _save_adapter(self, folder: Path) -> None:
        metadata = adapter_header(self._session, self._progress, self._date)
        with self._session.averaged():
            self._session.adapter.save(folder, metadata)

    def _validate(self, reached: tuple[float, ...]) -> bool:
        """Measure the held-out loss; True where a checkpoint is to be kept as the best so far."""
        session, config = self._session, self._recipe.validation
        if session.validator is None or config is None:
            return False
        with session.evaluated():
            losses = session.validator.losses(session.autocast)
        values = session.validator.summary(losses)
        fraction = reached[-1] if reached else None
        if self._log is not None:
            with writing(self._output, self._output):
                self._log.validation({**self._place(), "budget_fraction": fraction, **values})
        # not those at checkpoints of N1 alone: where a run ends must change nothing before
        if session.modulation is not None and _due(self._progress.updates, config.every):
            self._log_modulation(session.modulation.validated(self._progress.updates, losses))
        if self._log is None:
            return False
        improved = config.keep_best and self._progress.updates > 0 and improves(self._best, values["loss"])
        if improved:
            self._best = Best(self._progress.updates, values["loss"])
        return improved

    def _preview(self) -> None:
        previewer = self._session.previewer
        if previewer is None:
            return
        with self._session.averaged(), writing(self._output, previewer.folder(self._progress.updates)):
            previewer.draw(self._progress.updates, self._log)

    def _write_run(self, status: RunStatus) -> None:
        if self._runtime.is_main:
            with writing(self._output, self._output / RUN_NAME):
                write_run_file(self._session, status, self._progress, len(self._plan), self._date)


def _due(updates: int, every: int | None) -> bool:
    return every is not None and updates % every == 0
