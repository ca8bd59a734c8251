"""What a study asks, of whom, and which participants will not count: the sealed ``study.yaml``."""

import hashlib
from typing import Annotated, Literal

from pydantic import Field, model_validator

from flowgrain.config import Config
from flowgrain.evaluate.protocol import OVERALL, Dimension

CONSENT = """\
In this study you compare pictures that computer programs drew. You will see a short text and several pictures drawn \
for it, and you say which ones are better. There are no right answers: your own impression counts.

What is stored: your choices, how long they took, the time at which you agreed to this text and, where you came here \
through a recruiting service, the participant number that it gave you. Your name, your address on the internet and \
your browser are not stored.

Taking part is voluntary. You can stop at any time by closing this page, and you can delete everything that you \
answered with the button "Withdraw"."""

Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Attention(Config):
    """Items that tell whether a participant looks."""

    degraded: int = Field(
        default=2, ge=0, le=20, description="items in which one picture is blurred and noisy and has to come last"
    )
    repeated: int = Field(default=1, ge=0, le=20, description="items that come back later, for consistency")


class Exclusions(Config):
    """Which participants will not count. Set before the first answer and sealed; the reasons stand in the results."""

    max_failed_checks: int = Field(default=0, ge=0, description="more failed degraded items than this exclude")
    min_median_seconds: float = Field(
        default=2.0, ge=0, description="a shorter median time from showing an item to its first answer excludes"
    )
    min_completed: float = Field(default=0.5, ge=0, le=1, description="a smaller share of answered items excludes")
    min_repeat_agreement: float = Field(
        default=0.0, ge=0, le=1, description="a smaller mean agreement with oneself on repeated items excludes"
    )


class PictureConfig(Config):
    """How pictures are re-encoded, all variants alike."""

    format: Literal["png", "webp"] = Field(default="png", description="png: lossless; webp: quality 95, a fifth as big")
    max_side: int | None = Field(default=None, ge=64, description="pixels; longer pictures are scaled down")


class StudyConfig(Config):
    """A ``study.yaml``."""

    title: Line = Field(default="Which pictures are better?", description="what participants read")
    language: Literal["en", "de"] = Field(
        default="en", description="of the page; the consent text, the questions and the descriptions are yours"
    )
    consent: str = Field(
        default=CONSENT, min_length=1, max_length=20_000, description="agreed to before the first item"
    )
    answer: Literal["rank", "best"] = Field(default="rank", description="all pictures in order, or the best one")
    ties: bool = Field(default=True, description="whether pictures may be ranked equal")
    dimensions: tuple[Dimension, ...] = Field(default=(OVERALL,), min_length=1)
    references: int = Field(default=3, ge=0, le=8, description="real pictures shown beside each item")
    per_participant: int = Field(ge=1, description="items that one participant answers, checks not counted")
    participants: int = Field(default=200, ge=1, le=5000, description="the most who may take part")
    attention: Attention = Field(default_factory=Attention)
    exclusions: Exclusions = Field(default_factory=Exclusions)
    pictures: PictureConfig = Field(default_factory=PictureConfig)

    @model_validator(mode="after")
    def _possible(self) -> "StudyConfig":
        if self.attention.repeated > self.per_participant // 2:
            raise ValueError(
                f"attention.repeated {self.attention.repeated}: at most half of per_participant "
                f"({self.per_participant}) can come back"
            )
        names = [dimension.name for dimension in self.dimensions]
        if len(set(names)) != len(names):
            raise ValueError(f"dimensions {', '.join(names)}: each needs its own name")
        return self

    @property
    def consent_sha256(self) -> str:
        """Hash of the consent text, stored with each participant's agreement."""
        return hashlib.sha256(self.consent.encode()).hexdigest()
