"""What the results of a study are called, and the facts that a report tells beside its numbers."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from flowgrain.config import Config
from flowgrain.evaluate.protocol import Dimension
from flowgrain.evaluate.study.config import Exclusions
from flowgrain.evaluate.study.plan import read_model

RESULTS = "results"
RANKINGS_NAME, SUMMARY_NAME, FACTS_NAME = "rankings.jsonl", "summary.json", "facts.json"


class StudyFacts(Config):
    """A ``facts.json``: what a report says about how the numbers came about."""

    title: str
    seal: str
    blinded: bool = Field(description="variants are numbered: the study was still open")
    opened_at: str
    closed_at: str | None
    answer: Literal["rank", "best"]
    dimensions: tuple[Dimension, ...]
    participants: int = Field(description="who agreed to the consent text and did not withdraw")
    finished: int
    counted: int
    withdrawn: int
    exclusions: dict[str, int] = Field(description="rule -> participants that it excludes; one may break several")
    rules: Exclusions
    median_minutes: float | None = Field(description="of finished participants")


def read_facts(path: Path) -> StudyFacts:
    """The facts of a file; raises DataError naming what is wrong with it."""
    return read_model(StudyFacts, path)
