"""The three kinds of question: what the model may answer, and how its answer is read. Nothing is guessed."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from flowgrain.evaluate.judge.config import Mode
from flowgrain.vlm.answers import AnswerError, read_object

AnswerForm = Literal["json", "text"]
MOST_RANKED = len(ascii_uppercase)
_REASON = {"type": "string", "description": "what decides, in one or two sentences"}
_TAG = re.compile(r"\[\s*(image\s*1|image\s*2|tie)\s*\]", re.IGNORECASE)
_VERDICT = re.compile(
    r"\W*\[\s*(image\s*1|image\s*2|tie)\s*\][*_`\"' \t]*(?:$|\n|[.:;,!]|-|\u2013|\u2014|because\b|reason\b)",
    re.IGNORECASE,
)
"""A tag at the very start that stands for itself: not the start of a sentence about that picture."""
_NUMBER = re.compile(
    r"[\s*_`\"'\[]*(?:score\s*[:=]\s*)?[*_`\"'\[]*(\d{1,3}(?:\.\d+)?)(?:\s*/\s*100)?[\s*_`\"'\].]*", re.IGNORECASE
)


class AbstractMode(ABC):
    """One kind of question."""

    name: Mode
    forms: tuple[AnswerForm, ...]
    """Forms of an answer that a prompt may ask for."""

    @abstractmethod
    def labels(self, count: int) -> tuple[str, ...]:
        """What the pictures are called, in the order of their places."""

    @abstractmethod
    def caption(self, label: str) -> str:
        """The line before a picture; empty for none."""

    @abstractmethod
    def schema(self, labels: Sequence[str]) -> dict[str, Any]:
        """JSON schema of the answer."""

    @abstractmethod
    def read(self, text: str, labels: Sequence[str], form: AnswerForm) -> dict[str, Any]:
        """The checked answer; raises AnswerError."""

    @abstractmethod
    def tiers(self, answer: Mapping[str, Any], shown: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """The variants ``shown`` at the places, best first; those that the answer ties are in one tier."""


class RankMode(AbstractMode):
    """All pictures in order, ties allowed (Semantic Granularity Alignment, section 4.3.1)."""

    name = "rank"
    forms = ("json",)

    def labels(self, count: int) -> tuple[str, ...]:
        """A, B, C, ..."""
        return tuple(ascii_uppercase[:count])

    def caption(self, label: str) -> str:
        """See AbstractMode."""
        return f"Picture {label}:"

    def schema(self, labels: Sequence[str]) -> dict[str, Any]:
        """See AbstractMode."""
        tier = {"type": "array", "items": {"type": "string", "enum": list(labels)}}
        return _object({"reason": _REASON, "ranking": {"type": "array", "items": tier}})

    def read(self, text: str, labels: Sequence[str], form: AnswerForm) -> dict[str, Any]:
        """``{"ranking": [["B"], ["A", "C"]], "reason": ...}``; a label alone counts as a tier of one."""
        value = read_object(
            text, {"ranking": f"a list of lists that holds each of {', '.join(labels)} once"}, ("reason",)
        )
        if not isinstance(value["ranking"], list):
            raise AnswerError("'ranking' is not a list")
        tiers = [tier if isinstance(tier, list) else [tier] for tier in value["ranking"]]
        ranked = [label for tier in tiers for label in tier]
        foreign = [label for label in ranked if label not in labels]
        if foreign:
            raise AnswerError(f"'ranking' holds {str(foreign[0])[:40]!r}, which is none of {', '.join(labels)}")
        twice = [label for label in labels if ranked.count(label) > 1]
        if twice:
            raise AnswerError(f"'ranking' holds {', '.join(twice)} more than once")
        missing = [label for label in labels if label not in ranked]
        if missing:
            raise AnswerError(f"'ranking' lacks {', '.join(missing)}")
        if not all(tiers):
            raise AnswerError("'ranking' holds an empty list")
        return {"ranking": tiers, "reason": _reason(value)}

    def tiers(self, answer: Mapping[str, Any], shown: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """See AbstractMode."""
        variant = dict(zip(self.labels(len(shown)), shown, strict=True))
        return tuple(tuple(variant[label] for label in tier) for tier in answer["ranking"])


class PairwiseMode(AbstractMode):
    """The better of two pictures, a tie allowed (URAE, Appendix B.1)."""

    name = "pairwise"
    forms = ("json", "text")

    def labels(self, count: int) -> tuple[str, ...]:
        """1 and 2."""
        return tuple(str(place) for place in range(1, count + 1))

    def caption(self, label: str) -> str:
        """See AbstractMode."""
        return f"Image {label}:"

    def schema(self, labels: Sequence[str]) -> dict[str, Any]:
        """See AbstractMode."""
        return _object({"reason": _REASON, "choice": {"type": "string", "enum": [*labels, "tie"]}})

    def read(self, text: str, labels: Sequence[str], form: AnswerForm) -> dict[str, Any]:
        """``{"choice": "1", "reason": ...}``, or ``[Image 1]`` in free text."""
        if form == "text":
            return {"choice": _tagged(text), "reason": text.strip()}
        value = read_object(text, {"choice": "1, 2 or tie"}, ("reason",))
        choice = value["choice"]
        if not isinstance(choice, str | int) or str(choice) not in (*labels, "tie"):
            raise AnswerError(f"'choice' is {str(choice)[:40]!r}, not 1, 2 or tie")
        return {"choice": str(choice), "reason": _reason(value)}

    def tiers(self, answer: Mapping[str, Any], shown: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """See AbstractMode."""
        if answer["choice"] == "tie":
            return (tuple(shown),)
        best = int(answer["choice"]) - 1
        return ((shown[best],), (shown[1 - best],))


class ScoreMode(AbstractMode):
    """A number from 0 to 100 for one picture (URAE, Appendix B.1)."""

    name = "score"
    forms = ("json", "text")

    def labels(self, count: int) -> tuple[str, ...]:
        """None needed."""
        return ("",) * count

    def caption(self, label: str) -> str:
        """See AbstractMode."""
        return ""

    def schema(self, labels: Sequence[str]) -> dict[str, Any]:
        """See AbstractMode; the range is left to :meth:`read`, as not every endpoint knows minimum and maximum."""
        return _object({"reason": _REASON, "score": {"type": "number", "description": "0 to 100"}})

    def read(self, text: str, labels: Sequence[str], form: AnswerForm) -> dict[str, Any]:
        """``{"score": 85, "reason": ...}``, or a number alone as free text."""
        if form == "text":
            number = _NUMBER.fullmatch(text)
            if number is None:
                raise AnswerError("it is not one number from 0 to 100 and nothing else")
            score, reason = float(number[1]), ""
        else:
            value = read_object(text, {"score": "a number from 0 to 100"}, ("reason",))
            if isinstance(value["score"], bool) or not isinstance(value["score"], int | float):
                raise AnswerError("'score' is not a number")
            score, reason = float(value["score"]), _reason(value)
        if not 0 <= score <= 100:
            raise AnswerError(f"the score {score:g} is not between 0 and 100")
        return {"score": score, "reason": reason}

    def tiers(self, answer: Mapping[str, Any], shown: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """One picture is in no order."""
        return (tuple(shown),)


MODES: dict[Mode, AbstractMode] = {mode.name: mode for mode in (RankMode(), PairwiseMode(), ScoreMode())}


def _tagged(text: str) -> str:
    """The choice of a free text: the one tag that it holds, or the one that it starts with as a verdict."""
    tags = {_choice(tag) for tag in _TAG.findall(text)}
    if len(tags) == 1:
        return tags.pop()
    verdict = _VERDICT.match(text)
    if verdict is None:
        found = "no choice" if not tags else "several choices"
        raise AnswerError(f"it holds {found}; start with [Image 1] or [Image 2] on a line of its own")
    return _choice(verdict[1])


def _choice(tag: str) -> str:
    return "tie" if tag.lower() == "tie" else tag[-1]


def _reason(value: Mapping[str, Any]) -> str:
    reason = value.get("reason", "")
    return reason if isinstance(reason, str) else str(reason)


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
