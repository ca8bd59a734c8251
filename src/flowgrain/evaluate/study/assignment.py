"""Who sees which items, in which order, with which variant at which place: a pure function of (seed, participant).

Items stand in one fixed random order ``x = 0 .. N-1`` (data sets and prompts spread evenly through it) that all
participants walk through together: participant ``p`` gets the stretch ``g = p m .. p m + m - 1``, item ``g mod N``.
So after any number of participants two items differ by at most one in how often they were given.

Places come from a Williams design (E. J. Williams, "Experimental designs balanced for the estimation of residual
effects of treatments", Aust. J. Sci. Res. A 2, 1949): row ``(g + s) mod k`` for ``k`` variants, with ``s`` one higher
after each period of ``lcm(N, m, k)`` steps (for odd ``k`` after two, the second with mirrored rows). Then

- every participant has each variant at each place equally often, to within one, and so has the study as a whole;
- after ``gcd(N, k)`` periods (twice as many for odd ``k``) this holds exactly for every single item;
- after one period (two for odd ``k``) each variant stands beside each other one equally often, on either side.

The order in which a participant sees the own items is shuffled, and attention checks are put among them.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm
from typing import Literal

Kind = Literal["practice", "item", "check", "repeat"]


@dataclass(frozen=True)
class Design:
    """Everything that an assignment depends on, besides the participant."""

    seed: str
    strata: tuple[tuple[int, int], ...]
    """(data set, prompt) of each item, as numbers."""
    variants: int
    per_participant: int
    degraded: tuple[int, ...]
    """For each check, the variant whose picture is degraded."""
    repeated: int

    @property
    def period(self) -> int:
        """Participants after which places, neighbours and items start over with the next row."""
        return lcm(len(self.strata), self.per_participant, self.variants) // self.per_participant

    @property
    def balanced_after(self) -> int:
        """Participants after which each item had each variant at each place exactly equally often."""
        return self.period * gcd(len(self.strata), self.variants) * (1 + self.variants % 2)


@dataclass(frozen=True)
class Placement:
    """One position of a sitting."""

    kind: Kind
    index: int
    """Of the item, or of the check."""
    places: tuple[int, ...]
    """Variant (its number) at each place, left to right."""


class Assigner:
    """Assignments of one design."""

    def __init__(self, design: Design):
        self.design = design
        self._order = spread(design.strata, _random(design.seed, "items"))
        self._rows = _permutation(design.variants, _random(design.seed, "rows"))
        self._first_place = int(_random(design.seed, "checks").random() * design.variants)

    def sitting(self, participant: int) -> tuple[Placement, ...]:
        """What ``participant`` (0, 1, ...) sees: the practice item, then own items with checks and repeats."""
        random_ = _random(self.design.seed, "participant", participant)
        practice = Placement("practice", 0, _permutation(self.design.variants, random_))
        own = self._own(participant)
        own = [own[i] for i in _permutation(len(own), random_)]
        # an own item j stands at (j + 1, 0); what comes after t own items at (t, a number above 0)
        placed = [((j + 1.0, 0.0), placement) for j, placement in enumerate(own)]
        placed += self._checks(participant, len(own), random_)
        placed += self._repeats(own, random_)
        return (practice, *(placement for _, placement in sorted(placed, key=lambda pair: pair[0])))

    def digest(self, participants: int) -> str:
        """SHA-256 over the sittings of the first ``participants``: what the seal says of this code's output."""
        total = hashlib.sha256()
        for participant in range(participants):
            for placement in self.sitting(participant):
                total.update(f"{placement.kind} {placement.index} {placement.places}\n".encode())
        return total.hexdigest()

    def _own(self, participant: int) -> list[Placement]:
        design, n = self.design, len(self.design.strata)
        start = participant * design.per_participant
        period = participant // design.period
        odd = design.variants % 2
        shift, mirrored = (period // 2, period % 2 == 1) if odd else (period, False)
        placements = []
        for g in range(start, start + design.per_participant):
            row = self._rows[(g + shift) % design.variants]
            placements.append(Placement("item", self._order[g % n], williams_row(design.variants, row, mirrored)))
        return placements

    def _checks(
        self, participant: int, own: int, random_: random.Random
    ) -> list[tuple[tuple[float, float], Placement]]:
        """Checks spread through the sitting, never first; the degraded picture's place goes round."""
        checks, k = self.design.degraded, self.design.variants
        placed = []
        for index in _permutation(len(checks), random_):
            after = 1 + int((len(placed) + random_.random()) / len(checks) * max(own - 1, 1))
            place = (self._first_place + participant + index) % k
            others = [v for v in _permutation(k, random_) if v != checks[index]]
            places = (*others[:place], checks[index], *others[place:])
            placed.append(((float(after), 1 + random_.random()), Placement("check", index, places)))
        return placed

    def _repeats(self, own: list[Placement], random_: random.Random) -> list[tuple[tuple[float, float], Placement]]:
        """Items of the first half that come back in the last quarter, every variant at another place."""
        chosen = _permutation(len(own) // 2, random_)[: self.design.repeated]
        placed = []
        for position in chosen:
            after = len(own) - int(random_.random() * (len(own) // 4))
            turn = len(own[position].places) // 2
            places = own[position].places[turn:] + own[position].places[:turn]
            placed.append(((float(after), 1 + random_.random()), Placement("repeat", own[position].index, places)))
        return placed


def williams_row(variants: int, row: int, mirrored: bool = False) -> tuple[int, ...]:
    """Row ``row`` of the Williams square 0, 1, k-1, 2, k-2, ... (+ row, mod k), or of its mirror image."""
    first = [(place + 1) // 2 if place % 2 else (variants - place // 2) % variants for place in range(variants)]
    cells = tuple((value + row) % variants for value in first)
    return cells[::-1] if mirrored else cells


def spread(strata: Sequence[tuple[int, int]], random_: random.Random) -> tuple[int, ...]:
    """Numbers of the items in a random order through which data sets, and the prompts of each, are spread evenly."""
    datasets: dict[int, dict[int, list[int]]] = {}
    for index, (dataset, prompt) in enumerate(strata):
        datasets.setdefault(dataset, {}).setdefault(prompt, []).append(index)
    sequences = [
        _interleave([[items[i] for i in _permutation(len(items), random_)] for items in prompts.values()], random_)
        for prompts in datasets.values()
    ]
    return tuple(_interleave(sequences, random_))


def _interleave(sequences: list[list[int]], random_: random.Random) -> list[int]:
    """One sequence of all: element r of n stands at (r + u) / n, with one random u a sequence."""
    placed = []
    for sequence in sequences:
        offset = random_.random()
        placed += [((rank + offset) / len(sequence), element) for rank, element in enumerate(sequence)]
    return [element for _, element in sorted(placed)]


def _permutation(count: int, random_: random.Random) -> tuple[int, ...]:
    keys = [random_.random() for _ in range(count)]
    return tuple(sorted(range(count), key=keys.__getitem__))


def _random(seed: str, *identity: int | str) -> random.Random:
    """A generator of which only ``random()`` is used: Python promises that this sequence never changes."""
    text = "\x1f".join([seed, *map(str, identity)])
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))
