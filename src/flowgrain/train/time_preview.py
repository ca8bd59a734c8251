"""Which noise levels each granularity of a recipe will be trained at, and with which weight: numbers before training.

A slice i adds w_i omega(t_i, xi_i) |f - u_t|^2 to its update, with t_i drawn from the law of its granularity and token
count (docs/training.md). Over an epoch the squared error of granularity k at noise level t is therefore multiplied by

    m_k(t) = sum_n W_kn p(t | k, n) omega_k(t) / sum_kn W_kn

where W_kn adds up the planned weights w_i of its slices of n tokens. *Without modulation* is the same recipe with
Delta = 0 (Eq. 29), one gamma (Eq. 32) and lambda = 1 (Eq. 6) for all. No weights of the model are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from flowgrain.config import Layered, build_config, merge_layers, read_layers
from flowgrain.data.buckets import Bucket
from flowgrain.data.collections.hub import PREFIX
from flowgrain.data.collections.tar_shards import SUFFIX
from flowgrain.data.config import DataConfig, LongEdge
from flowgrain.data.dataset import open_split
from flowgrain.data.tuples import plan_epoch
from flowgrain.errors import ConfigError
from flowgrain.families.base import Family
from flowgrain.families.registry import load_skeleton
from flowgrain.flow.paths import Path as FlowPath
from flowgrain.flow.time_laws import LogitNormal
from flowgrain.flow.variance_preserving import VariancePreserving
from flowgrain.granularity import GRANULARITIES, Granularity, granularity_index
from flowgrain.train.recipe import Recipe
from flowgrain.train.setup import check_keys, path_of
from flowgrain.train.weighted_laws import LawSummary, WeightedLaw, level_of_snr, summarize
from flowgrain.train.weighting_config import HANG_ET_AL

Setting = Literal["time.granularity_shift", "weighting.gamma", "tuples.lambdas"]
"""How granularity can act on noise levels and weights."""
NOTICEABLE = 0.02
"""A difference of the mean t between the sizes of a granularity that is worth rows of their own."""
_NO_DATA = "(no data)"


@dataclass(frozen=True)
class SizeTimes:
    """The noise levels of slices of one granularity and size."""

    size: Bucket
    """(width, height) in pixels."""
    tokens: int
    slices: int | None
    """Slices of this size, None where sizes are assumed."""
    resolution_shift: float | None
    """mu of Eq. 31, None where the law has none."""
    modulated: LawSummary
    unmodulated: LawSummary


@dataclass(frozen=True)
class LevelWeight:
    """How much a granularity counts, with and without modulation."""

    lambda_k: float
    """tuples.lambdas, Eq. 6."""
    planned_share: float
    """Of the planned weights w_i, lambda included."""
    mean_weight: float
    """omega over the noise levels that are drawn."""
    mean_weight_unmodulated: float
    loss_share: float
    """Of all that multiplies squared errors: the share of w_i omega."""
    loss_share_unmodulated: float
    falls_above_snr: float | None
    """The signal-to-noise ratio above which omega falls (Min-SNR of noise or v), None where it has no such point."""
    falls_below_t: float | None
    """The noise level of that ratio: omega falls where less noise is left."""


@dataclass(frozen=True)
class LevelTimes:
    """One granularity."""

    granularity: Granularity
    granularity_shift: float
    """Delta of Eq. 29."""
    gamma: float | None
    """Gamma of Eq. 32, None without Min-SNR."""
    slices: int | None
    commonest: SizeTimes
    other_sizes: tuple[SizeTimes, ...]
    """The smallest and the largest size, where their mean t differs by NOTICEABLE."""
    weight: LevelWeight


@dataclass(frozen=True)
class TimePreview:
    """What a recipe's noise levels and loss weights come to, by granularity."""

    recipe: str
    model: str
    law: str
    """logit_normal or uniform."""
    weighting: str
    target: str
    """What the squared error is of: velocity, epsilon, v_prediction or sample."""
    sizes: str
    """Where sizes and slices are from, in words."""
    assumed: bool
    """Whether the sizes are not those of a data set."""
    updates: int | None
    """Updates of the first epoch, None where sizes are assumed."""
    modulates: tuple[Setting, ...]
    """The settings that differ by granularity."""
    levels: tuple[LevelTimes, ...]
    measured: bool
    """Whether training moves these numbers by what it measures: they are then those of the start."""
    modulated: WeightedLaw
    unmodulated: WeightedLaw


@dataclass(frozen=True)
class _Group:
    """The slices of one granularity and size."""

    size: Bucket
    tokens: int
    slices: int | None
    weight: float
    """Their planned weights, summed."""


_Groups = Mapping[Granularity, tuple[_Group, ...]]


def read_recipe(file: Path, overrides: list[str]) -> Recipe:
    """A recipe that need not name its data; raises ConfigError for anything else that training would refuse."""
    layered = read_layers([file], overrides)
    data = layered.values.get("data", {})
    if data is None or (isinstance(data, dict) and data.get("path") is None and data.get("sources") is None):
        layered = merge_layers(layered, Layered({"data": {"path": _NO_DATA}}, {}))
    return build_config(Recipe, layered)


def preview_times(recipe: Recipe, size: Bucket | None = None) -> TimePreview:
    """Noise levels and weights by granularity: of the first epoch's plan where the data are there, else at one size.

    ``size`` (width, height) in pixels takes the place of the data. Raises ConfigError for settings that the model does
    not read and for a size that it cannot take, ModelError for a model whose configuration files cannot be read, and
    DataError for data that are there and cannot be opened.
    """
    model = recipe.model
    family = load_skeleton(model.path, model.family, getattr(torch, model.dtype), model.config, model.vae)
    check_keys(recipe, family)
    updates, reason = None, "" if size else _missing(recipe.data)
    if size is None and not reason:
        groups, updates = _planned(recipe, family)
        where = f"data set {recipe.data.location}"
    else:
        groups, where = _assumed(recipe, family, size, reason)
    modulated, unmodulated = _weighted_laws(recipe, family, groups)
    path = path_of(recipe, family)
    return TimePreview(
        recipe=recipe.name,
        model=model.path,
        law="logit_normal" if isinstance(modulated.law, LogitNormal) else "uniform",
        weighting=recipe.weighting.kind,
        target=path.prediction if isinstance(path, VariancePreserving) else "velocity",
        sizes=where,
        assumed=updates is None,
        updates=updates,
        modulates=_modulates(recipe, tuple(groups)),
        levels=_levels_of(recipe, path, groups, modulated, unmodulated),
        measured=recipe.modulation.measured,
        modulated=modulated,
        unmodulated=unmodulated,
    )


def _modulates(recipe: Recipe, present: tuple[Granularity, ...]) -> tuple[Setting, ...]:
    differing: dict[Setting, bool] = {
        "time.granularity_shift": any(recipe.time.granularity_shift.get(level) for level in present),
        "weighting.gamma": len(set(recipe.weighting.gamma.values)) > 1,
        "tuples.lambdas": len(set(recipe.tuples.lambdas.as_array().tolist())) > 1,
    }
    return tuple(setting for setting, differs in differing.items() if differs)


def _weighted_laws(recipe: Recipe, family: Family, groups: _Groups) -> tuple[WeightedLaw, WeightedLaw]:
    """With and without modulation."""
    shift, kind, path = family.default_shift(), family.default_time_law(), path_of(recipe, family)
    plain_time = recipe.time.model_copy(update={"granularity_shift": {}})
    several = len(set(recipe.weighting.gamma.values)) > 1
    plain_weighting = recipe.weighting.model_copy(update={"gamma": HANG_ET_AL}) if several else recipe.weighting
    lambdas = dict(zip(GRANULARITIES, recipe.tuples.lambdas.as_array().tolist(), strict=True))
    return (
        WeightedLaw(
            recipe.time.law(shift, kind), recipe.weighting.build(path), _shares(groups, dict.fromkeys(lambdas, 1.0))
        ),
        WeightedLaw(plain_time.law(shift, kind), plain_weighting.build(path), _shares(groups, lambdas)),
    )


def _shares(groups: _Groups, divide_by: Mapping[Granularity, float]) -> dict[Granularity, dict[int, float]]:
    """Share of the planned weights by granularity and token count, each granularity's divided by a factor."""
    shares: dict[Granularity, dict[int, float]] = {}
    for level, members in groups.items():
        for group in members:
            by_tokens = shares.setdefault(level, {})
            by_tokens[group.tokens] = by_tokens.get(group.tokens, 0.0) + group.weight / divide_by[level]
    total = sum(sum(by_tokens.values()) for by_tokens in shares.values())
    return {level: {n: weight / total for n, weight in by_tokens.items()} for level, by_tokens in shares.items()}


def _levels_of(
    recipe: Recipe, path: FlowPath, groups: _Groups, modulated: WeightedLaw, unmodulated: WeightedLaw
) -> tuple[LevelTimes, ...]:
    shares, plain_shares = modulated.loss_shares(), unmodulated.loss_shares()
    rows = []
    for level, members in groups.items():
        counts = [group.slices for group in members if group.slices is not None]
        index = granularity_index(level)
        gamma = recipe.weighting.gamma.values[index] if recipe.weighting.kind == "min_snr" else None
        falls_above, falls_below = None, None
        if gamma is not None and isinstance(path, VariancePreserving) and path.prediction != "sample":
            falls_above, falls_below = gamma, level_of_snr(path, gamma)
        commonest, others = _sizes(level, members, modulated, unmodulated)
        weight = LevelWeight(
            lambda_k=recipe.tuples.lambdas.as_array().tolist()[index],
            planned_share=sum(modulated.planned[level].values()),
            mean_weight=modulated.mean_weight(level),
            mean_weight_unmodulated=unmodulated.mean_weight(level),
            loss_share=shares[level],
            loss_share_unmodulated=plain_shares[level],
            falls_above_snr=falls_above,
            falls_below_t=falls_below,
        )
        shift = recipe.time.granularity_shift.get(level, 0.0)
        rows.append(LevelTimes(level, shift, gamma, sum(counts) if counts else None, commonest, others, weight))
    return tuple(rows)


def _sizes(
    level: Granularity, groups: tuple[_Group, ...], modulated: WeightedLaw, unmodulated: WeightedLaw
) -> tuple[SizeTimes, tuple[SizeTimes, ...]]:
    """The commonest size; the smallest and the largest where the law differs noticeably between them."""

    def times(group: _Group) -> SizeTimes:
        laws = [summarize(side.law, level, group.tokens) for side in (modulated, unmodulated)]
        law, shift = modulated.law, None
        if isinstance(law, LogitNormal) and law.shift is not None:
            shift = law.shift(torch.tensor([group.tokens])).item()
        return SizeTimes(group.size, group.tokens, group.slices, shift, laws[0], laws[1])

    ordered = sorted(groups, key=lambda group: (group.tokens, group.size))
    commonest = times(max(ordered, key=lambda group: group.slices or 0))
    smallest, largest = times(ordered[0]), times(ordered[-1])
    if abs(largest.modulated.mean - smallest.modulated.mean) < NOTICEABLE:
        return commonest, ()
    return commonest, tuple(row for row in (smallest, largest) if row.tokens != commonest.tokens)


def _planned(recipe: Recipe, family: Family) -> tuple[_Groups, int]:
    """The slices of the first epoch's plan by granularity and size, and how many updates it has."""
    dataset, _ = open_split(recipe.data, family.capabilities.pixel_multiple)
    plan = plan_epoch(dataset.table, recipe.tuples, recipe.seed, epoch=0)
    weights = np.zeros(len(dataset))
    for update in plan:
        for micro in update.micro_batches:
            weights[micro.slices] = micro.weights
    found: dict[tuple[int, Bucket], list[float]] = {}
    for item, weight in zip(dataset.slices, weights.tolist(), strict=True):
        if not weight:
            continue  # drop_last leaves it out
        found.setdefault((item.granularity, item.bucket), []).append(weight)
    groups: dict[Granularity, tuple[_Group, ...]] = {}
    for (index, size), members in sorted(found.items()):
        group = _Group(size, family.tokens(size[1], size[0]), len(members), sum(members))
        level = GRANULARITIES[index]
        groups[level] = (*groups.get(level, ()), group)
    return groups, len(plan)


def _assumed(recipe: Recipe, family: Family, size: Bucket | None, reason: str) -> tuple[_Groups, str]:
    """One slice of each granularity in every root, all of one size: --size, the recipe's resolution or the model's."""
    multiple, data = family.capabilities.pixel_multiple, recipe.data
    named = next((part for part in (data, *(data.sources or ())) if part.resolution or part.buckets), None)
    if size is not None:
        origin = "--size"
        if size[0] % multiple or size[1] % multiple:
            raise ConfigError(f"--size {size[0]}x{size[1]}: no multiple of the model's {multiple} px")
    elif named is not None and named.buckets is not None:
        size, origin = named.buckets[0], "the first of data.buckets"
    else:
        rule = named.resolution if named is not None else None
        resolution = rule.long_edge if isinstance(rule, LongEdge) else rule
        side = (resolution or family.capabilities.native_size) // multiple * multiple
        if not side:
            raise ConfigError(
                f"data.resolution: {resolution} is below the {multiple} px that the model's sides come in"
            )
        size, origin = (side, side), "data.resolution" if resolution else "the model's own size"
    levels: tuple[Granularity, ...] = ("macro",) if data.levels == ("macro",) else GRANULARITIES
    factors = recipe.tuples.lambdas.as_array().tolist()
    tokens = family.tokens(size[1], size[0])
    groups: dict[Granularity, tuple[_Group, ...]] = {
        level: (_Group(size, tokens, None, factors[granularity_index(level)]),) for level in levels
    }
    where = f"{size[0]}x{size[1]} ({origin}), one slice of each granularity a root"
    return groups, f"assumed: {where}{f'; {reason}' if reason else ''}"


def _missing(data: DataConfig) -> str:
    """Why the data cannot be looked at; empty where they are there."""
    for path in [data.path] if data.path is not None else [source.path for source in data.sources or ()]:
        if str(path) == _NO_DATA:
            return "the recipe names no data"
        if not (str(path).startswith(PREFIX) or str(path).endswith(SUFFIX) or path.exists()):
            return f"{path} is not there"
    return ""
