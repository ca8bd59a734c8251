"""The run's log: ``metrics.jsonl`` for programs, and what people look at (:mod:`flowgrain.train.sinks`)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from flowgrain.config import Config
from flowgrain.files import atomic_write_text
from flowgrain.train.sinks import Sink, TensorBoardSink, WandbConfig, WandbSink, WholeLines, require_wandb

METRICS_NAME = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class LogConfig(Config):
    """Where a run is logged, beside metrics.jsonl and TensorBoard, which are always written."""

    wandb: WandbConfig | None = Field(default=None, description="log to Weights & Biases as well")

    def check(self) -> None:
        """Raise MissingExtraError where a logger is not installed."""
        if self.wandb is not None:
            require_wandb()


def read_log(run: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's log; a line that a crash cut short is left out."""
    path = run / METRICS_NAME
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


class RunLog:
    """Appends to all logs; lines later than update ``keep_until`` (the checkpoint resumed from) are dropped.

    Raises OSError with the file's name where the disk is full; of a logger on the network ``on_failure`` is told.
    """

    def __init__(
        self,
        run: Path,
        keep_until: int,
        config: LogConfig,
        recipe: dict[str, Any],
        on_failure: Callable[[str], None],
    ):
        kept = [line for line in read_log(run) if line["update"] <= keep_until]
        atomic_write_text(run / METRICS_NAME, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = WholeLines(run / METRICS_NAME)
        self._sinks: list[Sink] = [TensorBoardSink(run / TENSORBOARD, keep_until + 1)]
        if config.wandb is not None:
            self._sinks.append(WandbSink(run, config.wandb, recipe, on_failure))

    def update(self, line: dict[str, Any]) -> None:
        """Log one update."""
        self._line("update", line)
        values = {f"train/{name}": line[name] for name in ("loss", "grad_norm", "lr")}
        for quantity in ("loss", "mean_t"):
            values |= {f"{quantity}/{level}": value for level, value in line[f"{quantity}_by_level"].items()}
        for name, levels in line.get("watched_by_level", {}).items():
            values |= {f"terms/{name}/{level}": value for level, value in levels.items()}
        values |= {f"train/{name}": value for name, value in line.get("numbers", {}).items()}
        values["speed/slices_per_second"] = line["slices_in_update"] / max(line["update_seconds"], 1e-9)
        self._scalars(values, line["update"])

    def validation(self, line: dict[str, Any]) -> None:
        """Log one validation."""
        self._line("validation", line)
        values = {f"validation/{level}": sum(row) / len(row) for level, row in line["by_level"].items()}
        values |= {f"validation/{name}": value for name, value in line.get("scores", {}).items()}
        self._scalars({"validation/loss": line["loss"], **values}, line["update"])

    def interference(self, line: dict[str, Any]) -> None:
        """Log how the levels' gradients met in one update; a number that could not be told is None."""
        self._line("interference", line)
        named = {quantity: line[quantity] for quantity in ("conflict_rate", "cross_share", "resultant")}
        for quantity in ("norm_by_level", "cosine", "cosine_pooled", "magnitude_similarity", "oscillation"):
            named |= {f"{quantity}/{key}": value for key, value in line.get(quantity, {}).items()}
        for level, norms in line["noise"].items():
            named |= {f"{quantity}/{level}": norms[quantity] for quantity in ("gradient_square", "trace")}
        values = {f"interference/{name}": float(value) for name, value in named.items() if value is not None}
        self._scalars(values, line["update"])

    def modulation(self, line: dict[str, Any]) -> None:
        """Log what measured modulation has in force; a number that could not be told is None."""
        self._line("modulation", line)
        named = {
            f"modulation/{quantity}/{level}": value
            for quantity in ("granularity_shift", "gamma", "lambda_factor")
            for level, value in line.get(quantity, {}).items()
        }
        self._scalars(named, line["update"])

    def picture(self, name: str, pixels: np.ndarray, update: int) -> None:
        """Show one picture, uint8 pixels (height, width, 3)."""
        for sink in self._sinks:
            sink.picture(f"previews/{name}", pixels, update)

    def sync(self) -> None:
        """Wait until the disk has every line: a checkpoint must not be newer than its log after a power cut."""
        self._lines.sync()

    def close(self) -> None:
        """Close all logs."""
        self._lines.close()
        for sink in self._sinks:
            sink.close()

    def _line(self, kind: str, line: dict[str, Any]) -> None:
        self._lines.append((json.dumps({"kind": kind, **line}) + "\n").encode())

    def _scalars(self, values: dict[str, float], update: int) -> None:
        for sink in self._sinks:
            sink.scalars(values, update)
