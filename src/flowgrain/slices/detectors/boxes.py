"""Boxes that were drawn or detected elsewhere: a sidecar JSON an image, one COCO file, or YOLO text files.

Paths of COCO files and YOLO folders are relative to the source folder. Boxes refer to the upright image, in pixels
(YOLO: fractions of it).
"""

import json
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from flowgrain.config import Config
from flowgrain.data.collections import Item
from flowgrain.data.records import Box
from flowgrain.errors import DataError
from flowgrain.slices.detectors.base import Detection, Detector, DetectorConfig, DetectorContext, View

SIDECAR_SUFFIX = ".boxes.json"

Score = Annotated[float, Field(ge=0, le=1)]
EntryT = TypeVar("EntryT", bound=Config)


class BoxesConfig(DetectorConfig):
    """Where boxes are and which of them belong to the level."""

    short_key: ClassVar[str | None] = "path"
    kind: Literal["boxes"] = "boxes"
    format: Literal["sidecar", "coco", "yolo"] = Field(
        default="sidecar",
        description="<stem>.boxes.json beside each image, one COCO file, or a folder of YOLO .txt files",
    )
    path: str = Field(
        default="", description="COCO file or YOLO folder, relative to the source folder; unread for sidecars"
    )
    labels: list[str] | None = Field(
        default=None, description="labels that belong to the level; null: the level's own name"
    )
    class_names: list[str] | None = Field(
        default=None, description="YOLO class names by number; null reads classes.txt in the YOLO folder"
    )

    @model_validator(mode="after")
    def _read(self) -> "BoxesConfig":
        if self.format == "sidecar" and self.path:
            raise ValueError(
                "path is not read with format sidecar; the boxes of fox.png are in fox.boxes.json beside it"
            )
        if self.format != "sidecar" and not self.path:
            raise ValueError(f"format {self.format} needs path, relative to the source folder")
        if self.format != "yolo" and self.class_names is not None:
            raise ValueError("class_names is read with format yolo alone")
        return self

    def build(self, context: DetectorContext) -> Detector:
        """See :class:`DetectorConfig`. Raises :class:`DataError` for files that are missing or malformed."""
        labels = frozenset(self.labels if self.labels is not None else [context.level])
        if self.format == "coco":
            return CocoDetector(context.folder / self.path, labels)
        if self.format == "yolo":
            return YoloDetector(context.folder / self.path, self.class_names, labels)
        return SidecarDetector(labels)


class _Entry(Config):
    """One box of a sidecar; keys that other tools write are ignored."""

    model_config = ConfigDict(extra="ignore")
    box: tuple[float, float, float, float]
    label: str
    score: Score = 1.0
    caption: str | None = None


class _CocoImage(Config):
    model_config = ConfigDict(extra="ignore")
    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class _CocoAnnotation(Config):
    model_config = ConfigDict(extra="ignore")
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    score: Score = 1.0


class _CocoCategory(Config):
    model_config = ConfigDict(extra="ignore")
    id: int
    name: str


class SidecarDetector(Detector):
    """``fox.boxes.json``: a list of {"box": [x0, y0, x1, y1], "label": ..., "score": ..., "caption": ...}."""

    kind = "boxes"

    def __init__(self, labels: frozenset[str]):
        self._labels = labels

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; an image without a sidecar has no boxes."""
        data, place = view.item.beside(SIDECAR_SUFFIX), view.item.place(SIDECAR_SUFFIX)
        if data is None:
            return []
        entries = _parsed(place, data)
        if not isinstance(entries, list):
            raise DataError(f"{place}: expected a list of boxes, got {_kind(entries)}")
        found = []
        for index, raw in enumerate(entries):
            where = f"{place}: entry {index}"
            entry = _validated(_Entry, raw, where)
            box = _checked(entry.box, view, where)
            if entry.label in self._labels:
                found.append(Detection(box, entry.label, entry.score, entry.caption))
        return found

    def inputs(self, item: Item) -> bytes:
        """The sidecar's bytes."""
        return item.beside(SIDECAR_SUFFIX) or b""


class CocoDetector(Detector):
    """One COCO file of images, categories and annotations ([x, y, width, height]), read once."""

    kind = "boxes"

    def __init__(self, path: Path, labels: frozenset[str]):
        document = _read_json(path)
        if not isinstance(document, dict):
            raise DataError(f"{path}: expected a COCO document (a map), got {_kind(document)}")
        categories = {entry.id: entry.name for _, entry in _section(path, document, "categories", _CocoCategory)}
        unknown = sorted(labels - set(categories.values()))
        if unknown:
            raise DataError(f"{path}: no category '{unknown[0]}'; it has {', '.join(sorted(categories.values()))}")
        self._path = path
        self._images = {entry.file_name: entry for _, entry in _section(path, document, "images", _CocoImage)}
        known = {image.id for image in self._images.values()}
        self._boxes: dict[int | str, list[tuple[int, str, _CocoAnnotation]]] = defaultdict(list)
        for index, entry in _section(path, document, "annotations", _CocoAnnotation):
            if entry.category_id not in categories:
                raise DataError(f"{path}: annotations entry {index}: no category with id {entry.category_id}")
            if entry.image_id not in known:
                raise DataError(f"{path}: annotations entry {index}: no image with id {entry.image_id}")
            if categories[entry.category_id] in labels:
                self._boxes[entry.image_id].append((index, categories[entry.category_id], entry))

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; ``file_name`` is the path in the source folder or, failing that, the bare name."""
        image = self._image(view.name)
        if image is None:
            return []
        size = view.image.size
        if image.width and image.height and (image.width, image.height) != size:
            raise DataError(
                f"{self._path}: image '{image.file_name}' is {image.width}x{image.height} there but "
                f"{size[0]}x{size[1]} upright on disk; export the annotations again for the upright image"
            )
        found = []
        for index, label, entry in self._boxes[image.id]:
            x, y, width, height = entry.bbox
            box = _checked((x, y, x + width, y + height), view, f"{self._path}: annotations entry {index}")
            found.append(Detection(box, label, entry.score))
        return found

    def inputs(self, item: Item) -> bytes:
        """The image's entry and its annotations."""
        image = self._image(item.name)
        return repr((image, self._boxes[image.id])).encode() if image else b""

    def _image(self, name: str) -> _CocoImage | None:
        return self._images.get(name) or self._images.get(PurePosixPath(name).name)


class YoloDetector(Detector):
    """Lines ``class cx cy w h [score]`` in fractions of the image, in ``<folder>/<path of the image>.txt``."""

    kind = "boxes"

    def __init__(self, folder: Path, class_names: list[str] | None, labels: frozenset[str]):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of YOLO labels; set the detector's path")
        self._folder = folder
        self._names = class_names or _read_class_names(folder / "classes.txt")
        self._labels = labels
        unknown = sorted(labels - set(self._names))
        if unknown:
            raise DataError(f"{folder}: no class '{unknown[0]}'; the classes are {', '.join(self._names)}")

    def detect(self, view: View) -> list[Detection]:
        """See :class:`Detector`; an image without a label file has no boxes."""
        path = self._path(view.name)
        text = _decoded(path, _bytes_or_nothing(path))
        width, height = view.image.size
        found = []
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip():
                continue
            label, (x, y, w, h), score = self._parse(line, f"{path}:{number}")
            corners = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            if label in self._labels:
                found.append(Detection(_checked(corners, view, f"{path}:{number}"), label, score))
        return found

    def inputs(self, item: Item) -> bytes:
        """The label file's bytes and the class names."""
        return repr(self._names).encode() + _bytes_or_nothing(self._path(item.name))

    def _path(self, name: str) -> Path:
        return (self._folder / name).with_suffix(".txt")

    def _parse(self, line: str, where: str) -> tuple[str, Box, float]:
        words = line.split()
        if len(words) not in (5, 6):
            raise DataError(f"{where}: expected 'class cx cy w h' with an optional score, got '{line.strip()}'")
        try:
            index, (x, y, w, h, *rest) = int(words[0]), [float(word) for word in words[1:]]
        except ValueError:
            raise DataError(f"{where}: expected numbers, got '{line.strip()}'") from None
        if not 0 <= index < len(self._names):
            raise DataError(f"{where}: class {index} is not among the {len(self._names)} class names")
        if not all(0 <= value <= 1 for value in (x, y, w, h, *rest)):
            raise DataError(f"{where}: expected fractions of the image in [0, 1], got '{line.strip()}'")
        return self._names[index], (x, y, w, h), rest[0] if rest else 1.0


def _checked(box: Box, view: View, where: str) -> Box:
    """The box; raises :class:`DataError` where it is empty or lies wholly outside the image."""
    width, height = view.image.size
    shown = "(" + ", ".join(f"{side:g}" for side in box) + ")"
    if box[2] <= box[0] or box[3] <= box[1]:
        raise DataError(f"{where}: box {shown} is empty; it must be (x0, y0, x1, y1) with x0 < x1 and y0 < y1")
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        raise DataError(f"{where}: box {shown} lies outside the {width}x{height} image '{view.name}'")
    return box


def _read_json(path: Path) -> Any:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return _parsed(path, data)


def _parsed(path: Path | str, data: bytes) -> Any:
    try:
        return json.loads(_decoded(path, data))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from None


def _decoded(path: Path | str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start})") from None


def _bytes_or_nothing(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _read_class_names(path: Path) -> list[str]:
    names = [line.strip() for line in _decoded(path, _bytes_or_nothing(path)).splitlines() if line.strip()]
    if not names:
        raise DataError(f"{path}: no class names; write one a line, or set the detector's class_names")
    return names


def _section(path: Path, document: dict[str, Any], key: str, schema: type[EntryT]) -> list[tuple[int, EntryT]]:
    raw = document.get(key)
    if not isinstance(raw, list):
        raise DataError(f"{path}: expected a list under '{key}', got {_kind(raw)}")
    return [(index, _validated(schema, entry, f"{path}: {key} entry {index}")) for index, entry in enumerate(raw)]


def _validated(schema: type[EntryT], raw: Any, where: str) -> EntryT:
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{where}: {key + ': ' if key else ''}{problem['msg']} (got {problem['input']!r})") from None


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__
