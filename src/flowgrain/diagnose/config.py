"""What ``flowgrain diagnose`` measures, and how much of it."""

from typing import Annotated

from pydantic import Field, field_validator

from flowgrain.config import Config

FLOW_LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
"""Default noise levels of flow matching: dense where the group weights are soft."""


class DiagnoseConfig(Config):
    """Which states of a run are measured, at what, and with how much work."""

    checkpoints: tuple[int, ...] | None = Field(
        default=None, min_length=1, description="updates of the checkpoints to measure; null: max_checkpoints of them"
    )
    max_checkpoints: int = Field(
        default=6, ge=1, description="checkpoints measured where none are named: the first, the last, evenly between"
    )
    levels: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = Field(
        default=None, min_length=1, description="noise levels t, 1 = noise; null: where the group weights are soft"
    )
    queries: int = Field(default=32, ge=2, description="query points of each noise level, shared by all checkpoints")
    max_slices: int = Field(
        default=10_000,
        ge=2,
        description="training slices that are read; whole roots drawn by seed where there are more",
    )
    updates: int = Field(default=8, ge=1, description="training updates whose gradients are measured at a checkpoint")
    nearest: int = Field(default=8, ge=1, description="latents of each group that the concentration table counts")
    topics: int = Field(default=3, ge=1, description="caption words that the partition by topic looks for")
    bands: int = Field(default=3, ge=2, description="groups of the partition by spatial frequency")
    resamples: int = Field(default=1000, ge=100, description="bootstrap replicates behind an interval")
    memory_mib: int = Field(default=256, ge=16, description="memory that fields and latents may take at a time, MiB")
    batch_size: int = Field(default=16, ge=1, description="query points of a forward pass")
    seed: int = Field(default=0, ge=0, lt=2**31, description="draws query points, their noise, controls and resamples")

    @field_validator("levels")
    @classmethod
    def _increasing(cls, levels: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return None if levels is None else tuple(sorted(set(levels)))

    @field_validator("checkpoints")
    @classmethod
    def _distinct(cls, checkpoints: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return None if checkpoints is None else tuple(sorted(set(checkpoints)))
