"""A run's log as typed records: what ``metrics.jsonl`` says about updates, validations and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowgrain.errors import DataError

BUDGET_TOLERANCE = 1e-6


@dataclass(frozen=True)
class UpdateRecord:
    """One optimizer step. ``slices`` and ``seconds`` count from the start of the run."""

    update: int
    slices: int
    seconds: float
    loss_by_level: Mapping[str, float]
    mean_t_by_level: Mapping[str, float]
    count_by_level: Mapping[str, int]


@dataclass(frozen=True)
class ValidationRecord:
    """One fixed-noise validation: the loss by level and noise level, and by level and root."""

    update: int
    slices: int
    """Seen in training until then."""
    budget_fraction: float | None
    """Multiple of N1, None for one in between."""
    loss: float
    t: tuple[float, ...]
    by_level: Mapping[str, Sequence[float]]
    per_root_by_level: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class TrainingCost:
    """What training took up to some update. ``macro_passes`` counts forward passes of macro (whole-image) slices."""

    updates: int
    slices: int
    macro_passes: int
    seconds: float


@dataclass(frozen=True)
class RunLog:
    """Updates and validations in order."""

    updates: tuple[UpdateRecord, ...] = ()
    validations: tuple[ValidationRecord, ...] = ()

    def levels(self) -> tuple[str, ...]:
        """Levels that were trained, in the order of first appearance."""
        return tuple(dict.fromkeys(level for record in self.updates for level in record.loss_by_level))

    def validation_at(self, fraction: float) -> ValidationRecord | None:
        """The last validation at ``fraction`` of the budget, None if there was none."""
        found = [
            v
            for v in self.validations
            if v.budget_fraction is not None and abs(v.budget_fraction - fraction) < BUDGET_TOLERANCE
        ]
        return found[-1] if found else None

    def cost(self, until_update: int) -> TrainingCost:
        """Cost of the updates up to and with ``until_update``."""
        spent = [record for record in self.updates if record.update <= until_update]
        if not spent:
            return TrainingCost(0, 0, 0, 0.0)
        macro = sum(record.count_by_level.get("macro", 0) for record in spent)
        return TrainingCost(spent[-1].update, spent[-1].slices, macro, spent[-1].seconds)


def parse_log(lines: Sequence[Mapping[str, Any]]) -> RunLog:
    """Typed records of a log's lines; of an update that was logged twice (after a resume) the later line counts.

    Raises :class:`DataError` for a line without a field that the report reads.
    """
    updates: dict[int, UpdateRecord] = {}
    validations: dict[int, ValidationRecord] = {}
    for number, line in enumerate(lines, start=1):
        try:
            if line["kind"] == "update":
                updates[line["update"]] = _update(line)
            elif line["kind"] == "validation":
                validations[line["update"]] = _validation(line)
        except KeyError as error:
            raise DataError(
                f"run log line {number}: field {error} is missing; was it written by this version?"
            ) from None
    return RunLog(
        tuple(updates[key] for key in sorted(updates)), tuple(validations[key] for key in sorted(validations))
    )


def _update(line: Mapping[str, Any]) -> UpdateRecord:
    return UpdateRecord(
        update=line["update"],
        slices=line["slices"],
        seconds=line["seconds"],
        loss_by_level=line["loss_by_level"],
        mean_t_by_level=line["mean_t_by_level"],
        count_by_level=line["count_by_level"],
    )


def _validation(line: Mapping[str, Any]) -> ValidationRecord:
    return ValidationRecord(
        update=line["update"],
        slices=line["slices"],
        budget_fraction=line["budget_fraction"],
        loss=line["loss"],
        t=tuple(line["t"]),
        by_level=line["by_level"],
        per_root_by_level=line["per_root_by_level"],
    )
