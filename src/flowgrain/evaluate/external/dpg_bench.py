"""DPG-Bench (ELLA; Hu et al. 2024, arXiv 2403.05135): long prompts, each checked by a tree of yes/no questions.

The benchmark's prompts and questions are read from its own ``dpg_bench.csv``; who answers them is the user's choice
(:mod:`flowgrain.evaluate.external.dpg_exchange`). The rule of the published ``compute_dpg_bench.py``:

- A question counts as answered with yes only if the questions that it depends on do, too.
- A picture's score is the share of its questions that count, a prompt's the mean over its pictures, the benchmark's the
  mean over prompts, times 100.
- Category scores take the answers as they are, without dependencies, over all questions of a category.

The published script drops the first question of its table (it takes pandas' first row for the header), whereupon the
first prompt fails and is left out; and its category scores see each prompt's last picture only. Here the first question
is read, and ``pictures`` of :func:`category_scores` chooses.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from flowgrain.errors import DataError
from flowgrain.evaluate.bootstrap import Bootstrap, replicate
from flowgrain.evaluate.pairing import Label, Measured, metric_table
from flowgrain.evaluate.results import MetricTable

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
"""Columns of ``dpg_bench.csv`` that are read; it has others."""
NO_PARENT = 0
TITLE = "DPG-Bench score"


@dataclass(frozen=True)
class DpgQuestion:
    """A yes/no question about a picture."""

    number: int
    """Its ``proposition_id``, unique in its item."""
    text: str
    parents: tuple[int, ...]
    """Numbers of the questions that it depends on."""
    category: str
    """What is asked about, for example ``entity - whole``."""


@dataclass(frozen=True)
class DpgItem:
    """A prompt with its questions, parents before children."""

    name: str
    """Its ``item_id``, which is also the stem of its picture files."""
    prompt: str
    questions: tuple[DpgQuestion, ...]


Answers = Mapping[tuple[str, int, int], bool]
"""(item, picture number from 0, question) -> whether the answer was yes."""


@dataclass(frozen=True)
class DpgResult:
    """Scores in [0, 1] of the items that were answered."""

    by_picture: dict[str, tuple[float, ...]]
    """Item -> the score of each of its pictures."""

    @property
    def by_item(self) -> dict[str, float]:
        """Item -> mean over its pictures."""
        return {name: float(np.mean(scores)) for name, scores in self.by_picture.items()}

    @property
    def score(self) -> float:
        """The benchmark's number, 0 to 100."""
        return 100 * float(np.mean(list(self.by_item.values())))


def read_items(path: Path) -> dict[str, DpgItem]:
    """The items of a ``dpg_bench.csv`` by name, in its order.

    Raises :class:`DataError` with the line for a missing column, a bad number, a question that is there twice, or
    dependencies on an unknown question or in a circle.
    """
    prompts: dict[str, str] = {}
    questions: dict[str, dict[int, DpgQuestion]] = defaultdict(dict)
    for line, row in _rows(path):
        name, where = row["item_id"].strip(), f"{path}:{line}"
        if re.fullmatch(r"\w[\w.-]*", name) is None:
            raise DataError(f"{where}: item_id '{name}' cannot be the name of a picture file")
        prompt = prompts.setdefault(name, row["text"])
        if prompt != row["text"]:
            raise DataError(f"{where}: item '{name}' has another text than before")
        question = DpgQuestion(
            number=_number(row["proposition_id"], where),
            text=row["question_natural_language"].strip(),
            parents=tuple(n for part in row["dependency"].split(",") if (n := _number(part, where)) != NO_PARENT),
            category=row["tuple"].partition("(")[0].strip(),
        )
        if question.number in questions[name]:
            raise DataError(f"{where}: item '{name}' has question {question.number} twice")
        questions[name][question.number] = question
    return {name: DpgItem(name, prompt, _ordered(name, questions[name], path)) for name, prompt in prompts.items()}


def dpg_scores(items: Mapping[str, DpgItem], answers: Answers) -> DpgResult:
    """Scores by the dependency rule, for the items that have answers.

    Raises :class:`DataError` for answers to unknown items or questions, and for a picture whose questions are not all
    answered.
    """
    by_picture: dict[str, tuple[float, ...]] = {}
    for name, pictures in _pictures(items, answers).items():
        item = items[name]
        by_picture[name] = tuple(_picture_score(item, answers, picture) for picture in pictures)
    if not by_picture:
        raise DataError("no answers to any question: nothing can be scored")
    return DpgResult(by_picture)


def category_scores(
    items: Mapping[str, DpgItem], answers: Answers, *, broad: bool, pictures: Literal["all", "last"] = "all"
) -> dict[str, float]:
    """Share of yes in each category, 0 to 100, dependencies aside; ``broad`` merges ``entity - whole`` to ``entity``.

    ``last`` looks at each item's last picture only, as the published script does.
    """
    yes: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for name, numbers in _pictures(items, answers).items():
        for picture in numbers if pictures == "all" else numbers[-1:]:
            for question in items[name].questions:
                category = question.category.partition("-")[0].strip() if broad else question.category
                asked[category] += 1
                yes[category] += _answer(answers, items[name], picture, question)
    return {category: 100 * yes[category] / asked[category] for category in sorted(asked)}


def dpg_metrics(
    results: Mapping[str, DpgResult], *, pairs: Sequence[tuple[str, str]] = (), bootstrap: Bootstrap | None = None
) -> MetricTable:
    """The DPG-Bench score of each arm with an interval over prompts, and paired differences.

    Raises :class:`DataError` for a pair of arms that were not scored on the same items.
    """
    bootstrap = bootstrap or Bootstrap()
    measured = []
    for arm, result in results.items():
        names = list(result.by_item)
        values = 100 * np.array(list(result.by_item.values()))
        replicates = replicate(lambda rows, values=values: float(values[rows].mean()), names, bootstrap)
        counts: Counter[tuple[str, int | None]] = Counter()
        for name, scores in result.by_picture.items():
            counts[name, None] = len(scores)
        measured.append(Measured(arm, result.score, replicates, counts))
    return metric_table(measured, Label(TITLE, "whole images", True), pairs, bootstrap)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: no column {', '.join(missing)}; give the benchmark's dpg_bench.csv")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None
    for line, row in rows:
        if any(row[column] is None for column in COLUMNS):
            raise DataError(f"{path}:{line}: fewer columns than the first line")
    if not rows:
        raise DataError(f"{path}: holds no question")
    return rows


def _number(text: str, where: str) -> int:
    try:
        return int(text.strip())
    except ValueError:
        raise DataError(f"{where}: '{text}' is no question number") from None


def _ordered(name: str, questions: dict[int, DpgQuestion], path: Path) -> tuple[DpgQuestion, ...]:
    """Parents before children, else in the table's order."""
    ordered: dict[int, DpgQuestion] = {}
    waiting = dict(questions)
    while waiting:
        ready = (number for number, question in waiting.items() if all(n in ordered for n in question.parents))
        chosen = next(ready, None)
        if chosen is None:
            number, question = next(iter(waiting.items()))
            raise DataError(
                f"{path}: item '{name}': question {number} depends on {', '.join(map(str, question.parents))}, which "
                "is not there or depends on it"
            )
        ordered[chosen] = waiting.pop(chosen)
    return tuple(ordered.values())


def _pictures(items: Mapping[str, DpgItem], answers: Answers) -> dict[str, list[int]]:
    """Numbers of the pictures of each item that were asked about, items in their order."""
    known = {(name, question.number) for name, item in items.items() for question in item.questions}
    found: dict[str, set[int]] = defaultdict(set)
    for name, picture, question in answers:
        if (name, question) not in known:
            raise DataError(f"an answer to question {question} of item '{name}', which the benchmark does not have")
        found[name].add(picture)
    return {name: sorted(found[name]) for name in items if name in found}


def _picture_score(item: DpgItem, answers: Answers, picture: int) -> float:
    counts: dict[int, bool] = {}
    for question in item.questions:  # parents come first
        yes = _answer(answers, item, picture, question)
        counts[question.number] = yes and all(counts[parent] for parent in question.parents)
    return sum(counts.values()) / len(counts)


def _answer(answers: Answers, item: DpgItem, picture: int, question: DpgQuestion) -> bool:
    key = (item.name, picture, question.number)
    if key not in answers:
        raise DataError(f"item '{item.name}', picture {picture}: question {question.number} has no answer")
    return answers[key]
