"""Seconds a slice of every arm over the baseline's, in interleaved pairs on an idle machine.

Runs of the experiment share the machine with others, so their own seconds are no measure of cost.
"""

import sys
from pathlib import Path
from typing import Any

from flowgrain.data.records import Update
from flowgrain.train.loop import Observer
from flowgrain.train.setup import Session
from flowgrain.train.setup import prepare as open_session
from flowgrain.train.step import run_update

from .arms import ARMS, LARGE, adapter_of
from .cells import Cell, Model
from .domains import open_domain
from .running import Design, prepare, recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from interleaved import ratio

_DOMAIN = "openmoji"
_BASELINE = "baseline"


def seconds_over_baseline(model: Model, pairs: int, work: Path) -> dict[str, Any]:
    """Arm -> median ratio and its interval; each side trains :data:`LARGE` slices in updates of its own size."""
    domain = open_domain(_DOMAIN, work)
    prepare(domain, (), work)
    design = Design(LARGE, (1.0,))
    sessions: dict[str, Session] = {}
    for arm, settings in ARMS[model].items():
        cell = Cell("seconds", model, adapter_of(model), _DOMAIN, arm, 0)
        sessions[arm] = open_session(recipe(cell, settings, design, domain, work), Observer().stage)
    found = {}
    for arm, session in sessions.items():
        if arm == _BASELINE:
            continue
        own, base = _some(session), _some(sessions[_BASELINE])
        scale = sum(u.slices for u in base) / sum(u.slices for u in own)
        parts = ratio(lambda s=session, u=own: _train(s, u), lambda u=base: _train(sessions[_BASELINE], u), pairs)
        found[arm] = [round(part * scale, 4) for part in parts]
    return found


def _some(session: Session) -> list[Update]:
    """The first updates of an epoch that hold :data:`LARGE` slices or a little more."""
    chosen: list[Update] = []
    for update in session.plan(0):
        if sum(one.slices for one in chosen) < LARGE:
            chosen.append(update)
    return chosen


def _train(session: Session, updates: list[Update]) -> None:
    for update in updates:
        batches = (session.builder.build(micro, 0) for micro in update.micro_batches)
        run_update(session.objective, batches, session.optimizer, session.recipe.clip, session.autocast)
