"""Pictures in a folder and the folders below it."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from flowgrain.data.collections.base import Collection, by_stem, stem_of
from flowgrain.data.images import list_images, read_bytes
from flowgrain.errors import DataError


class Folder(Collection):
    """Files by their path in the folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.title = folder.resolve().name
        self._unreadable: list[tuple[str, str]] = []

    def names(self) -> Sequence[str]:
        """See :class:`Collection`; which files are pictures: :func:`flowgrain.data.images.list_images`."""
        self._unreadable = []
        found = list_images(self.folder, self._unreadable)
        return sorted((path.relative_to(self.folder).as_posix() for path in found), key=by_stem)

    def problems(self) -> Sequence[tuple[str, str]]:
        """See :class:`Collection`: folders that the last listing could not enter."""
        return self._unreadable

    def read(self, name: str) -> bytes:
        """See :class:`Collection`."""
        return read_bytes(self.folder / name)

    def beside(self, name: str, suffix: str) -> bytes | None:
        """See :class:`Collection`."""
        path = self._path(name, suffix)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
                raise DataError(f"{path}: cannot be read (not a regular file)")
            with open(path, "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None

    def has(self, name: str, suffix: str) -> bool:
        """See :class:`Collection`; a broken link is there."""
        return os.path.lexists(self._path(name, suffix))

    def place(self, name: str, suffix: str | None = None) -> str:
        """See :class:`Collection`: the path."""
        return self._path(name, suffix)

    def stamp(self, name: str) -> str | None:
        """Length, times and inode of the file."""
        try:
            status = os.stat(self._path(name, None))
        except OSError:
            return None
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"

    def changed(self, name: str) -> int:
        """See :class:`Collection`; 0 for a file that is not there."""
        try:
            status = os.stat(self._path(name, None))
        except OSError:
            return 0
        return max(status.st_mtime_ns, status.st_ctime_ns)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and other.folder == self.folder

    def __hash__(self) -> int:
        return hash(self.folder)

    def _path(self, name: str, suffix: str | None) -> str:
        return f"{self.folder}{os.sep}{name if suffix is None else stem_of(name) + suffix}"
