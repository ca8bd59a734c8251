"""The seam of captioners: pictures in, captions out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image
from pydantic import Field

from flowgrain.config import Config
from flowgrain.granularity import Granularity

When = Literal["missing", "always"]


@dataclass(frozen=True)
class CaptionRequest:
    """A picture that wants a caption."""

    name: str
    """Of the source image, for messages."""
    picture: Image.Image
    """What the caption is of, upright RGB, at the resolution of the source."""
    root: Image.Image | None = None
    """The whole image that the picture was cut from; None where the picture is the whole."""
    root_caption: str | None = None
    """Caption of the whole image, where there is one."""
    level: str = ""
    """Name of the slice's level; empty for a whole image."""
    label: str = ""
    """What the detector calls the slice."""
    granularity: Granularity = "macro"


@dataclass(frozen=True)
class CaptionerContext:
    """What a captioner is built for, besides its own configuration."""

    trigger: str = ""
    """Word that every caption of the data set holds."""
    cache: Path | None = None
    """Folder for what is dear to ask twice; None: nowhere."""


class Captioner(ABC):
    """Writes captions."""

    roots: bool
    """Whether it captions whole images."""
    slices: bool
    """Whether it captions slices."""
    when: When
    """Of those, whether also the ones that have a caption of their own."""
    batch_size: int = 1
    """Requests that are best put together."""

    @abstractmethod
    def caption_all(self, requests: Sequence[CaptionRequest]) -> list[str | None]:
        """The caption of each: one line, or None where none could be had."""

    def fingerprint(self) -> str:
        """Digest of what the configuration only names."""
        return ""


class CaptionerConfig(Config, ABC):
    """Base of the configurations of captioners. A subclass has a ``kind`` of its own, by which YAML names it."""

    roots: bool = Field(default=True, description="caption whole images; levels' templates build on that caption")
    slices: bool = Field(default=True, description="caption slices: each gets a caption of its own")
    when: When = Field(
        default="missing", description="missing: what has no caption of its own (a .txt beside it); always: everything"
    )

    @abstractmethod
    def build(self, context: CaptionerContext) -> Captioner:
        """The captioner. Raises :class:`flowgrain.errors.FlowgrainError` where its own files are unusable."""
