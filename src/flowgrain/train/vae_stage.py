"""Autoencoder fine-tuning, as the loop sees it: two optimizers, a moving average, and a watch for collapse."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowgrain.config import dump_yaml
from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import Update
from flowgrain.data.tuples import shard
from flowgrain.errors import CheckpointError
from flowgrain.files import atomic_directory, atomic_write_text
from flowgrain.train.log import RunLog
from flowgrain.train.optimizers import set_learning_rates
from flowgrain.train.resume import load_averages, load_parameters
from flowgrain.train.run_file import versions
from flowgrain.train.runtime import Runtime
from flowgrain.train.schedule import Ema, Progress
from flowgrain.train.stage import Measurement, Stage, Validation
from flowgrain.train.state import RECIPE_NAME
from flowgrain.train.step import UpdateResult
from flowgrain.train.vae_batches import VaeBatchBuilder
from flowgrain.train.vae_measures import PairPreviewer, VaeValidator
from flowgrain.train.vae_recipe import VaeRecipe
from flowgrain.train.vae_update import Learner, Players, VaeUpdate
from flowgrain.vae.collapse import CollapseWatch
from flowgrain.vae.deeper_files import save_vae

VAE = "vae"
_BUFFER = "discriminator_buffer."
_COUNT = "collapse.count"
_GENERATOR, _CRITIC = "autoencoder", "discriminator"


@dataclass(frozen=True)
class VaeSession:
    """What an autoencoder's run is made of."""

    recipe: VaeRecipe
    device: torch.device
    precision: str
    dataset: SliceDataset
    runtime: Runtime
    builder: VaeBatchBuilder
    players: Players
    ema: Ema | None
    validator: VaeValidator | None
    previewer: PairPreviewer | None
    autocast: Callable[[], torch.autocast]


@dataclass(frozen=True)
class _Snapshot:
    """A state on the CPU."""

    progress: Progress
    tensors: dict[str, Tensor]
    optimizer: dict[str, Any]


class VaeStage(Stage):
    """Fine-tunes an autoencoder."""

    artefact = VAE

    def __init__(self, session: VaeSession):
        super().__init__(session.recipe, session.device, session.precision, session.dataset, session.runtime)
        self._session = session
        self._players = session.players
        self._watch = CollapseWatch(session.recipe.losses.collapse)
        self._update = VaeUpdate(
            session.players, session.recipe.losses, self._watch, session.device, session.autocast, session.runtime
        )
        self._running: Update | None = None
        self._kept: _Snapshot | None = None

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """See :meth:`Stage.parameters`: of the autoencoder, the Gram head and the discriminator."""
        critic = self._players.discriminator
        return self._players.autoencoder.parameters + (critic.parameters if critic is not None else [])

    def note(self) -> str | None:
        """See :meth:`Stage.note`."""
        perceptual = self._players.models.perceptual
        return f"perceptual distance: {perceptual.title}" if perceptual is not None else None

    def remember(self, lines: list[dict[str, Any]]) -> None:
        """See :meth:`Stage.remember`: checkpoints hold all."""

    def before_update(self, whole: Update, progress: Progress) -> None:
        """See :meth:`Stage.before_update`."""
        self._running = whole

    def update(self, whole: Update, progress: Progress, factor: float) -> UpdateResult:
        """See :meth:`Stage.update`."""
        own = shard(whole, self.runtime.rank, self.runtime.world)
        for learner in self._learners().values():
            set_learning_rates(learner.optimizer, factor)
        batches = [self._session.builder.build(micro, progress.epoch) for micro in own.micro_batches]
        total = float(sum(micro.weights.sum() for micro in whole.micro_batches))
        result = self._update.gradients(batches, total, progress.updates)
        if self._watch.count == 0 and progress.updates % self._watch.config.patience == 0:
            self._keep(progress)  # this state's outputs have just been seen to vary
        who = self._update.step(result, progress.updates)
        if self._session.ema is not None and who.generator:
            self._session.ema.update()
        return result

    def measurements(self, updates: int) -> list[Measurement]:
        """See :meth:`Stage.measurements`: none."""
        return []

    def validate(self, updates: int, due: bool) -> Validation | None:
        """See :meth:`Stage.validate`: pixel and perceptual errors of the moving average."""
        if self._session.validator is None:
            return None
        with self._averaged():
            return Validation(self._session.validator.measure(self._session.autocast))

    def preview_folder(self, updates: int) -> Path | None:
        """See :meth:`Stage.preview_folder`."""
        return self._session.previewer.folder(updates) if self._session.previewer is not None else None

    def preview(self, updates: int, log: RunLog | None) -> None:
        """See :meth:`Stage.preview`: originals beside reconstructions."""
        if self._session.previewer is not None and log is not None:
            with self._averaged():
                self._session.previewer.draw(updates, log, self._session.autocast)

    def tensors(self) -> dict[str, Tensor]:
        """See :meth:`Stage.tensors`."""
        tensors = {f"parameter.{name}": parameter.detach() for name, parameter in self.parameters()}
        if self._session.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self._session.ema.values.items()}
        tensors |= {f"{_BUFFER}{name}": value for name, value in self._buffers().items()}
        return tensors | {_COUNT: torch.tensor(self._watch.count)}

    def optimizer_state(self) -> dict[str, Any]:
        """See :meth:`Stage.optimizer_state`: one state a learner."""
        return {name: learner.optimizer.state_dict() for name, learner in self._learners().items()}

    def load(self, folder: Path, tensors: dict[str, Tensor], optimizer: dict[str, Any]) -> None:
        """See :meth:`Stage.load`."""
        load_parameters(self.parameters(), folder, tensors)
        try:
            load_averages(self._session.ema, tensors)
            for name, buffer in self._buffers().items():
                buffer.copy_(tensors[f"{_BUFFER}{name}"])
            for name, learner in self._learners().items():
                learner.optimizer.load_state_dict(optimizer[name])
            self._watch.count = int(tensors[_COUNT])
        except KeyError as error:
            raise CheckpointError(f"{folder}: lacks {error}; delete it to resume from an earlier one") from None

    def save(self, folder: Path, progress: Progress, date: str) -> None:
        """See :meth:`Stage.save`: the autoencoder in diffusers' layout, its moving average where there is one."""
        self._save_vae(folder)

    def publish(self) -> None:
        """See :meth:`Stage.publish`: ``vae/`` of the run folder is the last checkpoint's."""
        self._save_vae(self._session.recipe.output / VAE)

    def write_failure(self, path: Path, progress: Progress, message: str) -> str:
        """See :meth:`Stage.write_failure`: which pictures met, with which weights."""
        micro_batches = self._running.micro_batches if self._running is not None else ()
        info = {
            "message": message,
            "update": progress.updates + 1,
            "epoch": progress.epoch,
            "progress": asdict(progress),
            "precision": self.precision,
            "device": str(self.device),
            "versions": versions(),
            "micro_batches": [
                {"slices": [self.dataset.slices[int(i)].slice_id for i in micro.slices], "weights": list(micro.weights)}
                for micro in micro_batches
            ],
        }
        with atomic_directory(path) as folder:
            atomic_write_text(folder / RECIPE_NAME, dump_yaml(self.recipe))
            atomic_write_text(folder / "update.json", json.dumps(info, indent=2) + "\n")
        return "update.json names the pictures; --resume runs it again"

    def go_back(self, progress: Progress) -> tuple[int, Progress | None]:
        """See :meth:`Stage.go_back`: the last state that was kept while outputs varied."""
        # an update is judged before it steps: what the first constant output came from is the state before it
        healthy = max(progress.updates - self._watch.count, 0)
        if self._kept is None:
            return healthy, None
        self.load(self._session.recipe.output, self._kept.tensors, self._kept.optimizer)
        return healthy, self._kept.progress

    def _keep(self, progress: Progress) -> None:
        self._kept = _Snapshot(progress, _on_cpu(self.tensors()), _on_cpu(self.optimizer_state()))

    def _learners(self) -> dict[str, Learner]:
        found = {_GENERATOR: self._players.autoencoder}
        return found | ({_CRITIC: self._players.discriminator} if self._players.discriminator is not None else {})

    def _buffers(self) -> dict[str, Tensor]:
        discriminator = self._players.models.discriminator
        return dict(discriminator.named_buffers()) if discriminator is not None else {}

    def _averaged(self) -> Any:
        return self._session.ema.swapped() if self._session.ema is not None else nullcontext()

    def _save_vae(self, folder: Path) -> None:
        with self._averaged():
            save_vae(self._players.models.vae, folder, self._session.recipe.model.layout)


def _on_cpu(value: Any) -> Any:
    """A copy of all tensors in nested maps and lists."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list) else value
