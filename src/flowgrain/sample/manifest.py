"""The record of drawn pictures: one JSON line a picture, with everything that decided it.

A sample folder holds ``samples.jsonl`` and the pictures that it names. A picture whose line equals the planned one
is not drawn again; a folder with pictures drawn otherwise is refused, never overwritten.
"""

import hashlib
import json
import re
from importlib import metadata
from pathlib import Path

from pydantic import Field, ValidationError

from flowgrain import __version__
from flowgrain.config import Config
from flowgrain.errors import ConfigError, DataError
from flowgrain.files import atomic_write_text

SAMPLES_NAME = "samples.jsonl"
_SLUG_LENGTH = 40


class Provenance(Config):
    """What all pictures of a folder share."""

    run: str = Field(description="name of the run or arm, 'base' for a model without adapter")
    checkpoint: str | None = Field(description="checkpoint folder's name, None for a model without adapter")
    budget_fraction: float | None = Field(description="multiple of N1 that the checkpoint marks")
    model: str
    model_fingerprint: str
    adapter_sha256: str | None
    dtype: str
    sampler: str
    steps: int
    guidance: float
    height: int
    width: int
    flowgrain: str = __version__
    torch: str = Field(default_factory=lambda: metadata.version("torch"))
    diffusers: str = Field(default_factory=lambda: metadata.version("diffusers"))


class SampleRecord(Provenance):
    """One picture."""

    file: str = Field(description="picture, relative to the manifest")
    prompt: str
    seed: int


def plan_records(provenance: Provenance, prompts: list[str], seeds: list[int]) -> list[SampleRecord]:
    """The line of every picture, prompt by prompt."""
    shared = provenance.model_dump()
    return [
        SampleRecord(**shared, file=picture_name(prompt, seed), prompt=prompt, seed=seed)
        for prompt in prompts
        for seed in seeds
    ]


def picture_name(prompt: str, seed: int) -> str:
    """A file name that depends on (prompt, seed) alone: readable start, hash, seed."""
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_SLUG_LENGTH].rstrip("-")
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()
    return f"{slug}-{digest}-{seed}.png" if slug else f"{digest}-{seed}.png"


def read_manifest(folder: Path) -> list[SampleRecord]:
    """The lines of a sample folder, none where there is no manifest; raises DataError naming a bad line."""
    path = folder / SAMPLES_NAME
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(
        path.read_text(encoding="utf-8").split("\n"), start=1
    ):  # prompts may hold other breaks
        if not line:
            continue
        try:
            records.append(SampleRecord.model_validate_json(line))
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise DataError(f"{path}:{number}: not a sample line ({reason}); restore it or use another --out") from None
    return records


def write_manifest(folder: Path, records: list[SampleRecord]) -> None:
    """Replace the manifest atomically."""
    lines = (json.dumps(record.model_dump(mode="json"), ensure_ascii=False) + "\n" for record in records)
    atomic_write_text(folder / SAMPLES_NAME, "".join(lines))


def done_already(folder: Path, planned: list[SampleRecord]) -> list[SampleRecord]:
    """Lines of the folder whose pictures exist, to be kept; raises ConfigError where the folder is another's.

    A folder that is not empty and has no manifest, or whose manifest has a line of the same picture drawn
    otherwise, is refused.
    """
    if not (folder / SAMPLES_NAME).exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder}: not empty and not a sample folder; choose another --out")
        return []
    existing = read_manifest(folder)
    by_file = {record.file: record for record in planned}
    for record in existing:
        plan = by_file.get(record.file)
        if plan is not None and plan != record:
            raise ConfigError(
                f"{folder}: {record.file} was drawn otherwise ({_difference(record, plan)}); choose another --out"
            )
    return [record for record in existing if (folder / record.file).exists()]


def _difference(old: SampleRecord, new: SampleRecord) -> str:
    before, after = old.model_dump(), new.model_dump()
    key = next(key for key in before if before[key] != after[key])
    return f"{key} {before[key]} there, {after[key]} now"
