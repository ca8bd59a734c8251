"""What travels through the pipeline: an image that was looked at, decoded, cut."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from flowgrain.data.collections import Collection, Item
from flowgrain.slices.absent import Weights
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.cutting import Cuts
from flowgrain.slices.scheme import Scheme


@dataclass(frozen=True)
class WorkSettings:
    """All that a process needs to cut images; can be sent to one."""

    collection: Collection
    config: DecomposeConfig
    out: Path | None
    """The data set; None where nothing is written."""
    device: str = "cpu"
    threads: int | None = None
    asks: bool = True
    """Whether models behind endpoints may be asked; False counts the questions instead."""
    elsewhere: Weights | None = None
    """Detectors and upscalers whose weights another process holds."""


@dataclass(frozen=True)
class Fault:
    """Why an image as a whole cannot be used."""

    code: str
    reason: str
    final: bool = True
    """False where the next run looks at the image again."""


@dataclass(frozen=True)
class Examined:
    """An image that was looked at but not decoded."""

    item: Item
    sha1: str
    """Empty where the file cannot be read."""
    stamp: str | None
    scheme: Scheme
    key: str
    """Hash of everything that decides the image's slices."""
    fault: Fault | None
    data: bytes | None
    """The file's bytes, where they had to be read."""

    @property
    def shown_name(self) -> str:
        """The image's name as text that any file can hold."""
        return shown(self.item.name)

    def looked(self) -> "Looked":
        """What :meth:`Workbench.recall` makes this of again."""
        return Looked(self.item.name, self.sha1, self.stamp, self.key, self.fault)


@dataclass(frozen=True)
class Looked:
    """An :class:`Examined` on its way to another process: without detectors and bytes."""

    name: str
    sha1: str
    stamp: str | None
    key: str
    fault: Fault | None


@dataclass(frozen=True)
class Picture:
    """A decoded image and, where it has one, its mask (mode L, white = train)."""

    image: Image.Image
    mask: Image.Image | None


@dataclass(frozen=True)
class Cut:
    """What became of an image; ``picture`` is None where it cannot be used."""

    cuts: Cuts
    picture: Picture | None
    final: bool = True
    """False where a model could not be reached about it: the next run looks at it again."""


def shown(name: str) -> str:
    """A file's name as text that any file can hold: bytes that are no UTF-8 are escaped."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
