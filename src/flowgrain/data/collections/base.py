"""The seam of storage: pictures by name, and the files beside each by suffix.

``fox.txt`` is the file ``.txt`` beside ``fox.png``, ``fox.boxes.json`` the file ``.boxes.json``. Whoever reads a
caption, a box file or a mask through this seam reads it from a folder, a tar shard or a row of a data set alike.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class Collection(ABC):
    """Pictures and the files beside them. Cheap to pickle: worker processes open what they need by themselves."""

    folder: Path
    """What relative paths of a configuration are relative to."""
    title: str
    """What to call it, without the path of this machine."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of all pictures, '/' separated, each once, sorted by :func:`by_stem`.

        Raises :class:`flowgrain.errors.DataError` where there is none or they cannot be listed.
        """

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A picture's bytes. Raises :class:`flowgrain.errors.DataError` where they cannot be read."""

    @abstractmethod
    def beside(self, name: str, suffix: str) -> bytes | None:
        """Bytes of the file of the picture's stem with this suffix, None where there is none.

        Raises :class:`flowgrain.errors.DataError` for a file that is there and cannot be read.
        """

    @abstractmethod
    def has(self, name: str, suffix: str) -> bool:
        """Whether there is a file of the picture's stem with this suffix, without reading it."""

    @abstractmethod
    def place(self, name: str, suffix: str | None = None) -> str:
        """Where a picture (or the file with ``suffix`` beside it) is, for messages."""

    @abstractmethod
    def stamp(self, name: str) -> str | None:
        """A text that changes whenever the picture does, without reading it; None where nothing can be said."""

    @abstractmethod
    def changed(self, name: str) -> int:
        """Time of the picture's last change, in nanoseconds since 1970: what the stamp tells to a clock's tick."""

    def problems(self) -> Sequence[tuple[str, str]]:
        """What is there and cannot be listed by :meth:`names`, such as members after the damage of a tar.

        (Where, why) of each.
        """
        return ()


@dataclass(frozen=True)
class Item:
    """One picture of a collection."""

    collection: Collection
    name: str

    def read(self) -> bytes:
        """See :meth:`Collection.read`."""
        return self.collection.read(self.name)

    def beside(self, suffix: str) -> bytes | None:
        """See :meth:`Collection.beside`."""
        return self.collection.beside(self.name, suffix)

    def has(self, suffix: str) -> bool:
        """See :meth:`Collection.has`."""
        return self.collection.has(self.name, suffix)

    def place(self, suffix: str | None = None) -> str:
        """See :meth:`Collection.place`."""
        return self.collection.place(self.name, suffix)

    def neighbour(self, suffix: str) -> "Item":
        """The file of the same stem with this suffix, as an item of its own."""
        return Item(self.collection, stem_of(self.name) + suffix)


def stem_of(name: str) -> str:
    """A name without its last extension: what it shares with the files beside it."""
    folder, slash, file = name.rpartition("/")
    base, dot, _ = file.rpartition(".")
    return folder + slash + (base if dot and base else file)


def by_stem(name: str) -> tuple[str, str]:
    """Sorting key that keeps pictures of one stem together."""
    return stem_of(name), name
