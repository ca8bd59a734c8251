"""The pictures of a data set's slices, wherever they lie: files below its folder, or members of its tar shards."""

from pathlib import Path, PurePosixPath

from PIL import Image

from flowgrain.data.images import decode_image, read_bytes
from flowgrain.data.records import SliceRecord
from flowgrain.data.shard_files import read_index
from flowgrain.errors import DataError
from flowgrain.slices.outputs import MEMBER_MARK

_SHARD_END = f".tar{MEMBER_MARK}"
_MOST_INDEXES = 64
"""Tables of contents that are kept."""


class SlicePictures:
    """Reads slices one by one; of shards only the members that are asked for."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._indexes: dict[str, dict[str, tuple[int, int]]] = {}

    def open(self, record: SliceRecord) -> Image.Image:
        """The upright RGB picture of a slice. Raises :class:`DataError` where it is missing or damaged."""
        return decode_image(self.read(record), self._folder / record.path)[0]

    def read(self, record: SliceRecord) -> bytes:
        """The bytes of a slice's file. Raises :class:`DataError` where they cannot be read."""
        parts = PurePosixPath(record.path).parts
        if not parts or ".." in parts or parts[0].startswith("/") or "\0" in record.path:
            raise DataError(f"{self._folder}: slice '{record.slice_id}' names a file outside of it, '{record.path}'")
        stem, mark, member = record.path.partition(_SHARD_END)
        shard = f"{stem}.tar"
        if not mark or not (self._folder / shard).is_file():
            return read_bytes(self._folder / record.path)
        place = self._index(shard).get(member)
        if place is None:
            raise DataError(f"{self._folder / shard}: no member '{member}'; decompose the data set again")
        with open(self._folder / shard, "rb") as stream:
            stream.seek(place[0])
            return stream.read(place[1])

    def _index(self, shard: str) -> dict[str, tuple[int, int]]:
        if shard not in self._indexes:
            if len(self._indexes) >= _MOST_INDEXES:
                self._indexes.pop(next(iter(self._indexes)))
            self._indexes[shard] = read_index(self._folder / shard)
        return self._indexes[shard]
