"""Where the slices of a chunk go: files in folders, or one tar shard."""

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence

from PIL import Image

from flowgrain.data.records import SliceRecord
from flowgrain.data.shard_files import RECORDS_NAME, ShardWriter, encode_records, shard_member
from flowgrain.files import replace_bytes, sync_files
from flowgrain.slices.store import FILE, Journal, Store, mask_path

SHARDS = "shards"
MEMBER_MARK = "!"

# PNG at level 4 is written 2.7 times as fast as at zlib's own 6, for 1 % more bytes of photographs
_ENCODING = {
    "png": ("PNG", {"compress_level": 4}),
    "webp": ("WEBP", {"lossless": True, "quality": 60, "method": 4}),
    "jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
}


def encode(image: Image.Image, path: str) -> bytes:
    """A picture in the format of its path's extension."""
    kind, options = _ENCODING[path.rpartition(".")[2]]
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


class Output(ABC):
    """Takes the slices of a chunk, one after another. What it wrote counts after :meth:`close`."""

    @abstractmethod
    def add(self, record: SliceRecord, picture: bytes, mask: bytes | None) -> tuple[SliceRecord, tuple[str, ...]]:
        """Write a slice; returns its record with the path that it has there, and the files that hold it.

        Raises OSError where the data set cannot be written.
        """

    @abstractmethod
    def end_image(self, records: Sequence[SliceRecord]) -> None:
        """All slices of an image have been added."""

    @abstractmethod
    def close(self) -> dict[str, int]:
        """Make everything durable; returns the size of each file written."""

    @abstractmethod
    def abandon(self) -> None:
        """Give up after a failure."""


class FolderOutput(Output):
    """A file a slice, below ``slices``."""

    def __init__(self, store: Store, journal: Journal):
        self._store = store
        self._journal = journal
        self._sizes: dict[str, int] = {}

    def add(self, record: SliceRecord, picture: bytes, mask: bytes | None) -> tuple[SliceRecord, tuple[str, ...]]:
        """See :class:`Output`."""
        contents = {record.path: picture} if mask is None else {record.path: picture, mask_path(record.path): mask}
        for path, data in contents.items():
            self._journal.announce((FILE, path))
            replace_bytes(self._store.folder / path, data)
            self._sizes[path] = len(data)
        return record, tuple(contents)

    def end_image(self, records: Sequence[SliceRecord]) -> None:
        """See :class:`Output`; nothing to do."""

    def close(self) -> dict[str, int]:
        """See :class:`Output`."""
        sync_files(self._store.folder / path for path in self._sizes)
        return self._sizes

    def abandon(self) -> None:
        """See :class:`Output`; the journal knows what lies around."""


class ShardOutput(Output):
    """A tar for the whole chunk, in which the slices of a root are one WebDataset sample."""

    def __init__(self, store: Store, journal: Journal, index: int):
        self._path = shard_path(index)
        self._file = store.folder / self._path
        journal.announce((FILE, self._path))
        self._writer = ShardWriter(self._file)

    def add(self, record: SliceRecord, picture: bytes, mask: bytes | None) -> tuple[SliceRecord, tuple[str, ...]]:
        """See :class:`Output`."""
        local = record.slice_id.removeprefix(record.root + "/")
        extension = record.path.rpartition(".")[2]
        member = shard_member(record.root, f"{local}.{extension}")
        self._writer.add(member, picture)
        if mask is not None:
            self._writer.add(mask_path(member), mask)
        self._writer.add(shard_member(record.root, f"{local}.txt"), record.caption.encode())
        return record.model_copy(update={"path": f"{self._path}{MEMBER_MARK}{member}"}), (self._path,)

    def end_image(self, records: Sequence[SliceRecord]) -> None:
        """See :class:`Output`; writes the records of each root beside its slices."""
        roots: dict[str, list[SliceRecord]] = {}
        for record in records:
            member = record.path.partition(MEMBER_MARK)[2]
            roots.setdefault(record.root, []).append(record.model_copy(update={"path": member}))
        for root, own in roots.items():
            self._writer.add(shard_member(root, RECORDS_NAME), encode_records(own))

    def close(self) -> dict[str, int]:
        """See :class:`Output`."""
        self._writer.close()
        return {self._path: self._file.stat().st_size}

    def abandon(self) -> None:
        """See :class:`Output`."""
        self._writer.abandon()


def shard_path(index: int) -> str:
    """Path in the data set of the shard of the chunk at this place."""
    return f"{SHARDS}/{index:06d}.tar"


def make_output(store: Store, journal: Journal, index: int, layout: str) -> Output:
    """Where the slices of the chunk at this place go by the configuration's ``layout``."""
    return ShardOutput(store, journal, index) if layout == "webdataset" else FolderOutput(store, journal)
