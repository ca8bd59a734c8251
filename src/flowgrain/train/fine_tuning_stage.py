"""Fine-tuning a backbone's adapter, as the loop sees it."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from flowgrain import rng
from flowgrain.data.records import Update
from flowgrain.data.tuples import shard
from flowgrain.train.adapter_header import adapter_header
from flowgrain.train.log import RunLog
from flowgrain.train.optimizers import set_learning_rates
from flowgrain.train.repro import write_bundle
from flowgrain.train.resume import load_averages, load_parameters
from flowgrain.train.schedule import Progress
from flowgrain.train.setup import Session
from flowgrain.train.stage import Measurement, Stage, Validation
from flowgrain.train.step import UpdateResult, run_update


class FineTuningStage(Stage):
    """One optimizer; measured modulation and interference beside it."""

    artefact = "adapter"

    def __init__(self, session: Session):
        super().__init__(session.recipe, session.device, session.precision, session.dataset, session.runtime)
        self._session = session
        self._weighed: Update | None = None

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """See :meth:`Stage.parameters`."""
        return self._session.objective.parameters()

    def note(self) -> str | None:
        """See :meth:`Stage.note`."""
        modulation = self._session.modulation
        return (modulation.note() or None) if modulation is not None else None

    def remember(self, lines: list[dict[str, Any]]) -> None:
        """See :meth:`Stage.remember`: pooled measurements of interference."""
        if self._session.interference is not None:
            self._session.interference.remember(lines)

    def before_update(self, whole: Update, progress: Progress) -> None:
        """See :meth:`Stage.before_update`."""
        if self._session.interference is not None:
            self._session.interference.before(whole, progress.updates + 1)

    def update(self, whole: Update, progress: Progress, factor: float) -> UpdateResult:
        """See :meth:`Stage.update`."""
        session, epoch = self._session, progress.epoch
        self._weighed = whole if session.modulation is None else session.modulation.weigh(whole)
        own = shard(self._weighed, self.runtime.rank, self.runtime.world)
        set_learning_rates(session.optimizer, factor)
        batches = (session.builder.build(micro, epoch) for micro in own.micro_batches)
        # adapter dropout is the one draw from torch's global generator
        with rng.seeded(session.recipe.seed, epoch, progress.window, "dropout"):
            result = run_update(
                session.objective, batches, session.optimizer, session.recipe.clip, session.autocast, self.runtime
            )
        if session.ema is not None:
            session.ema.update()
        return result

    def measurements(self, updates: int) -> list[Measurement]:
        """See :meth:`Stage.measurements`."""
        session = self._session
        line = session.interference.after(updates) if session.interference is not None else None
        if line is None:
            return []
        found: list[Measurement] = [("interference", line)]
        modulated = session.modulation.interfered(updates, line) if session.modulation is not None else None
        return found if modulated is None else [*found, ("modulation", modulated)]

    def validate(self, updates: int, due: bool) -> Validation | None:
        """See :meth:`Stage.validate`: the loss at fixed noise."""
        session = self._session
        if session.validator is None:
            return None
        with session.evaluated():
            losses = session.validator.losses(session.autocast)
        values = session.validator.summary(losses)
        # not those at checkpoints of N1 alone: where a run ends must change nothing before
        line = session.modulation.validated(updates, losses) if session.modulation is not None and due else None
        return Validation(values, [] if line is None else [("modulation", line)])

    def preview_folder(self, updates: int) -> Path | None:
        """See :meth:`Stage.preview_folder`."""
        return self._session.previewer.folder(updates) if self._session.previewer is not None else None

    def preview(self, updates: int, log: RunLog | None) -> None:
        """See :meth:`Stage.preview`."""
        if self._session.previewer is not None:
            with self._session.averaged():
                self._session.previewer.draw(updates, log)

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Stage.tensors`."""
        session = self._session
        tensors: dict[str, Tensor] = {
            f"parameter.{name}": parameter.detach() for name, parameter in session.objective.parameters()
        }
        if session.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in session.ema.values.items()}
        if session.interference is not None:
            tensors |= session.interference.tensors()
        if session.modulation is not None:
            tensors |= session.modulation.tensors()
        return tensors

    def optimizer_state(self) -> dict[str, Any]:
        """See :meth:`Stage.optimizer_state`."""
        return self._session.optimizer.state_dict()

    def load(self, folder: Path, tensors: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
        """See :meth:`Stage.load`."""
        session = self._session
        load_parameters(session.objective.parameters(), folder, tensors)
        load_averages(session.ema, tensors)
        session.optimizer.load_state_dict(optimizer)
        if session.interference is not None:
            session.interference.load(tensors)
        if session.modulation is not None:
            session.modulation.load(tensors)

    def save(self, folder: Path, progress: Progress, date: str) -> None:
        """See :meth:`Stage.save`: the adapter, its moving average where there is one."""
        metadata = adapter_header(self._session, progress, date)
        with self._session.averaged():
            self._session.adapter.save(folder, metadata)

    def publish(self) -> None:
        """See :meth:`Stage.publish`: nothing lies outside."""

    def write_failure(self, path: Path, progress: Progress, message: str) -> str:
        """See :meth:`Stage.write_failure`."""
        if self._weighed is not None:
            write_bundle(path, self._session, progress, self._weighed, message)
        return f"look at it with 'flowgrain replay {path}'"

    def go_back(self, progress: Progress) -> tuple[int, Progress | None]:
        """See :meth:`Stage.go_back`: fine-tuning does not collapse so."""
        return progress.updates, None
