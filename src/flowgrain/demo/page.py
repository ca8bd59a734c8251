"""From the demo's files to its report."""

import json
from collections import Counter
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import torch
import yaml

from flowgrain.data.images import list_images
from flowgrain.data.records import REJECTS_NAME
from flowgrain.demo.study import BASE, DemoPlan, pictures, read_records, recipe
from flowgrain.evaluate.encoders.mobilenet import MobileNetV2Encoder
from flowgrain.evaluate.table import MetricTable, PictureSet, loss_metrics, picture_metrics
from flowgrain.families.base import Family
from flowgrain.families.registry import load_family
from flowgrain.granularity import GRANULARITIES
from flowgrain.report.arms import Arm, DataInfo, Picture, PictureKind, describe_data
from flowgrain.report.comparison import comparison_page
from flowgrain.report.run_log import RunLog, parse_log
from flowgrain.report.sections.training import LossWeights, TimeLaws
from flowgrain.train.log import read_log
from flowgrain.train.setup import path_of
from flowgrain.train.state import RECIPE_NAME, RUN_NAME

REPORT_NAME = "report.html"
SUBSETS: dict[PictureKind, str] = {"whole": "whole images", "close-up": "close-ups"}


def gather_arms(plan: DemoPlan, speeds: Mapping[tuple[str, float | None], float | None]) -> list[Arm]:
    """The base model, then every arm at every checkpoint, in the order of the report's columns."""
    logs = {arm: parse_log(read_log(plan.run(arm))) for arm in plan.arms}
    untrained = RunLog((), tuple(v for v in logs[plan.arms[0]].validations if v.update == 0))
    arms = [Arm(BASE, None, pictures(plan, BASE, None), untrained, pictures_per_second=speeds.get((BASE, None)))]
    for fraction in recipe(plan, plan.arms[0]).budget.checkpoints:
        for name in plan.arms:
            run = json.loads((plan.run(name) / RUN_NAME).read_text(encoding="utf-8"))
            settings = yaml.safe_load((plan.run(name) / RECIPE_NAME).read_text(encoding="utf-8"))
            arms.append(
                Arm(
                    name,
                    fraction,
                    pictures(plan, name, fraction),
                    logs[name],
                    settings,
                    speeds.get((name, fraction)),
                    run["trainable_parameters"],
                )
            )
    return arms


def compared_pairs(arms: list[Arm]) -> list[tuple[str, str]]:
    """Arms at equal budget, then each later arm at its first checkpoint against the first arm at its last.

    The last kind is the paper's claim (granularity at 1.0 N1 against the baseline at 1.5 N1). Few pairs, because each
    more is a chance more to find a difference where there is none.
    """
    trained = [arm for arm in arms if arm.fraction is not None]
    pairs = [(a.title, b.title) for a, b in combinations(trained, 2) if a.fraction == b.fraction]
    names = list(dict.fromkeys(arm.name for arm in trained))
    first, last = trained[0].fraction, trained[-1].fraction
    if first != last:
        at = {(arm.name, arm.fraction): arm.title for arm in trained}
        pairs += [(at[names[0], last], at[name, first]) for name in names[1:]]
    return pairs or [(arms[0].title, arms[-1].title)]


def measure(plan: DemoPlan, arms: list[Arm]) -> MetricTable:
    """Validation loss by level, then picture metrics on whole images and on close-ups."""
    pairs = compared_pairs(arms)
    table = MetricTable()
    for level in GRANULARITIES:
        losses = {arm.title: arm.losses(level) for arm in arms}
        if all(losses.values()):
            table += loss_metrics(losses, subset=f"held-out {level} slices", pairs=pairs)
    encoder = MobileNetV2Encoder()
    records = read_records(plan.held_out)
    pools: dict[PictureKind, list[Path]] = {
        "whole": [plan.held_out / r.path for r in records if r.granularity == "macro"],
        "close-up": [plan.held_out / r.path for r in records if r.granularity == "meso"],
    }
    for kind, subset in SUBSETS.items():
        sets = [_picture_set(arm, kind) for arm in arms]
        if pools[kind] and all(item.images for item in sets):
            table += picture_metrics(sets, pools[kind], encoder, subset=subset, pairs=pairs)
    return table


def write_report(
    plan: DemoPlan, arms: list[Arm], metrics: MetricTable, stages: Mapping[str, float], path: Path
) -> None:
    """Write the self-contained page."""
    run = json.loads((plan.run(plan.arms[0]) / RUN_NAME).read_text(encoding="utf-8"))
    roots = len(list_images(plan.domain.train))
    subtitle = (
        f"{plan.model} fine-tuned on {roots} pictures of {plan.domain.title}: {' against '.join(plan.arms)}, the same "
        f"{plan.budget} slices at 1.0 N1, one run an arm"
    )
    family = load_family(plan.model, None, torch.float32, torch.device("cpu"))
    page = comparison_page(
        "Baseline against granularity" if len(plan.arms) == 2 else "Arms side by side",
        subtitle,
        arms,
        _data(plan),
        metrics,
        laws=_laws(plan, family),
        weights=_weights(plan, family),
        stages=stages,
        versions=run["versions"],
    )
    page.write(path)


def _picture_set(arm: Arm, kind: PictureKind) -> PictureSet:
    chosen: list[Picture] = [picture for picture in arm.pictures if picture.kind == kind]
    own = [picture.reference for picture in chosen]
    references = [path for path in own if path is not None]
    return PictureSet(
        arm.title,
        [picture.path for picture in chosen],
        [picture.prompt for picture in chosen],
        references if len(references) == len(chosen) else None,
    )


def _data(plan: DemoPlan) -> DataInfo:
    rejects = (plan.dataset / REJECTS_NAME).read_text(encoding="utf-8").splitlines()
    reasons = Counter(json.loads(line)["code"] for line in rejects)
    records = read_records(plan.dataset)
    return describe_data(plan.domain.title, records, plan.dataset, rejected=reasons, credit=plan.domain.credit)


def _laws(plan: DemoPlan, family: Family) -> TimeLaws | None:
    """The law without modulation, and the last arm's, at the commonest bucket of each level.

    None for a diffusion model, whose noise levels are drawn alike for all.
    """
    if family.default_time_law() == "uniform":
        return None
    tokens = {}
    for granularity in GRANULARITIES:
        sizes = Counter((r.width, r.height) for r in read_records(plan.dataset) if r.granularity == granularity)
        if sizes:
            (width, height), _ = sizes.most_common(1)[0]
            tokens[granularity] = family.tokens(height, width)
    modulated = recipe(plan, plan.arms[-1]).time
    shift, kind = family.default_shift(), family.default_time_law()
    return TimeLaws(
        modulated.model_copy(update={"granularity_shift": {}}).law(shift, kind), modulated.law(shift, kind), tokens
    )


def _weights(plan: DemoPlan, family: Family) -> LossWeights | None:
    """The first arm's loss weights and the last one's; None where neither weighs."""
    first, last = recipe(plan, plan.arms[0]), recipe(plan, plan.arms[-1])
    if first.weighting.kind == last.weighting.kind == "none":
        return None
    return LossWeights(
        first.weighting.build(path_of(first, family)),
        last.weighting.build(path_of(last, family)),
    )
