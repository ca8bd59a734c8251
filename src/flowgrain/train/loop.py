"""The training loop: plan, update, log, measure, save; resume exactly.

It owns the plan, the state and the signals, and knows nothing of what is minimised: that is the objective's.
"""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from flowgrain import __version__, rng
from flowgrain.config import dump_yaml
from flowgrain.data.tuples import plan_hash, shard
from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_write_text
from flowgrain.train.log import RunLog
from flowgrain.train.recipe import Recipe
from flowgrain.train.schedule import Progress, finished, learning_rate_factor, milestones_reached, spent
from flowgrain.train.setup import Session, prepare
from flowgrain.train.state import (
    CheckpointInfo,
    complete_checkpoints,
    prune_resume_points,
    read_tensors,
    write_checkpoint,
)
from flowgrain.train.step import UpdateResult, run_update

RECIPE_NAME = "recipe.yaml"
RUN_NAME = "run.json"


class Observer:
    """Sees a run go by; the command line draws it, this one is silent."""

    def stage(self, what: str, done: int, total: int) -> None:
        """Preparation advanced."""

    def updated(self, progress: Progress, part: float, result: UpdateResult) -> None:
        """One update is done; ``part`` of the whole budget is spent."""

    def saved(self, path: Path) -> None:
        """A checkpoint is complete."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    progress: Progress
    interrupted: bool


def train(recipe: Recipe, resume: bool, observer: Observer) -> Outcome:
    """Run a recipe to the end of its budget, or until a signal asks to stop.

    Raises CheckpointError when the output folder holds another run, or, resuming, a checkpoint of another recipe,
    data set or plan; NonFiniteError when a loss or gradient is not finite.
    """
    start = _latest_checkpoint(recipe, resume)
    session = prepare(recipe, observer.stage)
    recipe.output.mkdir(parents=True, exist_ok=True)
    progress = _restore(session, start) if start is not None else Progress()
    atomic_write_text(recipe.output / RECIPE_NAME, dump_yaml(recipe))
    log = RunLog(recipe.output, keep_until=progress.updates if start is not None else -1)
    run = _Run(session, observer, log, progress)
    try:
        with _graceful_signals() as asked_to_stop:
            return run.to_the_end(asked_to_stop)
    finally:
        log.close()


class _Run:
    """The mutable side of one run."""

    def __init__(self, session: Session, observer: Observer, log: RunLog, progress: Progress):
        self._session = session
        self._recipe = session.recipe
        self._observer = observer
        self._log = log
        self._progress = progress
        self._plan = session.plan(progress.epoch)

    def to_the_end(self, asked_to_stop: list[int]) -> Outcome:
        self._write_run("running")
        if self._progress.updates == 0:
            self._validate(0.0)
        saved_at = self._progress.updates
        while not finished(self._progress, self._recipe.budget):
            if self._progress.window >= len(self._plan):
                self._progress = self._progress.next_epoch()
                self._plan = self._session.plan(self._progress.epoch)
            before = self._progress
            self._one_update()
            reached = milestones_reached(before, self._progress, self._recipe.budget)
            if reached or self._is_resume_point():
                self._save(reached[-1] if reached else None)
                saved_at = self._progress.updates
            if asked_to_stop:
                break
        interrupted = not finished(self._progress, self._recipe.budget)
        if interrupted and saved_at != self._progress.updates:
            self._save(None)
        self._write_run("interrupted" if interrupted else "finished")
        return Outcome(self._progress, interrupted)

    def _one_update(self) -> None:
        session, started = self._session, time.perf_counter()
        epoch = self._progress.epoch
        update = shard(self._plan[self._progress.window], rank=0, world=1)
        factor = learning_rate_factor(self._recipe.schedule, self._progress, self._recipe.budget)
        for group in session.optimizer.param_groups:
            group["lr"] = self._recipe.optimizer.lr * factor
        batches = (session.builder.build(micro, epoch) for micro in update.micro_batches)
        # adapter dropout is the one draw from torch's global generator
        with rng.seeded(self._recipe.seed, epoch, self._progress.window, "dropout"):
            result = run_update(session.objective, batches, session.optimizer, self._recipe.clip, session.autocast)
        if session.ema is not None:
            session.ema.update()
        seconds = time.perf_counter() - started
        self._progress = self._progress.after_update(update.slices, update.roots, seconds)
        self._log.update(self._line(result, update.slices, seconds, factor))
        part = spent(self._progress, self._recipe.budget) / self._recipe.budget.checkpoints[-1]
        self._observer.updated(self._progress, min(part, 1.0), result)

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

    def _is_resume_point(self) -> bool:
        every = self._recipe.save_every
        return every is not None and self._progress.updates % every == 0

    def _save(self, fraction: float | None) -> None:
        session = self._session
        tensors: dict[str, Tensor] = {
            f"parameter.{name}": parameter.detach() for name, parameter in session.objective.parameters()
        }
        if session.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in session.ema.values.items()}
        if fraction is not None:
            self._validate(fraction)
        info = CheckpointInfo(
            progress=self._progress,
            budget_fraction=fraction,
            recipe_identity=self._recipe.identity(),
            data_fingerprint=session.dataset.fingerprint,
            plan_hash=plan_hash(self._plan),
            precision=session.precision,
        )
        path = write_checkpoint(self._recipe.output, info, tensors, session.optimizer.state_dict(), self._save_adapter)
        prune_resume_points(self._recipe.output, keep=path)
        self._observer.saved(path)

    def _save_adapter(self, folder: Path) -> None:
        metadata = {
            "flowgrain_version": __version__,
            "flowgrain_recipe": self._recipe.name,
            "flowgrain_base_model": self._recipe.model.path,
            "flowgrain_updates": str(self._progress.updates),
        }
        with self._session.ema.swapped() if self._session.ema is not None else nullcontext():
            self._session.adapter.save(folder, metadata)

    def _validate(self, fraction: float) -> None:
        session = self._session
        if session.validator is None:
            return
        session.adapter.train(False)
        with session.ema.swapped() if session.ema is not None else nullcontext():
            values = session.validator.measure(session.autocast)
        session.adapter.train(True)
        counters = {"update": self._progress.updates, "slices": self._progress.slices, "budget_fraction": fraction}
        self._log.validation({**counters, **values})

    def _write_run(self, status: str) -> None:
        session = self._session
        levels: dict[str, int] = {}
        for item in session.dataset.slices:
            levels[item.level] = levels.get(item.level, 0) + 1
        packages = ("torch", "diffusers", "transformers", "peft")
        values = {
            "name": self._recipe.name,
            "status": status,
            "progress": asdict(self._progress),
            "budget": self._recipe.budget.model_dump(),
            "device": str(session.device),
            "precision": session.precision,
            "trainable_parameters": sum(p.numel() for _, p in session.objective.parameters()),
            "roots": len({item.root for item in session.dataset.slices}),
            "slices_by_level": levels,
            "updates_per_epoch": len(self._plan),
            "data_fingerprint": session.dataset.fingerprint,
            "recipe_identity": self._recipe.identity(),
            "versions": {"flowgrain": __version__, **{name: version(name) for name in packages}},
        }
        atomic_write_text(self._recipe.output / RUN_NAME, json.dumps(values, indent=2) + "\n")


def _latest_checkpoint(recipe: Recipe, resume: bool) -> Path | None:
    """Where to start from; refuses to write over another run."""
    existing = (recipe.output / RUN_NAME).exists()
    if not resume:
        if existing:
            raise CheckpointError(
                f"{recipe.output} already holds a run: add --resume to go on with it, or choose another output"
            )
        return None
    found = complete_checkpoints(recipe.output)
    return found[-1] if found else None


def _restore(session: Session, folder: Path) -> Progress:
    """Load a checkpoint into a prepared session after checking that it belongs to it."""
    info = CheckpointInfo.read(folder)
    recipe = session.recipe
    plan = plan_hash(session.plan(info.progress.epoch))
    mine = {"recipe": recipe.identity(), "data set": session.dataset.fingerprint, "plan": plan}
    theirs = {"recipe": info.recipe_identity, "data set": info.data_fingerprint, "plan": info.plan_hash}
    different = [name for name in mine if mine[name] != theirs[name]]
    if different:
        raise CheckpointError(
            f"{folder}: cannot resume, the {' and the '.join(different)} changed since it was saved; "
            "restore what it was, or start a new run in another output folder"
        )
    if info.precision != session.precision:
        raise CheckpointError(
            f"{folder}: was trained in {info.precision}, this device would use {session.precision}; "
            f"set precision={info.precision} to go on"
        )
    tensors, optimizer = read_tensors(folder)
    _load_parameters(session, folder, tensors)
    session.optimizer.load_state_dict(optimizer)
    return replace(info.progress)


@torch.no_grad()
def _load_parameters(session: Session, folder: Path, tensors: dict[str, Tensor]) -> None:
    parameters = session.objective.parameters()
    expected = {f"parameter.{name}" for name, _ in parameters}
    found = {name for name in tensors if name.startswith("parameter.")}
    if expected != found:
        sample = sorted(expected ^ found)[0]
        raise CheckpointError(f"{folder}: holds other parameters than this recipe trains (for example {sample})")
    for name, parameter in parameters:
        parameter.copy_(tensors[f"parameter.{name}"])
    if session.ema is not None:
        session.ema.load({name.removeprefix("ema."): value for name, value in tensors.items()})


@contextmanager
def _graceful_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying: the loop finishes its update, saves and returns."""
    received: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    kept = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
