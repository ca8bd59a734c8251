"""What a check found: facts with numbers, and findings with the file that each is about."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["problem", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing to look at."""

    severity: Severity
    """``problem``: training would stop or lose data; ``warning``: likely a mistake; ``note``: worth knowing."""
    kind: str
    """Short stable name of the kind of finding, for programs."""
    message: str
    files: tuple[str, ...] = ()
    """All files that it is about."""


@dataclass(frozen=True)
class Arithmetic:
    """From images to slices to tuples to updates."""

    images: int
    quarantined: int
    roots: int
    distinct_slices: int
    """Slices without their repeats."""
    slices: int
    slices_by_level: dict[str, int]
    slices_by_source: dict[str, int]
    roots_by_size: dict[int, int]
    """Number of roots by their number of slices."""
    held_out_images: int
    held_out_slices: int


@dataclass(frozen=True)
class Schedule:
    """What one epoch and the whole budget come to."""

    unit: str
    """``roots`` or ``slices``: what an update counts."""
    batch_size: int
    units: int
    updates: int
    micro_batches: int
    micro_batch: int
    """Largest allowed slices of a micro-batch."""
    fill: float
    """Mean slices of a micro-batch over the largest allowed, in (0, 1]."""
    last_update_units: int
    dropped_slices: int
    epochs: float | None
    total_updates: float | None
    total_slices: float | None
    """None where the budget is in seconds, or where a folder alone was checked."""
    seconds: float | None
    """Training time: the budget's, else measured by a trial update; None where neither is known."""


@dataclass(frozen=True)
class BucketRow:
    """One shape."""

    width: int
    height: int
    slices: int
    by_level: dict[str, int]


@dataclass(frozen=True)
class Storage:
    """Bytes that a run writes, and what is free."""

    latents: int
    embeddings: int | None
    """None where no model is known."""
    cache_folder: str | None
    """None: the caches are kept in memory."""
    checkpoint: int | None
    checkpoints: int | None
    """How many checkpoints are kept at most; None without a recipe."""
    free: int


@dataclass(frozen=True)
class Inspection:
    """All of a check."""

    subject: str
    arithmetic: Arithmetic
    schedule: Schedule | None
    buckets: tuple[BucketRow, ...]
    storage: Storage
    findings: tuple[Finding, ...] = field(default=())

    def worst(self) -> Severity | None:
        """The gravest severity found, None where there is nothing."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in SEVERITIES if severity in found), None)


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Gravest first, otherwise in the order found."""
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))
