"""From models and a folder of pictures to results: reconstruct what is missing, measure all, write everything."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowgrain.data.quarantine import QUARANTINE_NAME, Problem, describe_problems, write_quarantine
from flowgrain.errors import ConfigError, DataError
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.reconstruction.autoencoder import Autoencoder
from flowgrain.evaluate.reconstruction.base import PairScore
from flowgrain.evaluate.reconstruction.folder import Source, folder_pairs, reconstruct_folder
from flowgrain.evaluate.reconstruction.measure import Pair, reconstruction_table, score_pairs
from flowgrain.evaluate.reconstruction.outputs import write_outputs
from flowgrain.evaluate.reconstruction.pictures import Preparation
from flowgrain.evaluate.results import MetricTable
from flowgrain.locks import locked

FEWEST_PICTURES = 3
"""Pictures without which there is no interval of a Frechet distance."""
ProgressCallback = Callable[[str, int, int], None]
"""(stage, done, of how many)"""


@dataclass(frozen=True)
class ReconstructionPlan:
    """Which autoencoders, which pictures, which measures."""

    arms: Mapping[str, Callable[[], Autoencoder]]
    """Name -> the function that loads it: one is in memory at a time."""
    sources: Sequence[Source]
    preparation: Preparation
    scores: Sequence[PairScore]
    ranked_by: PairScore
    """The one of ``scores`` that decides which pictures the sheet shows."""
    encoder: ImageEncoder | None
    out: Path


@dataclass(frozen=True)
class ReconstructionOutcome:
    """What was done."""

    table: MetricTable
    done: int
    kept: int
    problems: tuple[Problem, ...]


def arm_folders(names: Sequence[str], out: Path) -> dict[str, Path]:
    """A folder in ``out`` for each name; raises :class:`ConfigError` for names that are given twice or look alike."""
    folders: dict[str, Path] = {}
    for name in names:
        folder = out / (re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model")
        if folder in folders.values():
            raise ConfigError(f"two models are called '{name}'; name them apart: NAME=MODEL")
        folders[name] = folder
    return folders


def run(
    plan: ReconstructionPlan, on_progress: ProgressCallback, bootstrap: Bootstrap | None = None
) -> ReconstructionOutcome:
    """Reconstruct and measure; finished reconstructions in ``plan.out`` are kept.

    Pictures that cannot be read are listed in ``quarantine.jsonl`` and left out for all arms. Raises DataError where
    fewer than three are left, ConfigError where ``plan.out`` holds reconstructions that were made otherwise.
    """
    folders = arm_folders(list(plan.arms), plan.out)
    with locked(plan.out):
        done = kept = 0
        problems: dict[Path, str] = {}
        for name, load in plan.arms.items():
            outcome = reconstruct_folder(
                load(), plan.sources, folders[name], plan.preparation, _staged(on_progress, name, len(plan.sources))
            )
            done, kept = done + outcome.done, kept + outcome.kept
            problems.update(outcome.problems)
        write_quarantine(plan.out / QUARANTINE_NAME, list(problems.items()))
        sources = [source for source in plan.sources if source.path not in problems]
        if len(sources) < FEWEST_PICTURES:
            why = f": {describe_problems(list(problems.items()))}" if problems else ""
            raise DataError(f"{len(sources)} usable pictures, at least {FEWEST_PICTURES} are needed for intervals{why}")
        table = _measure(plan, sources, folders, on_progress, bootstrap)
    return ReconstructionOutcome(table, done, kept, tuple(problems.items()))


def compared_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of up to four arms; of more, the first with every other."""
    if len(names) > 4:  # every pair more is a chance more to find a difference where there is none
        return [(names[0], other) for other in names[1:]]
    return [(first, second) for i, first in enumerate(names) for second in names[i + 1 :]]


def _measure(
    plan: ReconstructionPlan,
    sources: Sequence[Source],
    folders: Mapping[str, Path],
    on_progress: ProgressCallback,
    bootstrap: Bootstrap | None,
) -> MetricTable:
    total, measured = len(sources) * len(folders), 0

    def on_pair(_pair: Pair) -> None:
        nonlocal measured
        measured += 1
        on_progress("measuring", measured, total)

    pairs = folder_pairs(folders, sources, plan.preparation)
    arms = score_pairs(pairs, plan.scores, plan.encoder, on_pair)
    compare = compared_pairs(list(folders))
    table = reconstruction_table(arms, plan.scores, plan.encoder, compare=compare, bootstrap=bootstrap)
    write_outputs(plan.out, table, arms, folders, sources, plan.preparation, plan.ranked_by)
    return table


def _staged(on_progress: ProgressCallback, name: str, total: int) -> Callable[[int], None]:
    return lambda done: on_progress(f"{name}: reconstructing", done, total)
