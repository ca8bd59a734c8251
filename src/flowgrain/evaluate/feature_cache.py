"""Features kept by content: a picture is encoded once, however often it is measured.

A key is made of the SHA-256 of the picture's bytes and of everything that the encoder says about itself, so that an
entry can be missing but never of another picture or encoder. Each encoder has its own folder, with shards that several
processes can fill and read at a time (``data.shards``); a damaged entry is encoded anew.

**To the bit:** what was read back is what was written, and a first filling gives the bits of the encoder without a
cache (for distinct pictures: its batches are the same). Where some pictures were cached and others not, the new ones
meet other pictures in their batch, and a row may differ from the uncached one in rounding (1e-5 relative; not at all
with a batch size of 1).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image

from flowgrain.data.images import read_bytes
from flowgrain.data.shards import SHARD_ENTRIES, ShardStore, Tensors
from flowgrain.errors import DataError
from flowgrain.evaluate.base import ImageLike
from flowgrain.evaluate.encoders.base import ImageEncoder, TextFeatures, open_rgb
from flowgrain.evaluate.encoders.batches import MAX_WORKERS
from flowgrain.files import atomic_write_text

Progress = Callable[[int, int], None]
"""Called with (pictures done, pictures in all) of one call."""
FEATURES_VERSION = "1"
"""Raised whenever one of the encoders would give other features for the same picture, name and version."""
ABOUT_NAME = "encoder.json"


class CachedEncoder(ImageEncoder):
    """An encoder whose features are kept under ``folder``; otherwise the encoder itself.

    Raises :class:`DataError` where the folder cannot be written, besides what the encoder raises.
    """

    def __init__(self, encoder: ImageEncoder, folder: Path, progress: Progress | None = None):
        self.encoder = encoder
        self.family, self.name, self.version = encoder.family, encoder.name, encoder.version
        self.size, self.resize, self.dimension = encoder.size, encoder.resize, encoder.dimension
        self.batch_size = encoder.batch_size
        self._progress = progress
        about = _about(encoder)
        fingerprint = hashlib.sha256(about.encode()).hexdigest()[:16]
        self.folder = folder / fingerprint
        self._store = ShardStore(self.folder, "features", fingerprint)
        self._about = about

    def __call__(self, images: Sequence[ImageLike]) -> Float[np.ndarray, "n d"]:
        """See :meth:`ImageEncoder.__call__`. Pictures of the same bytes are encoded once."""
        keys = [self._store.key(digest) for digest in content_digests(images)]
        places: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, []).append(place)
        features = np.empty((len(images), self.dimension), dtype=np.float32)
        missing = []
        for key, rows in places.items():
            kept = self._kept(key, images[rows[0]])
            if kept is None:
                missing.append(key)
            else:
                features[rows] = kept
        done = len(images) - sum(len(places[key]) for key in missing)
        self._report(done, len(images))
        # whole batches of the encoder, so that the pictures meet as they would without a cache
        step = self.batch_size * max(SHARD_ENTRIES // self.batch_size, 1)
        for start in range(0, len(missing), step):
            chunk = missing[start : start + step]
            encoded = self.encoder([images[places[key][0]] for key in chunk])
            self._keep(chunk, encoded)
            for key, row in zip(chunk, encoded, strict=True):
                features[places[key]] = row
                done += len(places[key])
            self._report(done, len(images))
        return features

    def text(self, prompts: Sequence[str]) -> TextFeatures | None:
        """See :meth:`ImageEncoder.text`; prompts are few and not cached."""
        return self.encoder.text(prompts)

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"] | None:
        """See :meth:`ImageEncoder.logits`."""
        return self.encoder.logits(features)

    def _kept(self, key: str, image: ImageLike) -> Float[np.ndarray, " d"] | None:
        """The features of a key; of a damaged entry made anew; None where there is no entry."""
        try:
            return self._store.read(key, lambda: _entry(self.encoder([image])[0]))["row"].numpy()
        except KeyError:
            return None

    def _keep(self, keys: list[str], rows: Float[np.ndarray, "k d"]) -> None:
        entries = {key: _entry(row) for key, row in zip(keys, rows, strict=True)}
        try:
            self._store.complete(
                ((key, key) for key in keys), entries.__getitem__, lambda _key: 1, lambda _done, _total: None
            )
            if not (self.folder / ABOUT_NAME).exists():
                atomic_write_text(self.folder / ABOUT_NAME, self._about)
        except (DataError, OSError) as error:  # of the store, whose message speaks of a training recipe
            raise DataError(
                f"{self.folder}: the feature cache cannot be written; free some space, give another folder, or measure "
                "without a cache"
            ) from error

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None and total:
            self._progress(done, total)


def content_digests(images: Sequence[ImageLike]) -> list[str]:
    """SHA-256 of each file's bytes, or of the pixels and size of a picture in memory.

    Raises :class:`DataError` for files that cannot be read.
    """
    with ThreadPoolExecutor(MAX_WORKERS, thread_name_prefix="digest") as pool:
        return list(pool.map(_digest, images))


def _digest(image: ImageLike) -> str:
    if isinstance(image, Path):
        return hashlib.sha256(read_bytes(image)).hexdigest()
    pixels = np.asarray(open_rgb(image) if isinstance(image, Image.Image) else image)
    digest = hashlib.sha256(f"pixels {pixels.dtype} {pixels.shape} ".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def _about(encoder: ImageEncoder) -> str:
    """What the features depend on besides the picture, as JSON for people and for the key."""
    facts = {
        "features version": FEATURES_VERSION,
        "family": encoder.family,
        "name": encoder.name,
        "version": encoder.version,
        "size": encoder.size,
        "resize": encoder.resize,
        "dimension": encoder.dimension,
    }
    return json.dumps(facts, indent=2, ensure_ascii=False) + "\n"


def _entry(row: Float[np.ndarray, " d"]) -> Tensors:
    return {"row": torch.from_numpy(np.ascontiguousarray(row))}
