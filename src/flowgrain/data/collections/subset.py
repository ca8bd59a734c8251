"""Some of the pictures of a collection."""

from collections.abc import Sequence

from flowgrain.data.collections.base import Collection


class Subset(Collection):
    """The pictures of another collection that have these names."""

    def __init__(self, whole: Collection, names: frozenset[str]):
        self.folder = whole.folder
        self.title = whole.title
        self._whole = whole
        self._names = names

    def names(self) -> Sequence[str]:
        """See :class:`Collection`."""
        return [name for name in self._whole.names() if name in self._names]

    def read(self, name: str) -> bytes:
        """See :class:`Collection`."""
        return self._whole.read(name)

    def beside(self, name: str, suffix: str) -> bytes | None:
        """See :class:`Collection`."""
        return self._whole.beside(name, suffix)

    def has(self, name: str, suffix: str) -> bool:
        """See :class:`Collection`."""
        return self._whole.has(name, suffix)

    def place(self, name: str, suffix: str | None = None) -> str:
        """See :class:`Collection`."""
        return self._whole.place(name, suffix)

    def stamp(self, name: str) -> str | None:
        """See :class:`Collection`."""
        return self._whole.stamp(name)

    def changed(self, name: str) -> int:
        """See :class:`Collection`."""
        return self._whole.changed(name)

    def problems(self) -> Sequence[tuple[str, str]]:
        """See :class:`Collection`."""
        return self._whole.problems()
