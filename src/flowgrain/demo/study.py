"""The steps of the demo, each resumable: run again after an interruption, it goes on where it stopped."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from flowgrain.config import load_config
from flowgrain.data.captions import read_caption
from flowgrain.data.images import list_images
from flowgrain.data.records import MANIFEST_NAME, SliceRecord
from flowgrain.demo.domains import Domain
from flowgrain.errors import ConfigError
from flowgrain.families.registry import load_family
from flowgrain.report.arms import Picture, PictureKind
from flowgrain.sample.generate import SampleConfig
from flowgrain.sample.manifest import read_manifest
from flowgrain.sample.run_folder import ModelChoice, choose_checkpoint
from flowgrain.sample.session import SamplePlan, draw
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose
from flowgrain.slices.presets import preset_path
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import Recipe, find_recipe
from flowgrain.train.state import RUN_NAME

Architecture = Literal["flux", "sdxl"]
BASE = "base"
GUIDANCE: dict[Architecture, float] = {"flux": 2.5, "sdxl": 4.0}
"""At which each embedded model draws well; embedded guidance of the first, classifier-free of the second."""

Stage = Callable[[str, int, int], None]
"""(what, done, total)"""


@dataclass(frozen=True)
class DemoPlan:
    """What the demo compares."""

    domain: Domain
    out: Path
    architecture: Architecture = "flux"
    arms: tuple[str, ...] = ("baseline", "granularity")
    budget: int = 2400
    """N1 in slices: every arm sees the same number of slices."""
    seeds: int = 2
    seed: int = 0
    steps: int = 20
    """Of sampling."""

    @property
    def sampler(self) -> SampleConfig:
        """How pictures are drawn."""
        return SampleConfig(steps=self.steps, guidance=GUIDANCE[self.architecture], batch_size=32)

    @property
    def model(self) -> str:
        """The embedded model that is fine-tuned."""
        return f"tiny-{self.architecture}"

    @property
    def dataset(self) -> Path:
        """Decomposed training pictures."""
        return self.out / "dataset"

    @property
    def held_out(self) -> Path:
        """Decomposed held-out pictures: validation and references."""
        return self.out / "held_out"

    def run(self, arm: str) -> Path:
        """Run folder of an arm."""
        return self.out / "runs" / arm

    def samples(self, arm: str, fraction: float | None) -> Path:
        """Sample folder of an arm at a checkpoint."""
        return self.out / "samples" / (arm if fraction is None else f"{arm}-{fraction:g}")


def check_arms(text: str, architecture: Architecture = "flux") -> tuple[str, ...]:
    """Names of arms from a comma-separated list; raises ConfigError for an unknown or repeated one."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if len(set(names)) != len(names) or not names:
        raise ConfigError(f"--arms '{text}': name each arm once, for example baseline,granularity")
    for name in names:
        find_recipe(f"tiny-{architecture}-{name}")
    return names


def cut(plan: DemoPlan, on_stage: Stage) -> None:
    """Decompose training and held-out pictures."""
    overrides = [f"trigger={plan.domain.trigger}"]
    config, _ = load_config(DecomposeConfig, preset_path("tiny-128"), overrides)
    for source, out, what in (
        (plan.domain.train, plan.dataset, "cutting training pictures"),
        (plan.domain.holdout, plan.held_out, "cutting held-out pictures"),
    ):
        decompose(source, out, config, lambda _name, done, total, what=what: on_stage(what, done, total))


def recipe(plan: DemoPlan, arm: str) -> Recipe:
    """The packaged recipe of an arm, with the demo's data, budget and output."""
    source = plan.domain.train if arm == "baseline" else plan.dataset
    overrides = [
        f"data.path={source}",
        f"validation.path={plan.held_out}",
        f"output={plan.run(arm)}",
        f"budget.amount={plan.budget}",
        f"seed={plan.seed}",
    ]
    return load_config(Recipe, find_recipe(f"{plan.model}-{arm}"), overrides)[0]


def train_arm(plan: DemoPlan, arm: str, observer: Observer) -> bool:
    """Train an arm, or go on with it; False where a signal stopped it."""
    chosen, path = recipe(plan, arm), plan.run(arm) / RUN_NAME
    if path.exists():
        run = json.loads(path.read_text(encoding="utf-8"))
        if run["status"] == "finished" and run["recipe_identity"] == chosen.identity():
            return True
    return not train(chosen, path.exists(), observer).interrupted


def prompts(plan: DemoPlan) -> dict[str, PictureKind]:
    """Every prompt that is drawn: the shown ones first, then the other held-out captions, then close-ups."""
    kinds: dict[str, PictureKind] = {}
    captions = [read_caption(path) for path in list_images(plan.domain.holdout)]
    for prompt in (*plan.domain.shown_prompts, *(caption for caption in captions if caption)):
        kinds[prompt] = "whole"
    for prompt in plan.domain.close_up_prompts:
        kinds[prompt] = "close-up"
    return kinds


def draw_pictures(plan: DemoPlan, arm: str, fraction: float | None, on_stage: Stage) -> float | None:
    """Draw an arm's pictures at a checkpoint; pictures per second, None where all were there already."""
    checkpoint = None if fraction is None else choose_checkpoint(plan.run(arm), fraction)
    family = load_family(plan.model, None, torch.float32, torch.device("cpu"))
    what = f"drawing {arm}" if fraction is None else f"drawing {arm} at {fraction:g} N1"
    sample_plan = SamplePlan(
        run=arm,
        model=ModelChoice(plan.model, None, "float32"),
        checkpoint=checkpoint,
        prompts=list(prompts(plan)),
        seeds=list(range(plan.seeds)),
        config=plan.sampler,
        out=plan.samples(arm, fraction),
    )
    started = time.perf_counter()
    outcome = draw(family, sample_plan, lambda done, total: on_stage(what, done, total))
    return outcome.drawn / (time.perf_counter() - started) if outcome.drawn else None


def held_out_records(plan: DemoPlan) -> list[SliceRecord]:
    """Slices of the held-out pictures."""
    return read_records(plan.held_out)


def read_records(dataset: Path) -> list[SliceRecord]:
    """All lines of a manifest that decompose has just written."""
    lines = (dataset / MANIFEST_NAME).read_text(encoding="utf-8").splitlines()
    return [SliceRecord.model_validate_json(line) for line in lines]


def pictures(plan: DemoPlan, arm: str, fraction: float | None) -> list[Picture]:
    """Drawn pictures with the held-out slice that their prompt names as reference."""
    kinds = prompts(plan)
    references = {record.caption: plan.held_out / record.path for record in held_out_records(plan)}
    folder = plan.samples(arm, fraction)
    return [
        Picture(line.prompt, line.seed, folder / line.file, references.get(line.prompt), kinds[line.prompt])
        for line in read_manifest(folder)
        if line.prompt in kinds
    ]
