"""The design of the granularity experiment: arms, stages and cells."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from .cells import Adapter, Arm, Cell, Model
from .domains import CHOOSING, CONFIRMING, REPORTED
from .rates import STAGE as RATES
from .rates import Triple, rate_cells, rate_settings, read_rates
from .results import read
from .running import BASE, Design

STAGES = (RATES, "table", "lora", "few", "vary", "confirm", "steered")
PER_UPDATE = 8
"""Slices an update of the baseline has (Table 3)."""
LARGE = 24
"""What 8 roots of three slices make: an update of the tuple arms."""
SMALL_ROOTS = 3
"""Roots whose slices come nearest to the baseline's update."""


def _paced(batch: int, slices: float, *settings: str) -> tuple[str, ...]:
    """Settings of an arm whose updates hold so many slices.

    Warm-up and the horizon of the averaged weights are counted in updates by the recipes. Here they are the same in
    slices for all arms: else large updates would be averaged over three times as much of the budget.
    """
    decay, warmup = 0.98 ** (slices / PER_UPDATE), round(20 * PER_UPDATE / slices)
    return (f"tuples.batch_size={batch}", f"ema.decay={decay:.4f}", f"schedule.warmup={warmup}", *settings)


_TUPLES, _SMALL = _paced(8, LARGE), _paced(SMALL_ROOTS, 3 * SMALL_ROOTS)
_SHARED: dict[str, Arm] = {
    "baseline": Arm("baseline", slices=False),
    "slices": Arm("slices-random"),
    "slices-large": Arm("slices-random", _paced(LARGE, LARGE)),
    "unrelated": Arm("slices-tuples", (*_TUPLES, "tuples.grouping=shuffled")),
    "tuples": Arm("slices-tuples", _TUPLES),
    "tuples-small": Arm("slices-tuples", _SMALL),
    "modulation": Arm("slices-modulation"),
    "full": Arm("granularity", _TUPLES),
    "full-small": Arm("granularity", _SMALL),
}
_HALF = _paced(4, 8)
IMPROVED = "no-micro"
"""Found on the domains kept aside by the stated rule and confirmed on two more: the lowest whole-picture loss of the
settings that stay ahead of the baseline on close-ups."""
_NO_MICRO = Arm("granularity", (*_HALF, "data.levels=[macro, meso]"))
LOGGED = ("slices", "tuples-small", "slices-large", "unrelated", "tuples")
"""Arms whose runs log interference and oscillation: how levels meet, how much updates undo one another. The log changes
no bit of training."""
ARMS: dict[Model, dict[str, Arm]] = {
    "flux": {
        name: replace(arm, settings=(*arm.settings, "interference.every=16")) if name in LOGGED else arm
        for name, arm in _SHARED.items()
    }
    | {IMPROVED: _NO_MICRO},
    # w/o Min-SNR in the paper's sense is "tuples" here: weight 1. The baseline is shown with both. A run costs twice
    # one of the other model, so two kinds of arms, ours and not the paper's, are left out.
    "sdxl": {name: arm for name, arm in _SHARED.items() if not name.endswith(("-small", "-large"))}
    | {"baseline-min-snr": Arm("baseline", ("weighting.kind=min_snr",), slices=False)},
}
_DOUBLE = "time.granularity_shift={macro: 1.0, meso: 0.0, micro: -1.0}"
VARIED: dict[str, Arm] = {
    "baseline": _SHARED["baseline"],
    "full-small": _SHARED["full-small"],
    "half-shift": Arm("granularity", (*_SMALL, "time.granularity_shift={macro: 0.25, meso: 0.0, micro: -0.25}")),
    "double-shift": Arm("granularity", (*_SMALL, _DOUBLE)),
    "reversed-shift": Arm("granularity", (*_SMALL, "time.granularity_shift={macro: -0.5, meso: 0.0, micro: 0.5}")),
    "half-slices": Arm("granularity", (*_HALF, "tuples.share={meso: 0.5, micro: 0.5}")),
    "quarter-slices": Arm("granularity", (*_paced(5, 7.5), "tuples.share={meso: 0.25, micro: 0.25}")),
    "half-slices-unshifted": Arm("slices-tuples", (*_HALF, "tuples.share={meso: 0.5, micro: 0.5}")),
    "macro-weight": Arm("granularity", (*_SMALL, "tuples.lambdas={macro: 3.0}")),
    IMPROVED: _NO_MICRO,
    "plain-captions": Arm("granularity", _SMALL, cut="plain-captions"),
    "larger-parts": Arm("granularity", _SMALL, cut="larger-parts"),
}
"""Settings that may help granularity, each one step from ``full-small``; tried on domains kept aside."""
CONFIRMED: dict[str, Arm] = {
    "baseline": _SHARED["baseline"],
    "full": _SHARED["full"],
    "full-small": _SHARED["full-small"],
    IMPROVED: _NO_MICRO,
    "double-shift": VARIED["double-shift"],
    "no-micro-double-shift": Arm("granularity", (*_NO_MICRO.settings, _DOUBLE)),
}
"""What is checked on two more domains: of the settings tried, the one that lowers the whole-picture loss while it stays
ahead of the baseline on close-ups, the one whose pictures come nearer to their references, and both."""
_HELD = (*_SMALL, "data.holdout=0.1")
STEERED: dict[str, Arm] = {
    "none": Arm("slices-tuples", _HELD, steered=True),
    "fixed": Arm("granularity", _HELD, steered=True),
    "measured": Arm("measured", _HELD, steered=True),
}
"""Modulation by what a run measures. It steers by a tenth of the training pictures, which its controls do without too;
what is reported is measured afterwards, on the held-out pictures of all arms."""
_TRIED = {
    "vary": (VARIED, CHOOSING),
    "confirm": (CONFIRMED, CONFIRMING),
    "steered": (STEERED, REPORTED),
}
ABLATED = ("baseline", "tuples", "modulation", "full")
FEW = ("baseline", "slices", "tuples", "full")
FEW_IMAGES = 16

SEEDS = {"table": 3, "lora": 3, "few": 3, "vary": 2, "confirm": 3, "steered": 3}
N1 = 1600
FEW_N1 = 480
CHECKPOINTS = (0.25, 0.5, 1.0, 1.5)

DESIGNS: dict[str, Design] = {
    RATES: Design(N1, (1.0,)),
    "table": Design(N1, CHECKPOINTS, drawn=(0.5, 1.0, 1.5)),
    "lora": Design(N1, CHECKPOINTS, drawn=(1.0, 1.5)),
    "few": Design(FEW_N1, CHECKPOINTS, drawn=(1.0, 1.5)),
    "vary": Design(N1, (1.0,), drawn=(1.0,)),
    "confirm": Design(N1, (1.0,), drawn=(1.0,)),
    "steered": Design(N1, (1.0, 1.5)),
    "quick": Design(48, (1.0,), drawn=(1.0,), seeds=1),
}


def cells_of(stage: str, results: Path) -> Iterator[Cell]:
    """The cells of a stage, seeds outermost so that a budget that ends early leaves whole replicates.

    Beside ``results`` lies ``rates.json``, what the rates stage chose; later stages are empty without it.
    """
    if stage == RATES:
        yield from rate_cells(tuned(), read(results))
        return
    rates = read_rates(rates_path(results))
    if stage in _TRIED:
        yield from _tried(stage, *_TRIED[stage], rates)
        return
    for seed in range(SEEDS[stage]):
        for model, adapter, arm in _combinations(stage):
            for domain in REPORTED:
                if arm == BASE:
                    if seed == 0:
                        yield Cell(stage, model, adapter, domain, arm, seed)
                elif (rate := rates.get(f"{model}/{adapter}/{arm}")) is not None:
                    images = FEW_IMAGES if stage == "few" else None
                    yield Cell(stage, model, adapter, domain, arm, seed, images, rate_settings(model, rate))


def arm_of(cell: Cell) -> Arm | None:
    """The arm of a cell; None for the model without adapter."""
    return (_TRIED[cell.stage][0] if cell.stage in _TRIED else ARMS[cell.model]).get(cell.arm)


def cuts_of(cells: Iterable[Cell]) -> set[str]:
    """How the data of these cells is cut; the ordinary way too, which measures need."""
    return {"slices"} | {arm.cut for cell in cells if (arm := arm_of(cell)) is not None}


def fractions_of(cell: Cell) -> tuple[float | None, ...]:
    """The checkpoints that pictures are drawn at; None is the model without adapter."""
    return (None,) if cell.arm == BASE else DESIGNS[cell.stage].drawn


def quick_cells() -> list[Cell]:
    """Two cells that show that everything runs."""
    return [Cell("quick", "flux", "dora", "openmoji", arm, 0, 8) for arm in ("baseline", "full")]


def adapter_of(model: Model) -> Adapter:
    """What the paper trains: DoRA on FLUX, LoCon (LoRA with convolutions) on SDXL."""
    return "dora" if model == "flux" else "lora"


def rates_path(results: Path) -> Path:
    """Where chosen rates are kept: beside the results."""
    return results.with_name("rates.json")


def tuned() -> list[Triple]:
    """Every (model, adapter, arm) whose learning rate is chosen."""
    wanted: list[Triple] = [("flux", "dora", arm) for arm in ARMS["flux"]]
    wanted += [("sdxl", "lora", arm) for arm in ARMS["sdxl"]]
    return wanted + [("flux", "lora", arm) for arm in ABLATED]


def _combinations(stage: str) -> Iterator[tuple[Model, Adapter, str]]:
    models: tuple[Model, ...] = ("flux", "sdxl")
    for model in models:
        if stage == "lora":
            if model == "flux":
                yield from ((model, "lora", arm) for arm in ABLATED)
        elif stage == "few":
            yield from ((model, adapter_of(model), arm) for arm in FEW)
        else:
            yield from ((model, adapter_of(model), arm) for arm in (BASE, *ARMS[model]))


def _tried(stage: str, arms: Mapping[str, Arm], domains: Sequence[str], rates: Mapping[str, float]) -> Iterator[Cell]:
    """At the rate of the arm, or of ``full-small``, which it is a step from."""
    for seed in range(SEEDS[stage]):
        for arm in arms:
            rate = rates.get(f"flux/dora/{arm if arm in _SHARED else 'full-small'}")
            for domain in domains if rate is not None else ():
                yield Cell(stage, "flux", "dora", domain, arm, seed, None, rate_settings("flux", rate))
