"""What a judge is asked, of which pictures, how often: everything that a run of ``flowgrain judge`` records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from flowgrain.config import Config
from flowgrain.errors import ConfigError
from flowgrain.evaluate.protocol import ProtocolConfig
from flowgrain.vlm.config import AskingConfig, BudgetConfig, EndpointConfig
from flowgrain.vlm.images import PictureConfig

Mode = Literal["rank", "pairwise", "score"]


class JudgeConfig(Config):
    """A ``judge.yaml``."""

    endpoint: EndpointConfig
    modes: tuple[Mode, ...] | None = Field(
        default=None,
        min_length=1,
        description="rank: all variants in order; pairwise: the better of two; score: 0 to 100 for each picture. null: "
        "rank where the protocol's answer is rank, pairwise and score where it is best",
    )
    repeats: int = Field(
        default=2,
        ge=1,
        le=100,
        description="times that each question is put, the pictures in other places: with 1 no position bias shows",
    )
    pairs: Literal["comparison", "all"] | tuple[tuple[str, str], ...] = Field(
        default="comparison", description="pairs of variants for pairwise; comparison: those of comparison.yaml"
    )
    references: int | None = Field(
        default=None, ge=0, le=16, description="reference pictures shown with a question; null: the protocol's number"
    )
    prompts: Path | Literal["default", "urae"] | None = Field(
        default=None, description="folder of prompts, or a packaged set; null: urae for that protocol, else default"
    )
    limit: int | None = Field(
        default=None, ge=1, description="items judged of each data set, drawn with the seed; more later keeps these"
    )
    rater: str | None = Field(default=None, min_length=1, description="name in the results; null: the model's")
    seed: int = Field(default=0, description="of the order of pictures and of the choice of items and references")
    resamples: int = Field(default=1000, ge=100, description="bootstrap draws of an interval")
    level: float = Field(default=0.95, gt=0, lt=1, description="confidence level of the intervals")
    pictures: PictureConfig = Field(default_factory=PictureConfig)
    asking: AskingConfig = Field(default_factory=AskingConfig)
    budget: BudgetConfig = Field(default_factory=BudgetConfig)

    @model_validator(mode="after")
    def _one_order(self) -> "JudgeConfig":
        if self.modes is not None and len(set(self.modes)) != len(self.modes):
            raise ValueError("modes: each may be given once")
        if self.modes is not None and {"rank", "pairwise"} <= set(self.modes):
            raise ValueError(
                "modes rank and pairwise both order the pictures, and their statistics would mix: judge twice, into "
                "two folders"
            )
        return self

    def chosen_modes(self, protocol: ProtocolConfig, variants: Sequence[str]) -> tuple[Mode, ...]:
        """The modes that are asked; raises ConfigError where there is nothing to order."""
        by_protocol: tuple[Mode, ...] = ("rank",) if protocol.answer == "rank" else ("pairwise", "score")
        modes = by_protocol if self.modes is None else self.modes
        if len(variants) < 2 and modes != ("score",):
            raise ConfigError(f"there is one variant, '{variants[0]}', and nothing to order: use --mode score")
        return modes

    @property
    def rater_name(self) -> str:
        """The name under which answers stand in the results."""
        return self.rater or self.endpoint.model
