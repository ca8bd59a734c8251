"""Cutting images: what one process does with its share of the pictures, one decode an image.

A bench holds the detectors and knows how to examine an image (has anything changed?), open it, find its boxes, cut
it. It writes nothing; :mod:`flowgrain.slices.chunk_work` does.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from flowgrain.clock import Clock
from flowgrain.config import merged, parse_layer, printable
from flowgrain.data.collections import Item
from flowgrain.data.images import decode_image, sha1_of_bytes
from flowgrain.errors import ConfigError, DataError, FlowgrainError
from flowgrain.slices.absent import Weights
from flowgrain.slices.asking import Models
from flowgrain.slices.captioners import CaptionerContext
from flowgrain.slices.config import SETTINGS_SUFFIX
from flowgrain.slices.cutting import Cuts, RejectRecord, cut, inputs_digest, root_name
from flowgrain.slices.detectors import DetectorContext
from flowgrain.slices.finding import Found, find
from flowgrain.slices.masking import mask_digest, read_mask_beside, without_masked
from flowgrain.slices.pieces import Cut, Examined, Fault, Looked, Picture, WorkSettings, shown
from flowgrain.slices.scheme import Scheme, Schemes
from flowgrain.vlm.asker import AskingForecast, Spending

UNREADABLE = "unreadable"
DUPLICATE_ROOT = "duplicate_root"
BAD_NAME = "bad_name"
BAD_SIDECAR = "bad_sidecar"
NO_REGION = "no_region"
UNLISTED = "unlisted"
"""A folder or tar of which some pictures are unknown."""
_CACHE = Path(".decompose") / "vlm"


class Workbench:
    """The detectors of a configuration and what to do with them."""

    def __init__(self, settings: WorkSettings):
        """Load what the configuration names. Raises :class:`flowgrain.errors.FlowgrainError` where that fails."""
        cache = None if settings.out is None else settings.out / _CACHE
        folder = settings.collection.folder
        context = DetectorContext(folder, "", 1, settings.device, settings.threads, cache)
        self.settings = settings
        self.clock = Clock()
        self._schemes = Schemes(settings.config, context, settings.asks, settings.elsewhere)
        self._models = Models(settings, self._schemes, CaptionerContext(settings.config.trigger, cache))

    @cached_property
    def batch_size(self) -> int:
        """Images that are looked at together."""
        return max(self._schemes.base.batch_size, self._models.batch_size)

    @property
    def weights(self) -> Weights:
        """The detectors and upscalers that have weights, for processes that are to do without them."""
        return self._schemes.weights()

    @property
    def spending(self) -> Spending:
        """What this process has asked models behind endpoints."""
        return self._models.spending

    @property
    def forecast(self) -> AskingForecast | None:
        """What the questions that were not asked would take; None where nobody asks any."""
        return self._models.forecast

    def close(self) -> None:
        """Close connections; the bench can be used again."""
        self._models.close()

    def recall(self, seen: "Looked") -> Examined:
        """What another process found by examining an image."""
        item = Item(self.settings.collection, seen.name)
        scheme = self._schemes.base if seen.fault is not None else self._scheme(item)
        return Examined(item, seen.sha1, seen.stamp, scheme, seen.key, seen.fault, None)

    def examine(self, name: str, past: tuple[str | None, str] | None, seen: dict[str, str]) -> Examined:
        """Look at an image without decoding it.

        ``past`` is the (stamp, SHA-1) of an earlier look: while the stamp is the same the file is not read. ``seen``
        collects the roots of the images of one stem, of which the first keeps its name.
        """
        item = Item(self.settings.collection, name)
        scheme, inputs, data, sha1, fault = self._schemes.base, "", None, "", None
        stamp = item.collection.stamp(name)
        try:
            if shown(name) != name:
                raise DataError("its name is not valid UTF-8; rename it")
            scheme = self._scheme(item)
            inputs = inputs_digest(item, scheme) + (mask_digest(item) if scheme.config.masks == "file" else "")
        except (ConfigError, DataError) as error:
            code = BAD_NAME if shown(name) != name else BAD_SIDECAR
            fault = Fault(code, self._without_place(str(error), item))
        if fault is None:
            try:
                if past is not None and past[1] and past[0] == stamp:  # what could not be read has no SHA-1
                    sha1 = past[1]
                else:
                    with self.clock.stage("read"):
                        data = item.read()
                        sha1 = sha1_of_bytes(data)
            except DataError as error:
                fault = Fault(UNREADABLE, self._without_place(str(error), item))
        if sha1:
            root = root_name(name, sha1)
            if root in seen:
                fault = Fault(DUPLICATE_ROOT, f"same stem and bytes as {seen[root]}")
            seen.setdefault(root, name)
        mark = (
            scheme.digest,
            self._models.fingerprint,
            inputs,
            sha1,
            "" if fault is None else (fault.code, fault.reason),
        )
        key = hashlib.sha1(repr(mark).encode()).hexdigest()
        return Examined(item, sha1, stamp, scheme, key, fault, data)

    def cut(self, batch: Sequence[Examined]) -> list[Cut]:
        """Decode images, find their boxes together and decide their slices."""
        return self.cut_opened(batch, [self.open(each) for each in batch])

    def cut_opened(self, batch: Sequence[Examined], pictures: Sequence[Picture | Fault]) -> list[Cut]:
        """The rest of :meth:`cut`, after :meth:`open`."""
        found = self._find(batch, pictures)
        with self.clock.stage("caption"):
            captions = self._models.caption_images(batch, pictures)
        cuts = [self._decide(*each) for each in zip(batch, pictures, found, captions, strict=True)]
        with self.clock.stage("caption"):
            return self._models.finish(batch, cuts, captions)

    def open(self, each: Examined) -> Picture | Fault:
        """Decode an image and its mask, once."""
        item, config = each.item, each.scheme.config
        if each.fault is not None:
            return each.fault
        try:
            data = each.data
            if data is None:
                with self.clock.stage("read"):
                    data = item.read()
            with self.clock.stage("decode"):
                image, alpha = decode_image(data, Path(item.place()), config.background)
                mask = alpha if config.masks == "alpha" else None
                if config.masks == "file":
                    mask = read_mask_beside(item, image.size)
        except DataError as error:
            return Fault(UNREADABLE, self._without_place(str(error), item))
        return Picture(image, mask)

    def _find(self, batch: Sequence[Examined], pictures: Sequence[Picture | Fault]) -> list[Found]:
        """The boxes of each picture, none of what could not be opened. Detectors look at the batch together."""
        with self.clock.stage("detect"):
            chosen = [(e, p) for e, p in zip(batch, pictures, strict=True) if isinstance(p, Picture)]
            items, schemes = [each.item for each, _ in chosen], [each.scheme for each, _ in chosen]
            found = iter(find([picture.image for _, picture in chosen], items, schemes))
            return [next(found) if isinstance(picture, Picture) else Found() for picture in pictures]

    def _decide(self, each: Examined, picture: Picture | Fault, found: Found, caption: str | None) -> Cut:
        """The slices of a picture from its boxes; of what could not be opened, the reject."""
        if isinstance(picture, Picture) and not found.fault:
            with self.clock.stage("decide"):
                cuts = cut(found, each.item, each.sha1, each.scheme, caption)
                if not found.regions:
                    nothing = "no box of the coarsest level was found (no_region: skip)"
                    reject = RejectRecord(image=each.shown_name, code=NO_REGION, reason=nothing)
                    cuts = Cuts((), (*cuts.rejects, reject))
                return Cut(cuts if picture.mask is None else without_masked(cuts, picture.mask), picture)
        if isinstance(picture, Picture):
            fault = Fault(BAD_SIDECAR, self._without_place(found.fault, each.item))
        else:
            fault = picture
        reject = RejectRecord(image=each.shown_name, code=fault.code, reason=fault.reason)
        return Cut(Cuts((), (reject,)), None, fault.final)

    def _scheme(self, item: Item) -> Scheme:
        """The scheme of an image. Raises ConfigError where its own settings are wrong."""
        override = self.settings.config.override_of(item.name)
        beside = item.beside(SETTINGS_SUFFIX)
        if beside is not None:
            override = merged(override, parse_layer(beside, Path(item.place(SETTINGS_SUFFIX))).values)
        try:
            return self._schemes.of(override)
        except FlowgrainError as error:
            raise ConfigError(f"settings of its own: {error}") from None

    def _without_place(self, text: str, item: Item) -> str:
        folder = f"{self.settings.collection.folder}/"
        return printable(text.removeprefix(f"{item.place()}: ").replace(folder, ""))
