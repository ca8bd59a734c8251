"""Where pictures and the files beside them are stored: folders, tar shards, Hugging Face data sets."""

import os
from pathlib import Path

from flowgrain.data.collections.base import Collection as Collection
from flowgrain.data.collections.base import Item as Item
from flowgrain.data.collections.folder import Folder as Folder
from flowgrain.data.collections.hub import PREFIX, HubDataset
from flowgrain.data.collections.tar_shards import TarShards, find_tars
from flowgrain.data.images import is_picture
from flowgrain.errors import DataError

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_collection(spec: str | Path) -> Collection:
    """The pictures that ``spec`` names.

    ``hf:...`` is a Hugging Face data set; one ``.tar``, a folder with some, or a pattern of them
    (``photos-{000000..000012}.tar``) are shards; any other folder is one of pictures. Raises :class:`DataError` for
    what is none of these, and for a folder of pictures and shards at once.
    """
    text = str(spec)
    if text.startswith(PREFIX):
        return HubDataset(text)
    path = Path(spec)
    found = find_tars(path)
    if path.is_dir():
        return _open_folder(path) if found is None else _open_shards(found[0], path)
    if found is not None:
        return TarShards(*found, path.name)
    if path.name.endswith(_COMPRESSED):
        raise DataError(f"{path}: compressed, so that members have no place to be read from; unpack it to a plain .tar")
    what = "is a file, neither a folder nor a .tar" if path.exists() else "no such folder of pictures or slices"
    raise DataError(f"{path}: {what}; give a folder of pictures, tar shards or hf:DATASET")


def located(folder: Path, spec: Path) -> Path:
    """What ``spec`` names where relative paths are relative to ``folder``."""
    return spec if str(spec).startswith(PREFIX) else folder / spec


def _open_shards(tars: list[Path], folder: Path) -> Collection:
    picture = _first_picture(folder)
    if picture is not None:
        raise DataError(
            f"{folder}: holds pictures ({picture}) and tars ({tars[0].name}); give {folder}/*.tar for the tars, or "
            "move them elsewhere for the pictures"
        )
    return TarShards(tars, folder, folder.resolve().name)


def _open_folder(folder: Path) -> Collection:
    if _first_picture(folder) is None:
        names = sorted(os.listdir(folder))
        packed = [name for name in names if name.endswith(_COMPRESSED)]
        tables = [name for name in names if name.endswith(".parquet") or name in ("dataset_dict.json", "state.json")]
        if packed:
            raise DataError(f"{folder}: {packed[0]} is compressed; unpack its .tar, members are read by their place")
        if tables:
            raise DataError(f"{folder}: holds no pictures but {tables[0]}; write hf:{folder} for the data set in it")
    return Folder(folder)


def _first_picture(folder: Path) -> str | None:
    """A picture in a folder or below it, None without one; which it is does not matter."""
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = next((name for name in files if is_picture(name) and not name.startswith(".")), None)
        if found is not None:
            return os.path.relpath(os.path.join(parent, found), folder)
    return None
