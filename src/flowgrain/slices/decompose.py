"""Hierarchical semantic decomposition of a folder: images in, a data set of slices out (Algorithm 1).

One decoded image is in memory at a time. Everything is a function of the source bytes, the files beside them and
the configuration; a second run over the same folder does nothing, one after a crash goes on.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from flowgrain.data.images import list_images, open_image, sha1_of
from flowgrain.data.records import SliceRecord
from flowgrain.errors import DataError
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.contact_sheet import update_contact_sheet
from flowgrain.slices.cutting import Cuts, Cutter, RejectRecord, RenderedSlice, render, root_name
from flowgrain.slices.store import Part, Store
from flowgrain.slices.upscalers import Upscaler

UNREADABLE = "unreadable"
DUPLICATE_ROOT = "duplicate_root"

OnImage = Callable[[str, int, int], None]
"""Called after each image with its name, how many are done and how many there are."""


@dataclass
class Summary:
    """Counts of a decomposition."""

    levels: tuple[str, ...]
    images: int = 0
    unchanged: int = 0
    removed: int = 0
    slices_by_level: Counter[str] = field(default_factory=Counter)
    levels_per_root: Counter[int] = field(default_factory=Counter)
    """Number of roots by K, the number of their levels."""
    buckets: Counter[tuple[int, int]] = field(default_factory=Counter)
    rejects: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Boxes and images that became no slice, by (level or '', code)."""
    caption_sources: Counter[str] = field(default_factory=Counter)
    fingerprint: str = ""

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.slices_by_level.total()

    def counts(self) -> dict[str, object]:
        """What ``dataset.json`` says about the data set; the same for a first run and a repeated one."""
        return {
            "images": self.images,
            "roots": self.levels_per_root.total(),
            "slices": self.slices,
            "slices_by_level": {level: self.slices_by_level[level] for level in self.levels},
            "rejects": self.rejects.total(),
        }

    def add(self, records: tuple[SliceRecord, ...], rejects: tuple[RejectRecord, ...]) -> None:
        """Count what one image gave."""
        self.images += 1
        roots: dict[str, set[str]] = {}
        for record in records:
            self.slices_by_level[record.level] += 1
            self.buckets[record.width, record.height] += 1
            self.caption_sources[record.caption_source] += 1
            roots.setdefault(record.root, set()).add(record.level)
        self.levels_per_root.update(len(levels) for levels in roots.values())
        self.rejects.update((reject.level or "", reject.code) for reject in rejects)


def decompose(source: Path, out: Path, config: DecomposeConfig, on_image: OnImage | None = None) -> Summary:
    """Cut every image of ``source`` and write the data set ``out``.

    An image that cannot be read is listed in the rejects and the run goes on. Raises :class:`DataError` where no
    image can be read or none gives a slice, where files beside the images are malformed, and where ``out`` lies in
    ``source`` or holds something else.
    """
    work = _Work(source, config)
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise DataError(f"{out}: lies in the source folder, its slices would be taken for images; put it elsewhere")
    store = Store(out)
    summary = Summary(tuple(config.levels))
    summary.removed = store.keep_only(work.names)
    parts: list[Part] = []
    for index, item in enumerate(work.items()):
        part = store.part(item.name)
        unchanged = part is not None and store.is_complete(part, item.key)
        if part is None or not unchanged:
            opened = work.cut(item)
            part = store.write(item.name, item.key, opened.rendered(work.cutter.upscaler), opened.cuts.rejects)
        store.claim(part)
        parts.append(part)
        summary.add(part.records, part.rejects)
        summary.unchanged += unchanged
        if on_image:
            on_image(item.name, index + 1, len(work.names))
    about = {"source": source.resolve().name, "counts": summary.counts(), "config_hash": config.digest()}
    summary.fingerprint = store.finish(parts, {**about, "config": config.model_dump(mode="json")})
    _require_slices(source, summary, [reject for part in parts for reject in part.rejects])
    update_contact_sheet(out, [record for part in parts for record in part.records])
    return summary


def survey(source: Path, config: DecomposeConfig, on_image: OnImage | None = None) -> Summary:
    """The counts that :func:`decompose` would give, without writing anything. Raises the same errors."""
    work = _Work(source, config)
    summary = Summary(tuple(config.levels))
    rejects: list[RejectRecord] = []
    for index, item in enumerate(work.items()):
        cuts = work.cut(item).cuts
        summary.add(cuts.records, cuts.rejects)
        rejects += cuts.rejects
        if on_image:
            on_image(item.name, index + 1, len(work.names))
    _require_slices(source, summary, rejects)
    return summary


@dataclass(frozen=True)
class _Item:
    name: str
    sha1: str
    fault: str
    """Why the image cannot be used, known before it is decoded; empty if nothing is."""
    code: str
    key: str


@dataclass(frozen=True)
class _Opened:
    cuts: Cuts
    image: Image.Image | None
    mask: Image.Image | None

    def rendered(self, upscaler: Upscaler) -> Iterator[RenderedSlice]:
        """The slices with their pixels and masks."""
        if self.image is None:
            return
        for record in self.cuts.records:
            mask = render(self.mask, record, upscaler) if self.mask is not None else None
            yield RenderedSlice(record, render(self.image, record, upscaler), mask)


class _Work:
    """The source images in order, and how each is cut."""

    def __init__(self, source: Path, config: DecomposeConfig):
        self._source = source
        self._config = config
        self.names = [path.relative_to(source).as_posix() for path in list_images(source)]
        self.cutter = Cutter(config, source)
        # read before any work is done, so that a malformed caption stops the run at its start
        self._beside = {name: self.cutter.inputs(name) for name in self.names}

    def items(self) -> Iterator[_Item]:
        """Images by path, with a key that changes with anything that decides their slices."""
        seen: dict[str, str] = {}
        digest = self._config.digest()
        for name in self.names:
            sha1, fault, code = "", "", ""
            try:
                sha1 = sha1_of(self._source / name)
            except DataError as error:
                fault, code = self._without_path(name, error), UNREADABLE
            root = root_name(name, sha1)
            if sha1 and root in seen:
                fault, code = f"same stem and bytes as {seen[root]}", DUPLICATE_ROOT
            seen.setdefault(root, name)
            key = hashlib.sha1(repr((digest, self._beside[name], sha1, code)).encode()).hexdigest()
            yield _Item(name, sha1, fault, code, key)

    def cut(self, item: _Item) -> "_Opened":
        """The slices of an image and its pixels; a reject where it cannot be used."""
        fault, code = item.fault, item.code
        if not fault:
            try:
                image = open_image(self._source / item.name, self._config.background)
                mask = self.cutter.mask(item.name, image.size)
            except DataError as error:
                fault, code = self._without_path(item.name, error), UNREADABLE
            else:
                cuts = self.cutter.cut(image, item.name, item.sha1)
                return _Opened(cuts if mask is None else self._inside(cuts, mask), image, mask)
        return _Opened(Cuts((), (RejectRecord(image=item.name, code=code, reason=fault),)), None, None)

    def _inside(self, cuts: Cuts, mask: Image.Image) -> Cuts:
        """Without the slices that show nothing of the mask."""
        shown = {r.slice_id for r in cuts.records if render(mask, r, self.cutter.upscaler).getbbox() is not None}
        kept = (record for record in cuts.records if record.slice_id in shown)
        return Cuts(
            # framing may show a corner of the mask in a slice whose parent shows none
            tuple(r if r.parent in shown else r.model_copy(update={"parent": None}) for r in kept),
            cuts.rejects + tuple(self.cutter.outside(r) for r in cuts.records if r.slice_id not in shown),
        )

    def _without_path(self, name: str, error: DataError) -> str:
        return str(error).removeprefix(f"{self._source / name}: ")


def _require_slices(source: Path, summary: Summary, rejects: list[RejectRecord]) -> None:
    if summary.slices:
        return
    unreadable = [reject for reject in rejects if reject.code == UNREADABLE]
    if len(unreadable) == summary.images:
        first = unreadable[0]
        raise DataError(f"{source}: none of its {summary.images} images can be read; {first.image}: {first.reason}")
    first = next(reject for reject in rejects if reject.code != UNREADABLE)
    raise DataError(
        f"{source}: none of its {summary.images} images gives a slice; {first.image}: {first.reason}. "
        "Choose a preset or targets of a smaller resolution, or raise max_upscale and lanczos_max"
    )
