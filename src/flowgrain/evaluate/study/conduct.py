"""What a participant meets: the steps of a sitting, items under opaque names, answers checked and stored.

The names of items and slots are keyed hashes of (participant, position, place): those of one participant mean nothing
for another, and nothing in them depends on a variant.
"""

import hashlib
import hmac
import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal
from urllib.parse import quote

from flowgrain.evaluate.study.assignment import Assigner, Placement
from flowgrain.evaluate.study.config import StudyConfig
from flowgrain.evaluate.study.messages import (
    Acknowledgement,
    Answer,
    ConsentText,
    DimensionView,
    Done,
    ItemView,
    PictureView,
    SlotView,
    State,
)
from flowgrain.evaluate.study.plan import MEDIA, Picture, Plan, minutes
from flowgrain.evaluate.study.refusal import Refusal
from flowgrain.evaluate.study.store import Participant, Store, Submission

KEPT = (
    "Your answers, times and identifiers are deleted. What is kept: that somebody started and withdrew, when, and a "
    "running number that points to nothing else."
)
Tiers = dict[str, list[list[int]]]
"""Dimension -> places in tiers, best first."""


class Conduct:
    """Runs the sittings of one study."""

    def __init__(self, plan: Plan, config: StudyConfig, store: Store, completion_url: str | None = None):
        self._plan = plan
        self._config = config
        self._store = store
        self._completion_url = completion_url
        self._sitting = lru_cache(maxsize=1024)(Assigner(plan.design).sitting)

    @property
    def total(self) -> int:
        """The last position; the practice item is position 0."""
        return self._plan.positions

    @property
    def consent_text(self) -> ConsentText:
        """What a participant agrees to."""
        return ConsentText(text=self._config.consent, sha256=self._config.consent_sha256)

    @property
    def ties(self) -> bool:
        """Whether pictures may share a rank."""
        return self._config.ties and self._config.answer == "rank"

    @property
    def minutes(self) -> int:
        """About how long a sitting takes."""
        return minutes(self.total, self._plan.variants, len(self._config.dimensions))

    def state(self, who: Participant) -> State:
        """Where the participant stands, with the item to answer next."""
        if self._store.closed():
            raise Refusal("closed")
        reached = 0 if who.number is None else self._store.reached(who.id)
        item = None if who.number is None or reached > self.total else self._view(who.id, who.number, reached)
        return State(
            title=self._config.title,
            step=self._step(who, reached),
            consent=self.consent_text,
            answer=self._config.answer,
            ties=self.ties,
            dimensions=[DimensionView(**dimension.model_dump()) for dimension in self._config.dimensions],
            position=min(reached, self.total),
            total=self.total,
            answered=max(reached - 1, 0),
            minutes=self.minutes,
            item=item,
        )

    def consent(self, who: Participant, sha256: str) -> None:
        """Store the agreement to this study's text."""
        if sha256 != self._config.consent_sha256:
            raise Refusal("consent_changed")
        self._store.consent(who.id, sha256)

    def item(self, who: Participant, position: int) -> ItemView:
        """An own item that was reached, to look at again or to answer."""
        if self._store.closed():
            raise Refusal("closed")
        if who.number is None:
            raise Refusal("wrong_step")
        if not 0 <= position <= min(self._store.reached(who.id), self.total):
            raise Refusal("not_found")
        return self._view(who.id, who.number, position)

    def answer(self, who: Participant, answer: Answer) -> Acknowledgement:
        """Check an answer, store it durably and acknowledge it."""
        if who.number is None:
            raise Refusal("wrong_step")
        number = who.number
        own = {self._key(number, position): position for position in range(self.total + 1)}
        if answer.item not in own:
            raise Refusal("not_found")
        position = own[answer.item]
        tiers = self._tiers(number, position, answer)
        content = json.dumps(tiers, sort_keys=True, separators=(",", ":"))
        submission = Submission(position, answer.client_answer_id, content, answer.active_ms)
        receipt = self._store.record(who.id, submission, self.total)
        return Acknowledgement(
            item=answer.item,
            position=receipt.position,
            revision=receipt.revision,
            client_answer_id=receipt.client_answer_id,
            received_at=iso_time(receipt.received_at),
        )

    def done(self, who: Participant) -> Done:
        """The completion code of a participant who answered everything."""
        if not who.finished or who.completion_code is None:
            raise Refusal("wrong_step")
        url = self._completion_url
        if url is not None:
            url = url.replace("{code}", quote(who.completion_code, safe=""))
            url = url.replace("{external_id}", quote(who.external_id or "", safe=""))
        return Done(completion_code=who.completion_code, redirect_url=url)

    def _step(self, who: Participant, reached: int) -> Literal["consent", "practice", "items", "done"]:
        if who.number is None:
            return "consent"
        if reached == 0:
            return "practice"
        return "items" if reached <= self.total else "done"

    def _view(self, participant: int, number: int, position: int) -> ItemView:
        placement = self._sitting(number)[position]
        dataset, prompt, references, pictures = self._shown(placement)
        latest = self._store.view(participant, position)
        slots = self._slots(number, position)
        return ItemView(
            key=self._key(number, position),
            position=position,
            practice=placement.kind == "practice",
            dataset=dataset,
            prompt=prompt,
            references=[PictureView(url=_url(r), width=r.width, height=r.height) for r in references],
            pictures=[
                SlotView(slot=slot, url=_url(picture), width=picture.width, height=picture.height)
                for slot, picture in zip(slots, pictures, strict=True)
            ],
            previous_answer=None if latest is None else _named(json.loads(latest), slots),
            preload=self._preload(number, position + 1),
        )

    def _shown(self, placement: Placement) -> tuple[str, str, tuple[Picture, ...], tuple[Picture, ...]]:
        """(description of the data set, prompt, references, pictures in the order of their places)."""
        if placement.kind == "practice":
            practice = self._plan.practice
            return "", practice.prompt, (), tuple(practice.pictures[v] for v in placement.places)
        check = self._plan.checks[placement.index] if placement.kind == "check" else None
        item = self._plan.items[check.item if check else placement.index]
        pictures = check.pictures if check else item.pictures
        return item.description, item.prompt, item.references, tuple(pictures[v] for v in placement.places)

    def _preload(self, number: int, position: int) -> list[str]:
        if position > self.total:
            return []
        _, _, references, pictures = self._shown(self._sitting(number)[position])
        return [_url(picture) for picture in (*references, *pictures)]

    def _tiers(self, number: int, position: int, answer: Answer) -> Tiers:
        """The answer in places; Refusal ``invalid`` for anything but one complete order a dimension."""
        place = {slot: index for index, slot in enumerate(self._slots(number, position))}
        if set(answer.answers) != {dimension.name for dimension in self._config.dimensions}:
            raise Refusal("invalid", "The answer is not complete: every question needs one.")
        result: Tiers = {}
        for dimension, tiers in answer.answers.items():
            if sorted(slot for tier in tiers for slot in tier) != sorted(place) or not all(tiers):
                raise Refusal("invalid")
            if self._config.answer == "best" and (len(tiers) != 2 or len(tiers[0]) != 1):
                raise Refusal("invalid", "Choose exactly one picture as the best.")
            if self._config.answer == "rank" and not self._config.ties and len(tiers) != len(place):
                raise Refusal("invalid", "Every picture needs a rank of its own.")
            result[dimension] = [sorted(place[slot] for slot in tier) for tier in tiers]
        return result

    def _key(self, number: int, position: int) -> str:
        return self._opaque(16, "item", number, position)

    def _slots(self, number: int, position: int) -> list[str]:
        return [self._opaque(10, "slot", number, position, place) for place in range(self._plan.variants)]

    def _opaque(self, digits: int, *identity: int | str) -> str:
        text = " ".join(map(str, identity))
        return hmac.new(self._plan.seed.encode(), text.encode(), hashlib.sha256).hexdigest()[:digits]


def iso_time(milliseconds: int) -> str:
    """2026-01-02T03:04:05.678Z."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _url(picture: Picture) -> str:
    return f"{MEDIA}/{picture.name}"


def _named(tiers: Tiers, slots: list[str]) -> dict[str, list[list[str]]]:
    return {dimension: [[slots[place] for place in tier] for tier in order] for dimension, order in tiers.items()}
