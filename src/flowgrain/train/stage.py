"""What the loop asks of what trains: fine-tuning is one stage, the autoencoder's another.

The loop owns plan, progress, signals, log and checkpoints. A stage computes one update, measures, draws, and knows what
of it must be saved.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import Update
from flowgrain.data.tuples import plan_epoch
from flowgrain.train.log import RunLog
from flowgrain.train.recipe import Recipe
from flowgrain.train.runtime import Runtime
from flowgrain.train.schedule import Progress
from flowgrain.train.step import UpdateResult
from flowgrain.train.vae_recipe import VaeRecipe

AnyRecipe = Recipe | VaeRecipe
"""Recipes share the sections that the loop reads: output, budget, schedule, validation, previews, log, ..."""

Measurement = tuple[Literal["interference", "modulation"], dict[str, Any]]
"""A further line of the log and its kind."""


@dataclass(frozen=True)
class Validation:
    """What one measurement on held-out pictures found."""

    values: dict[str, Any]
    """For the log; ``loss`` decides which checkpoint is the best."""
    measurements: list[Measurement] = field(default_factory=list)


class Stage(ABC):
    """A prepared run, without its progress."""

    artefact: str
    """Folder of a checkpoint that holds what other programs load."""

    def __init__(
        self, recipe: AnyRecipe, device: torch.device, precision: str, dataset: SliceDataset, runtime: Runtime
    ):
        self.recipe = recipe
        self.device = device
        self.precision = precision
        self.dataset = dataset
        self.runtime = runtime

    def plan(self, epoch: int) -> list[Update]:
        """The updates of one epoch."""
        return plan_epoch(self.dataset.table, self.recipe.tuples, self.recipe.seed, epoch)

    @abstractmethod
    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """All that trains, in a stable order."""

    @abstractmethod
    def note(self) -> str | None:
        """What the user should know before training, in one line."""

    @abstractmethod
    def remember(self, lines: list[dict[str, Any]]) -> None:
        """Take over from the run's log what checkpoints do not hold."""

    @abstractmethod
    def before_update(self, whole: Update, progress: Progress) -> None:
        """What is not timed: the update that follows ``progress`` comes next."""

    @abstractmethod
    def update(self, whole: Update, progress: Progress, factor: float) -> UpdateResult:
        """The update that follows ``progress``, with learning rates times ``factor``.

        Raises :class:`NonFiniteError` or :class:`CollapseError`, and then has changed no parameter.
        """

    @abstractmethod
    def measurements(self, updates: int) -> list[Measurement]:
        """What was measured of the update just done, the ``updates``-th."""

    @abstractmethod
    def validate(self, updates: int, due: bool) -> Validation | None:
        """Measure on held-out pictures, None where there are none; ``due``: by interval, not by a mark of N1 alone."""

    @abstractmethod
    def preview_folder(self, updates: int) -> Path | None:
        """Where the previews after ``updates`` updates go, None where this process draws none."""

    @abstractmethod
    def preview(self, updates: int, log: RunLog | None) -> None:
        """Draw the previews; they are written where ``log`` is given."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that a resumed run needs, by name; those of parameters begin with ``parameter.``."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, Any]:
        """State of the optimizer or optimizers."""

    @abstractmethod
    def load(self, folder: Path, tensors: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
        """Take over what :meth:`tensors` and :meth:`optimizer_state` gave; ``folder`` is for messages.

        Raises :class:`CheckpointError` where they are of another recipe.
        """

    @abstractmethod
    def save(self, folder: Path, progress: Progress, date: str) -> None:
        """Fill ``folder`` with what other programs load; ``date`` is the run's start."""

    @abstractmethod
    def publish(self) -> None:
        """Bring what lies outside of checkpoints up to the one just written."""

    @abstractmethod
    def write_failure(self, path: Path, progress: Progress, message: str) -> str:
        """Record the update that failed, the one after ``progress``, in folder ``path``; says how to look at it.

        Raises OSError where the disk is full.
        """

    @abstractmethod
    def go_back(self, progress: Progress) -> tuple[int, Progress | None]:
        """After a :class:`CollapseError` of the update that follows ``progress``: return to a state before it began.

        The last update whose state is not collapsed, and the progress of the state returned to, None without one.
        """
