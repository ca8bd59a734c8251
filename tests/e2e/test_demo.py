"""The demo end to end on a handful of pictures: every step, the report, and a second run that keeps everything."""

import re
import shutil
from pathlib import Path

import pytest

from flowgrain.demo.domains import domain_names, load_domain
from flowgrain.demo.page import REPORT_NAME, compared_pairs, gather_arms, measure, write_report
from flowgrain.demo.study import BASE, DemoPlan, check_arms, cut, draw_pictures, recipe, train_arm
from flowgrain.errors import ConfigError
from flowgrain.report.arms import Arm
from flowgrain.train.loop import Observer


def silent(what, done, total):
    pass


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    """Four training and three held-out pictures of an embedded domain."""
    full = load_domain("openmoji")
    folder = tmp_path_factory.mktemp("domain")
    for part, count in (("train", 4), ("holdout", 3)):
        (folder / part).mkdir()
        for image in sorted((full.folder / part).glob("*.webp"))[:count]:
            for suffix in (".webp", ".txt"):
                shutil.copy(image.with_suffix(suffix), folder / part)
    captions = [path.read_text(encoding="utf-8").strip() for path in sorted((folder / "holdout").glob("*.txt"))]
    (folder / "prompts.txt").write_text(captions[0] + "\n", encoding="utf-8")
    close_ups = "".join(f"close-up of {caption}\n" for caption in captions[:2])
    (folder / "prompts_closeup.txt").write_text(close_ups, encoding="utf-8")
    return type(full)("openmoji", full.title, full.trigger, full.credit, folder)


def run(plan):
    cut(plan, silent)
    assert all(train_arm(plan, arm, Observer()) for arm in plan.arms)
    drawn = [(BASE, None), *((arm, f) for f in recipe(plan, plan.arms[0]).budget.checkpoints for arm in plan.arms)]
    speeds = {key: draw_pictures(plan, *key, silent) for key in drawn}
    arms = gather_arms(plan, speeds)
    metrics = measure(plan, arms)
    write_report(plan, arms, metrics, {"everything": 1.0}, plan.out / REPORT_NAME)
    return speeds, arms, metrics


@pytest.mark.parametrize(("architecture", "modulation"), [("flux", "Noise levels by level"), ("sdxl", "Loss weights")])
def test_the_demo_ends_with_a_report_and_a_second_run_repeats_nothing(domain, tmp_path, architecture, modulation):
    plan = DemoPlan(domain, tmp_path, architecture, budget=36, seeds=1, steps=2)
    speeds, arms, metrics = run(plan)
    assert [arm.title for arm in arms] == ["base", "baseline 1x", "granularity 1x", "baseline 1.5x", "granularity 1.5x"]
    assert all(len(arm.pictures) == 5 and all(p.path.exists() for p in arm.pictures) for arm in arms)
    assert all(picture.reference is not None for arm in arms for picture in arm.pictures)
    budgets = [arm.training_cost.slices for arm in arms if arm.fraction == 1.0]
    assert all(36 <= slices < 36 + 24 for slices in budgets)
    page = (tmp_path / REPORT_NAME).read_text(encoding="utf-8")
    for text in ("Baseline against granularity", "fixed-t validation loss", "MobileNetV2", "Fréchet", "openmoji style"):
        assert text.lower() in page.lower() or text.replace("é", "e").lower() in page.lower()
    assert modulation in page
    assert not re.search(r'(src|href)="(https?:)?//', page), "the page must need nothing from outside"
    assert {result.subset for result in metrics.results} >= {"whole images", "close-ups", "held-out micro slices"}

    pictures = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    again, _, repeated = run(plan)
    assert all(value is None for value in again.values()) and None not in speeds.values()
    assert pictures == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")}
    assert repr(repeated) == repr(metrics)  # repr: an interval over two prompts may be nan, which equals nothing


def test_unknown_domains_and_arms():
    assert {"fluent3d", "openmoji"} <= set(domain_names())
    with pytest.raises(ConfigError, match="did you mean 'openmoji'"):
        load_domain("openmoj")
    assert check_arms("baseline, slices-tuples") == ("baseline", "slices-tuples")
    for text in ("", "baseline,baseline", "nothing"):
        with pytest.raises(ConfigError):
            check_arms(text)


@pytest.mark.parametrize("architecture", ["flux", "sdxl"])
def test_demo_arms_train_on_their_own_form_of_the_same_pictures(tmp_path, architecture):
    plan = DemoPlan(load_domain("fluent3d"), tmp_path, architecture)
    baseline, full = recipe(plan, "baseline"), recipe(plan, "granularity")
    assert Path(baseline.data.path) == plan.domain.train and Path(full.data.path) == plan.dataset
    assert baseline.budget == full.budget and baseline.validation == full.validation
    assert baseline.adapter == full.adapter and baseline.optimizer == full.optimizer


def test_few_pairs_are_compared_and_the_papers_claim_is_one_of_them():
    arms = [Arm(BASE, None), *(Arm(name, f) for f in (1.0, 1.5) for name in ("baseline", "granularity"))]
    assert compared_pairs(arms) == [
        ("baseline 1x", "granularity 1x"),
        ("baseline 1.5x", "granularity 1.5x"),
        ("baseline 1.5x", "granularity 1x"),
    ]
    assert compared_pairs([Arm(BASE, None), Arm("granularity", 1.0)]) == [("base", "granularity 1x")]
