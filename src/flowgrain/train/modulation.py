"""Measured modulation: moves Delta(xi) or Gamma(xi), and the levels' weights, by what a run measures.

The held-out losses at fixed noise levels move the law of noise levels (or Min-SNR's gammas); the levels' gradients move
factors on the planned weights. The rules are in :mod:`flowgrain.train.modulation_rules`. All state is a function of
the measurements so far and in the checkpoint, so a resumed run is the uninterrupted one.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from flowgrain.data.dataset import SliceDataset
from flowgrain.data.records import Update
from flowgrain.data.weights import refactored
from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.flow.time_laws import LogitNormal, TimeLaw
from flowgrain.flow.weightings import MinSnr, Weighting
from flowgrain.granularity import GRANULARITIES, granularity_index
from flowgrain.train.interference import POOLED
from flowgrain.train.interference_line import plain
from flowgrain.train.modulation_config import ModulationConfig
from flowgrain.train.modulation_rules import (
    FEWEST_ROOTS,
    HeldOut,
    centres,
    gammas_at,
    level_factors,
    shifts_of,
    target_shift,
)
from flowgrain.train.objective import FineTuning
from flowgrain.train.runtime import Runtime
from flowgrain.train.validation import NOISE_LEVELS

Line = dict[str, Any]

_SHIFT, _FIRST, _HELD_OUT = "modulation.shift", "modulation.first_losses", "modulation.held_out"
_FACTORS, _GRAMS = "modulation.factors", "modulation.grams"


def adapts_laws(time_law: TimeLaw, weighting: Weighting) -> bool:
    """Whether noise levels or their weights have something that depends on granularity: Gamma or Delta."""
    return isinstance(weighting, MinSnr) or isinstance(time_law, LogitNormal)


def check_modulation(config: ModulationConfig, time_law: TimeLaw, weighting: Weighting, *, alone: bool) -> None:
    """Raise ConfigError for a key of measured laws that these do not read, or a table that is out of its bounds.

    ``alone``: nothing but the laws could be measured.
    """
    if not adapts_laws(time_law, weighting):
        unread = [name for name in config.changed() if name in ("max_shift", "gamma_range")]
        if alone or unread:
            raise ConfigError(
                f"modulation.{unread[0] if unread else 'kind measured'}: this model's noise levels are uniform and "
                "weighting.kind is not min_snr, so held-out losses have nothing to move; choose weighting.kind min_snr "
                "or " + ("remove the key" if unread else "add an interference section, which moves the levels' weights")
            )
        return
    if isinstance(weighting, MinSnr):
        low, high = config.gamma_range
        if not low <= min(weighting.gammas) <= max(weighting.gammas) <= high:
            raise ConfigError(f"weighting.gamma leaves modulation.gamma_range {[low, high]}: widen the range")
        name, table = "weighting.gamma", shifts_of(np.array(weighting.gammas))
    else:
        if config.gamma_range != ModulationConfig().gamma_range:
            raise ConfigError("modulation.gamma_range is read with weighting.kind min_snr alone: remove it")
        name, table = "time.granularity_shift", np.array(time_law.delta if isinstance(time_law, LogitNormal) else ())
    largest = float(np.abs(table - table.mean()).max())
    if largest > config.max_shift:
        raise ConfigError(
            f"{name} lies {largest:g} from its mean, in logit t, and modulation.max_shift is {config.max_shift:g}: "
            "raise it"
        )


class MeasuredLaws:
    """Delta of the objective's law of noise levels, or Gamma of its Min-SNR, from held-out losses."""

    def __init__(self, config: ModulationConfig, objective: FineTuning, dataset: SliceDataset):
        self._config = config
        self._objective = objective
        self._law, self._weighting = objective.time_law, objective.weighting
        self._table = self._shifts_of_the_recipe()
        self._shift = self._table
        self._first: np.ndarray | None = None
        self._digest = torch.tensor(list(dataset.fingerprint.encode()), dtype=torch.uint8)
        self._held_out = self._describe(dataset)
        if len(self._held_out.measurable) < 2:
            raise ConfigError(
                f"modulation.kind measured compares granularities: the held-out data need {FEWEST_ROOTS} roots with "
                "slices of each of two granularities; hold out more (data.holdout, validation.max_roots), or set "
                "modulation.kind to fixed"
            )

    def _shifts_of_the_recipe(self) -> np.ndarray:
        if isinstance(self._weighting, MinSnr):
            return shifts_of(np.array(self._weighting.gammas))
        if isinstance(self._law, LogitNormal):
            return np.array(self._law.delta)
        raise ValueError("neither the law of noise levels nor the weighting depends on granularity")

    def _describe(self, dataset: SliceDataset) -> HeldOut:
        """One density for all granularities, so that sizes alone make no difference between them."""
        slices = dataset.slices
        t = torch.tensor(NOISE_LEVELS, dtype=torch.float64)
        law, weighting = self._law, self._weighting
        if isinstance(law, LogitNormal):
            law = replace(law, delta=(0.0,) * len(GRANULARITIES))
        if isinstance(weighting, MinSnr):
            same = float(np.exp(np.log(weighting.gammas).mean()))
            weighting = replace(weighting, gammas=(same, same, same))
        coarsest = torch.zeros(len(t), dtype=torch.long)
        tokens = [self._objective.family.tokens(item.bucket[1], item.bucket[0]) for item in slices]
        density = torch.zeros_like(t)
        for count in sorted(set(tokens)):
            density += tokens.count(count) / len(tokens) * law.density(t, coarsest, torch.full((len(t),), count))
        density *= weighting(t, coarsest).double()
        roots = {name: code for code, name in enumerate(sorted({item.root for item in slices}))}
        return HeldOut(
            granularity=np.array([item.granularity for item in slices]),
            root=np.array([roots[item.root] for item in slices]),
            position=-0.5 * self._objective.path.snr(t).log().double().numpy(),
            density=density.numpy(),
        )

    def take(self, number: int, losses: Float[Tensor, "n t"]) -> Line:
        """Take in the held-out losses after update ``number``; returns what the log says of it."""
        if self._first is None:
            self._first = losses.numpy().copy()
            return {**self.values(), "reason": "the first held-out losses, which later ones are compared with"}
        if number < self._config.warm_up:
            return {**self.values(), "reason": f"warm-up: update {number} of {self._config.warm_up}"}
        found = centres(self._first - losses.numpy(), self._held_out)
        target = target_shift(found, self._table, self._config.max_shift)
        self._shift = self._shift + self._config.smoothing * (target.shift - self._shift)
        self._apply()
        reason = "" if target.kept > 0 else "not told from noise"
        if not np.isfinite(found.offset).any():
            reason = "the held-out loss of a granularity has not clearly fallen"
        return {
            **self.values(),
            "reason": reason,
            "centre_offset": _by_level(found.offset),
            "centre_error": _by_level(found.error),
            "kept": target.kept,
        }

    def values(self) -> Line:
        """What is in force."""
        law, weighting = self._objective.time_law, self._objective.weighting
        if isinstance(weighting, MinSnr):
            return {"gamma": _by_level(weighting.gammas)}
        return {"granularity_shift": _by_level(law.delta)} if isinstance(law, LogitNormal) else {}

    def _apply(self) -> None:
        if isinstance(self._weighting, MinSnr):
            table = np.array(self._weighting.gammas)
            macro, meso, micro = gammas_at(table, self._shift - self._table, self._config.gamma_range).tolist()
            self._objective.weighting = replace(self._weighting, gammas=(macro, meso, micro))
        elif isinstance(self._law, LogitNormal):
            self._objective.time_law = replace(self._law, delta=tuple(self._shift.tolist()))

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        first = {} if self._first is None else {_FIRST: torch.from_numpy(self._first)}
        return {_SHIFT: torch.from_numpy(self._shift), _HELD_OUT: self._digest, **first}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what a checkpoint kept; raises CheckpointError where its held-out data are others."""
        if not torch.equal(tensors[_HELD_OUT], self._digest):
            raise CheckpointError(
                "cannot resume, the held-out data changed since the checkpoint, and modulation.kind measured follows "
                "their losses; restore what they were, or start a new run in another output folder"
            )
        self._shift = tensors[_SHIFT].numpy()
        self._first = tensors[_FIRST].numpy() if _FIRST in tensors else None
        self._apply()


class MeasuredFactors:
    """Factors on the planned weights of the levels, from how their gradients meet."""

    def __init__(self, config: ModulationConfig, dataset: SliceDataset, runtime: Runtime):
        self._config = config
        self._granularity = dataset.table.granularity
        self._runtime = runtime
        self._factors = np.ones(len(GRANULARITIES))
        self._grams: deque[np.ndarray] = deque(maxlen=POOLED)

    def weigh(self, update: Update) -> Update:
        """The update with its levels' factors; the very update where all are 1."""
        if (self._factors == 1).all():
            return update
        return refactored(update, self._factors[self._granularity])

    def take(self, number: int, measured: Line) -> Line:
        """Take in a line of kind ``interference``; returns what the log says of it."""
        line = self._runtime.gather(measured)[0]  # sums over processes may differ in the last bit between them
        places = [granularity_index(level) for level in line["levels"]]
        gram = np.full((len(GRANULARITIES),) * 2, np.nan)
        gram[np.ix_(places, places)] = np.array(line["gram_unbiased"], dtype=np.float64)
        self._grams.append(gram)
        if number < self._config.warm_up:
            return {**self.values(), "reason": f"warm-up: update {number} of {self._config.warm_up}"}
        found = level_factors(np.stack(self._grams), self._config.measurements, self._config.factor_range)
        self._factors = self._factors + self._config.smoothing * (found.weights - self._factors)
        return {**self.values(), "reason": found.reason, "relative_progress": _by_level(found.progress)}

    def values(self) -> Line:
        """What is in force."""
        return {"lambda_factor": _by_level(self._factors)}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        grams = {_GRAMS: torch.from_numpy(np.stack(self._grams))} if self._grams else {}
        return {_FACTORS: torch.from_numpy(self._factors), **grams}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what a checkpoint kept."""
        self._factors = tensors[_FACTORS].numpy()
        self._grams.extend(tensors[_GRAMS].numpy() if _GRAMS in tensors else ())


class Modulation:
    """What of a run's modulation is measured; each part None where it stays the recipe's."""

    def __init__(self, laws: MeasuredLaws | None, factors: MeasuredFactors | None):
        self._laws = laws
        self._factors = factors

    def weigh(self, update: Update) -> Update:
        """A planned update with the weights in force; their sum is the plan's."""
        return update if self._factors is None else self._factors.weigh(update)

    def validated(self, number: int, losses: Float[Tensor, "n t"]) -> Line | None:
        """Take in held-out losses, the same in all processes; returns a line for the log."""
        if self._laws is None:
            return None
        return self._line("validation", self._laws.take(number, losses))

    def interfered(self, number: int, measured: Line) -> Line | None:
        """Take in how the gradients met in update ``number``; all processes come here. Returns a line for the log."""
        if self._factors is None:
            return None
        return self._line("interference", self._factors.take(number, measured))

    def values(self) -> Line:
        """All numbers in force, by granularity."""
        return {name: value for part in self._parts() for name, value in part.values().items()}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {name: value for part in self._parts() for name, value in part.tensors().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what a checkpoint kept; raises CheckpointError where its held-out data are others."""
        for part in self._parts():
            part.load(tensors)

    def note(self) -> str:
        """What stays as the recipe says, in one line; empty where nothing does."""
        if self._laws is None:
            return (
                "modulation: noise levels and their weights stay the recipe's (without validation, or with nothing in "
                "them that depends on granularity); the levels' weights are measured"
            )
        if self._factors is None:
            return (
                "modulation: the levels' weights stay the recipe's (no interference section); noise levels are measured"
            )
        return ""

    def _parts(self) -> Sequence[MeasuredLaws | MeasuredFactors]:
        return [part for part in (self._laws, self._factors) if part is not None]

    def _line(self, source: str, found: Line) -> Line:
        return plain({"measured": source, **self.values(), **found})


def _by_level(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    return {level: float(value) for level, value in zip(GRANULARITIES, values, strict=True)}
