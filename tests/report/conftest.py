"""A small made-up comparison: two runs at two checkpoints and a base model, with pictures of coloured noise."""

import numpy as np
import pytest
from made_up_evaluation import write_evaluation
from PIL import Image

from flowgrain.data.records import SliceRecord
from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.table import MetricDifference, MetricResult, MetricTable, loss_metrics
from flowgrain.flow.time_laws import LogitNormal
from flowgrain.report.arms import Arm, Picture, describe_data
from flowgrain.report.run_log import parse_log
from flowgrain.report.sections.training import TimeLaws

T = [round(0.05 + 0.1 * k, 2) for k in range(10)]
LEVELS = ("macro", "meso", "micro")
PROMPTS = ("a fox, toy style", "a tent, toy style", "<b>glasses</b> & $x^2$", "a very long prompt about a red fox " * 3)


def save_picture(path, seed, size=64):
    generator = np.random.default_rng(seed)
    small = generator.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC).save(path)
    return path


def log_lines(levels, updates=150, seed=0, drop=0.0):
    generator = np.random.default_rng(seed)
    lines = []
    for update in range(1, updates + 1):
        lines.append(
            {
                "kind": "update",
                "update": update,
                "slices": update * 12,
                "seconds": update * 0.4,
                "loss_by_level": {level: 0.25 + 0.1 / update + 0.03 * generator.normal() for level in levels},
                "mean_t_by_level": {level: 0.5 + 0.05 * generator.normal() for level in levels},
                "count_by_level": {level: 12 // len(levels) for level in levels},
            }
        )
        if update in (updates * 2 // 3, updates):
            lines.append(validation_line(update, update / (updates * 2 // 3), seed, drop * update / updates))
    return lines


def validation_line(update, fraction, seed, drop=0.0):
    curve = [0.30 - 0.5 * t * (1 - t) - drop for t in T]
    roots = np.random.default_rng(99).uniform(0.15, 0.35, size=30)
    noise = np.random.default_rng(seed + update).normal(scale=0.002, size=30)
    return {
        "kind": "validation",
        "update": update,
        "slices": update * 12,
        "budget_fraction": fraction,
        "loss": sum(curve) / 10,
        "t": T,
        "by_level": {level: [v + 0.02 * i for v in curve] for i, level in enumerate(LEVELS)},
        "per_root_by_level": {
            level: {f"root{k}": float(roots[k] - drop + noise[k]) for k in range(30)} for level in LEVELS
        },
    }


def pictures_of(folder, name, seed):
    found = []
    for kind in ("whole", "close-up"):
        for index, prompt in enumerate(PROMPTS):
            path = save_picture(folder / f"{name}-{kind}-{index}.png", seed * 100 + index)
            reference = save_picture(folder / f"reference-{index}.png", index) if kind == "whole" else None
            found.append(Picture(prompt, 0, path, reference, kind))
    return found


@pytest.fixture(scope="session")
def arms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    whole = parse_log(log_lines(("macro",), seed=1, drop=0.010))
    slices = parse_log(log_lines(LEVELS, seed=2, drop=0.016))
    common = {"optimizer": {"lr": 1e-4}, "seed": 0}
    made = [Arm("base", None, pictures_of(folder, "base", 1), parse_log([validation_line(0, 0.0, 3)]))]
    seed = 2
    for fraction in (1.0, 1.5):
        for name, log, shift in (("whole", whole, {}), ("slices", slices, {"macro": 0.5, "meso": 0.0, "micro": -0.5})):
            settings = {**common, "time": {"granularity_shift": shift}, "data": {"levels": len(log.levels())}}
            pictures = pictures_of(folder, f"{name}{fraction}", seed)
            made.append(Arm(name, fraction, pictures, log, settings, 11.9, 979_200))
            seed += 1
    return made


@pytest.fixture(scope="session")
def metrics(arms):
    pairs = [("whole 1x", "slices 1x"), ("whole 1.5x", "slices 1.5x"), ("base", "slices 1.5x")]
    table = MetricTable()
    for level in LEVELS:
        losses = {arm.title: arm.losses(level) for arm in arms}
        table += loss_metrics(losses, subset=f"held-out {level}", pairs=pairs, bootstrap=Bootstrap(resamples=200))
    note = "38 pictures, fewer than 2048: a Frechet distance is biased for few pictures"
    for subset in ("whole images", "close-ups"):
        name, encoder = "MobileNetV2 Frechet distance", "MobileNetV2 (ImageNet), pooled 1280-d, 128 px"
        results = tuple(
            MetricResult(name, a.title, subset, 640.0 - 3 * i, 618.0, 661.0, 0.95, 38, 38, encoder, False, note)
            for i, a in enumerate(arms)
        )
        differences = tuple(
            MetricDifference(name, subset, first, second, v, v - 4, v + 4, 0.95, 38, False)
            for (first, second), v in zip(pairs, (2.0, 5.5, -6.1), strict=True)
        )
        table += MetricTable(results, differences)
    return table


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    records = []
    for index in range(20):
        for level in LEVELS[: 1 + index % 3]:
            path = f"images/{index}-{level}.png"
            save_picture(folder / path, index)
            records.append(
                SliceRecord(
                    slice_id=f"r{index}/{level}0",
                    root=f"r{index}",
                    image="a.png",
                    image_sha1="0" * 40,
                    level=level,
                    granularity=level,
                    path=path,
                    width=64,
                    height=64,
                    box=(0.0, 0.0, 64.0, 64.0),
                    crop=(0.0, 0.0, 64.0, 64.0),
                    scale=1.0,
                    action="native",
                    reason="test",
                    parent=None,
                    detector="grid",
                    score=1.0,
                    caption=f"close-up of a <i>thing</i> {index}, toy style",
                    caption_source="template",
                )
            )
    return describe_data("toy set", records, folder, rejected={"too small": 4}, credit="made up for tests")


@pytest.fixture(scope="session")
def laws():
    return TimeLaws(LogitNormal(), LogitNormal(delta=(0.5, 0.0, -0.5)), {"macro": 64, "meso": 64, "micro": 64})


@pytest.fixture(scope="session")
def page(arms, data, metrics, laws):
    from flowgrain.report.comparison import comparison_page

    return comparison_page(
        "Slices against whole pictures",
        "A made-up comparison for the tests.",
        arms,
        data,
        metrics,
        laws=laws,
        stages={"decompose": 12.3, "train": 118.0, "sample": 300.0},
        versions={"torch": "2.13.0", "diffusers": "0.42.1"},
    )


@pytest.fixture(scope="session")
def evaluation_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    write_evaluation(folder, [validation_line(0, 0.0, 3), *log_lines(LEVELS, updates=60)])
    return folder


@pytest.fixture(scope="session")
def evaluation(evaluation_folder):
    from flowgrain.report.sources import Places, read_evaluation

    return read_evaluation([evaluation_folder], Places())


@pytest.fixture(scope="session")
def evaluation_report(evaluation):
    from flowgrain.report.evaluation_page import evaluation_page

    return evaluation_page(evaluation, rows=4)


@pytest.fixture(scope="session")
def written(evaluation, evaluation_report, tmp_path_factory):
    from flowgrain.report.output import write_report
    from flowgrain.report.sheets import sheets_of

    return write_report(evaluation_report, sheets_of(evaluation), tmp_path_factory.mktemp("out") / "report.html")
