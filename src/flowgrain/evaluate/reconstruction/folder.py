"""Reconstruct a folder of pictures, each a PNG that carries what made it, so that an interrupted run goes on.

A reconstruction and its provenance are one file, written atomically: it is whole and says how it came about, or it is
not there.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

from flowgrain.data.images import (
    decode_image,
    from_tensor,
    list_images,
    open_image,
    read_bytes,
    sha1_of_bytes,
    to_tensor,
)
from flowgrain.data.quarantine import Problem
from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.reconstruction.autoencoder import Autoencoder
from flowgrain.evaluate.reconstruction.measure import Pair
from flowgrain.evaluate.reconstruction.pictures import Preparation
from flowgrain.files import atomic_write_bytes

PROVENANCE_KEY = "flowgrain reconstruction"


@dataclass(frozen=True)
class Source:
    """An original on disk."""

    path: Path
    key: str
    """Its path in the folder of pictures, '/' separated."""

    @property
    def reconstruction(self) -> str:
        """Relative path of its reconstruction: the key, with ``.png`` after another format's extension."""
        return self.key if self.key.lower().endswith(".png") else f"{self.key}.png"


@dataclass(frozen=True)
class Outcome:
    """What became of a folder's pictures with one autoencoder."""

    done: int
    kept: int
    problems: tuple[Problem, ...]
    """Pictures that cannot be read or encoded, with the reason."""


def find_sources(folder: Path, limit: int | None = None) -> list[Source]:
    """The pictures below a folder in sorted order, the first ``limit``.

    Raises :class:`DataError` for a folder without pictures, or with two whose reconstructions would share a name.
    """
    sources = [Source(path, path.relative_to(folder).as_posix()) for path in list_images(folder)[:limit]]
    taken: dict[str, str] = {}
    for source in sources:
        other = taken.setdefault(source.reconstruction, source.key)
        if other != source.key:
            raise DataError(f"{folder}: the reconstructions of {other} and {source.key} would share a name; rename one")
    return sources


def folder_pairs(arms: Mapping[str, Path], sources: Sequence[Source], preparation: Preparation) -> Iterator[Pair]:
    """Every original with each arm's reconstruction, one picture at a time; ``arms`` holds their folders."""
    for source in sources:
        original = preparation(open_image(source.path))
        for arm, folder in arms.items():
            yield Pair(arm, source.key, original, folder / source.reconstruction)


def reconstruct_folder(
    autoencoder: Autoencoder,
    sources: Sequence[Source],
    out: Path,
    preparation: Preparation,
    on_picture: Callable[[int], None] | None = None,
) -> Outcome:
    """Reconstruct what ``out`` lacks; ``on_picture`` is told the number of finished pictures.

    Raises :class:`ConfigError` where ``out`` holds reconstructions that were made otherwise: they are not replaced.
    """
    problems: list[Problem] = []
    done = kept = 0
    for number, source in enumerate(sources, start=1):
        try:
            data = read_bytes(source.path)
            expected = provenance(autoencoder, preparation, sha1_of_bytes(data))
            if is_done(out / source.reconstruction, expected):
                kept += 1
            else:
                original = preparation(decode_image(data, source.path)[0])
                reconstruction = from_tensor(autoencoder(to_tensor(original), source.key))
                atomic_write_bytes(out / source.reconstruction, _png_bytes(reconstruction, expected))
                done += 1
        except DataError as error:
            problems.append((source.path, str(error).removeprefix(f"{source.path}: ")))
        if on_picture is not None:
            on_picture(number)
    return Outcome(done, kept, tuple(problems))


def provenance(autoencoder: Autoencoder, preparation: Preparation, source_sha1: str) -> dict[str, str]:
    """Everything that decides a reconstruction."""
    return {
        "autoencoder": autoencoder.version,
        "preparation": json.dumps(preparation.model_dump()),
        "source": source_sha1,
    }


def is_done(path: Path, expected: dict[str, str]) -> bool:
    """Whether ``path`` is the expected reconstruction; False where it is missing or its original has changed.

    Raises :class:`ConfigError` where another autoencoder or preparation made it, or something else altogether did.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(PROVENANCE_KEY)
    except FileNotFoundError:
        return False
    except (OSError, SyntaxError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove it, or choose another --out") from None
    if text is None:
        raise ConfigError(f"{path}: is no reconstruction of flowgrain; choose another --out")
    found = json.loads(text)
    for key in ("autoencoder", "preparation"):
        if found.get(key) != expected[key]:
            raise ConfigError(
                f"{path}: was made otherwise ({key} {found.get(key)} there, {expected[key]} now); choose another --out"
            )
    return found["source"] == expected["source"]


def _png_bytes(image: Image.Image, made_by: dict[str, str]) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text(PROVENANCE_KEY, json.dumps(made_by))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
