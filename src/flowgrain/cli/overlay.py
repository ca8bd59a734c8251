"""``flowgrain overlay``: a data set's manifest turned back into pictures of its source images."""

import io
import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flowgrain.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

    from flowgrain.data.collections import Collection
    from flowgrain.slices.provenance import Sliced

_FILES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_SIDE, _SHEET_SIDE = 1024, 560


def overlay(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder that decompose wrote.")],
    source: Annotated[
        str | None,
        typer.Option("--source", metavar="SRC", help="Where the images are; where they were when they were cut."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder, or a file (.png, .jpg, .webp) for a single one; DATASET-overlay."),
    ] = None,
    rejects: Annotated[
        bool, typer.Option("--rejects", help="Also the rejected boxes, dashed, with the reason.")
    ] = False,
    images: Annotated[
        list[str] | None, typer.Option("--image", metavar="NAME", help="Only this image; may be repeated.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Only the first so many images.")] = None,
    sheet: Annotated[bool, typer.Option("--sheet", help="Several images a page, for showing around.")] = False,
    columns: Annotated[int, typer.Option("--columns", min=1, max=12, help="Images abreast on a sheet.")] = 3,
    rows: Annotated[int, typer.Option("--rows", min=1, max=24, help="Rows of images on a sheet.")] = 3,
    side: Annotated[
        int | None,
        typer.Option("--side", min=64, max=8192, help="Longer side of an image in pixels; 1024, on a sheet 560."),
    ] = None,
) -> None:
    """Draw the slices of a data set on its source images.

    Examples:

        flowgrain overlay dataset --limit 20 --rejects

        flowgrain overlay dataset --image fox.png --out fox-boxes.png

        flowgrain overlay dataset --sheet --limit 9 --out sheet.png

    A solid box is what became a slice, the thin one in it what the slice shows, a line leads to the box it is part
    of. An image that is gone is left out with a line on stderr, one that has changed says so above it.
    """
    from flowgrain.slices.provenance import sliced_images

    pixels = side or (_SHEET_SIDE if sheet else _SIDE)
    target = out or dataset.with_name(f"{dataset.resolve().name}-overlay")
    single = target.suffix.lower() in _FILES
    chosen = _chosen(sliced_images(dataset, rejects), dataset, images or [], limit)
    collection = _open(dataset, source)
    if single:
        chosen = _at_most(chosen, columns * rows if sheet else 1, target)
    drawn = _drawn(chosen, collection, pixels)
    pages = _pages(drawn, columns, columns * rows) if sheet else drawn
    paths = [_write(picture, target if single else target / f"{name}.png") for name, picture in pages]
    if not paths:
        raise DataError(f"{dataset}: none of its images could be drawn; name the folder they are in by --source")
    typer.echo(str(paths[0]) if len(paths) == 1 else f"{len(paths)} pictures -> {target}")


def _chosen(sliced: "Iterator[Sliced]", dataset: Path, names: list[str], limit: int | None) -> "Iterator[Sliced]":
    """The images to draw; raises DataError where one that was asked for is not among them."""
    wanted = set(names)
    found = (item for item in sliced if not names or item.image in wanted)
    for count, item in enumerate(found, start=1):
        wanted.discard(item.image)
        yield item
        if count == limit or (names and not wanted):
            return
    if wanted:
        missing = ", ".join(f"'{name}'" for name in sorted(wanted))
        raise DataError(f"{dataset}: no {missing} in its manifest; images without any slice are drawn with --rejects")


def _at_most(chosen: "Iterator[Sliced]", most: int, target: Path) -> "Iterator[Sliced]":
    """The images for one file; an error, before anything is drawn, where there are more."""
    items = list(itertools.islice(chosen, most + 1))
    if len(items) > most:
        what = f"{target.name} holds at most {most} of the images; give a folder, --limit or --image"
        raise typer.BadParameter(what, param_hint="--out")
    return iter(items)


def _open(dataset: Path, source: str | None) -> "Collection":
    from flowgrain.data.collections import open_collection
    from flowgrain.slices.store import read_source

    location = source or read_source(dataset)
    if location is None:
        raise DataError(f"{dataset}: does not say where its images were; name their folder by --source")
    return open_collection(location)


def _drawn(chosen: "Iterable[Sliced]", collection: "Collection", side: int) -> "Iterator[tuple[str, Image]]":
    """Name and picture of each image; one that cannot be read is told on stderr and left out."""
    from flowgrain.config import printable
    from flowgrain.data.images import decode_image, sha1_of_bytes
    from flowgrain.slices.overlay import draw_overlay

    for item in chosen:
        try:
            data = collection.read(item.image)
            image, _ = decode_image(data, Path(collection.place(item.image)))
        except DataError as error:
            typer.echo(f"left out: {printable(str(error))}", err=True)
            continue
        caption = f"{item.image}  {image.width}x{image.height}"
        if item.sha1 is not None and sha1_of_bytes(data) != item.sha1:
            caption = f"CHANGED SINCE IT WAS CUT: {caption}"
        yield item.image, draw_overlay(image, printable(caption), item.records, item.rejects, side)


def _pages(drawn: "Iterator[tuple[str, Image]]", columns: int, most: int) -> "Iterator[tuple[str, Image]]":
    """Name and picture of each page of ``most`` images."""
    from flowgrain.slices.overlay import sheet

    for number in itertools.count(1):
        pictures = [picture for _, picture in itertools.islice(drawn, most)]
        if not pictures:
            return
        yield f"page-{number:03}", sheet(pictures, columns)


def _write(picture: "Image", path: Path) -> Path:
    from flowgrain.files import atomic_write_bytes

    buffer = io.BytesIO()
    picture.save(buffer, _FILES[path.suffix.lower()])
    atomic_write_bytes(path, buffer.getvalue())
    return path
