"""Pictures of any collection as files, for readers that take paths."""

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path, PurePath

from flowgrain.data.collections.base import Item
from flowgrain.data.collections.folder import Folder
from flowgrain.data.images import sha1_of_bytes


def as_file(item: Item) -> Path:
    """The file itself, or a copy of a member or row in a temporary folder that goes when the process ends.

    Raises :class:`flowgrain.errors.DataError` where it cannot be read.
    """
    if isinstance(item.collection, Folder):
        return item.collection.folder / item.name
    place = sha1_of_bytes(item.place().encode("utf-8", "surrogateescape"))[:16]
    path = _folder() / place / PurePath(item.name).name
    if not path.exists():
        path.parent.mkdir()
        path.write_bytes(item.read())
    return path


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="flowgrain-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
