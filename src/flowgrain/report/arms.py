"""What a comparison shows: arms at checkpoints, their pictures, the data they learned from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flowgrain.data.records import SliceRecord
from flowgrain.report.canvas import Style
from flowgrain.report.run_log import RunLog, TrainingCost, ValidationRecord

PictureKind = Literal["whole", "close-up"]


@dataclass(frozen=True)
class Picture:
    """One generated picture. ``reference`` is a real picture of what the prompt names, if there is one."""

    prompt: str
    seed: int
    path: Path
    reference: Path | None = None
    kind: PictureKind = "whole"


@dataclass(frozen=True)
class Arm:
    """One way to train, at one checkpoint; the base model is an arm without a fraction."""

    name: str
    fraction: float | None
    """Share of the training budget spent at this checkpoint; None for a model that was not trained."""
    pictures: Sequence[Picture] = ()
    log: RunLog = field(default_factory=RunLog)
    """The whole run's log; checkpoints of one run share it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The resolved recipe as nested maps."""
    pictures_per_second: float | None = None
    trainable_parameters: int | None = None

    @property
    def title(self) -> str:
        """Name and checkpoint. Metric results name their arms by it."""
        return self.name if self.fraction is None else f"{self.name} {self.fraction:g}x"

    @property
    def validation(self) -> ValidationRecord | None:
        """The validation at this checkpoint; of the base model, the last there is."""
        if self.fraction is None:
            return self.log.validations[-1] if self.log.validations else None
        return self.log.validation_at(self.fraction)

    @property
    def training_cost(self) -> TrainingCost | None:
        """What training took up to this checkpoint; None where the log does not say when it was reached."""
        validation = self.validation
        if self.fraction is None or validation is None:
            return None
        return self.log.cost(validation.update)

    def losses(self, level: str) -> Mapping[str, float]:
        """Validation loss of each held-out root at one level."""
        return {} if self.validation is None else self.validation.per_root_by_level.get(level, {})


def arm_styles(arms: Sequence[Arm]) -> dict[str, Style]:
    """The looks of each arm, by title: a run keeps its colour, its checkpoints differ in dash; untrained is grey."""
    names = list(dict.fromkeys(arm.name for arm in arms if arm.fraction is not None))
    fractions = sorted({arm.fraction for arm in arms if arm.fraction is not None})
    return {
        arm.title: Style(None) if arm.fraction is None else Style(names.index(arm.name), fractions.index(arm.fraction))
        for arm in arms
    }


@dataclass(frozen=True)
class SheetRow:
    """A root and some of its slices, as they are trained on."""

    root: str
    slices: tuple[tuple[Path, str, str], ...]
    """(file, level, caption) of each."""


@dataclass(frozen=True)
class DataInfo:
    """The data set of slices in numbers and examples."""

    name: str
    roots: int
    slices_by_level: Mapping[str, int]
    slices_per_root: Mapping[int, int]
    """K -> number of roots with K slices."""
    sheet: tuple[SheetRow, ...]
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Reason -> number of boxes that were not cut."""
    credit: str = ""
    """Author and licence of the pictures."""


def describe_data(
    name: str,
    records: Sequence[SliceRecord],
    folder: Path,
    *,
    sheet_roots: int = 12,
    rejected: Mapping[str, int] | None = None,
    credit: str = "",
) -> DataInfo:
    """Count the slices of a manifest and choose roots for its contact sheet, evenly spread over the data set."""
    by_root: dict[str, list[SliceRecord]] = {}
    for record in records:
        by_root.setdefault(record.root, []).append(record)
    roots = list(by_root)
    step = max(len(roots) // max(sheet_roots, 1), 1)
    sheet = tuple(
        SheetRow(root, tuple((folder / record.path, record.level, record.caption) for record in by_root[root]))
        for root in roots[::step][:sheet_roots]
    )
    return DataInfo(
        name=name,
        roots=len(roots),
        slices_by_level=dict(Counter(record.level for record in records)),
        slices_per_root=dict(sorted(Counter(len(group) for group in by_root.values()).items())),
        sheet=sheet,
        rejected=rejected or {},
        credit=credit,
    )
