"""A cell of the matrix, model x adapter x arm, as a user has it: a recipe file, pictures, a run, and what it draws."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import yaml
from matrix_models import MODELS, Arm, Kind, Model
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[1] / "train"))  # what whole runs have in common

import flowgrain
from flowgrain.config import load_config
from flowgrain.families.base import ConditionInputs, Family
from flowgrain.slices.config import DecomposeConfig
from flowgrain.slices.decompose import decompose
from flowgrain.train.recipe import Recipe

METHODS = Path(flowgrain.__file__).parent / "recipes" / "methods"
PROMPTS = ["a red drawing", "a green drawing, close-up"]
HEIGHT, WIDTH = 32, 64
"""Of what is predicted and drawn, in pixels."""
ADAPTERS: dict[Kind, dict[str, Any]] = {
    "full": {"kind": "full"},
    "lora": {"kind": "lora", "rank": 4, "alpha": 3.0},
    "dora": {"kind": "dora", "rank": 4, "alpha": 3.0},
    "locon": {
        "kind": "lora", "rank": 4, "alpha": 3.0, "conv_rank": 2, "conv_alpha": 0.7, "text_encoders": {"rank": 3},
    },
}  # fmt: skip
"""The section of recipes. LoCon is that of the paper's Table 5: text encoders train beside it, at their own rate."""
SLICES = {
    "levels": {
        "macro": {"granularity": "macro", "targets": [[32, 32]]},
        "meso": {"granularity": "meso", "detector": "grid", "targets": [[32, 32]], "min_side": 16},
        "micro": {
            "granularity": "micro", "detector": {"kind": "grid", "columns": 3, "rows": 3}, "targets": [[32, 64]],
            "min_side": 16, "max_upscale": 3.0,
        },
    },
    "iou_threshold": 1.0,
    "lanczos_max": 3.0,
}  # fmt: skip
"""One slice of each granularity from every picture, in two shapes that all models take."""


@dataclass(frozen=True)
class Cell:
    """One combination."""

    name: str
    kind: Kind
    arm: Arm

    def __str__(self) -> str:
        return f"{self.name}-{self.kind}-{self.arm}"

    @property
    def model(self) -> Model:
        return MODELS[self.name]

    @property
    def is_ordinary(self) -> bool:
        """Whether it is in the ordinary suite."""
        return self.model.ordinary in (None, (self.kind, self.arm))

    def refusal(self, target: str) -> str | None:
        """Why an adapter file for ``target`` cannot hold it, as a pattern; None where it can."""
        if self.kind == "full":
            return r"holds whole weights .* use --to merged$"
        if target == "kohya" and not self.model.kohya:
            return r"there is no such layout for .* use --to diffusers or --to merged$"
        if target == "comfyui" and self.kind == "dora":
            return r"is a DoRA; ComfyUI divides by .* use --to merged$"
        return None


def all_cells() -> list[Cell]:
    """Of every model every adapter that it can carry, in both arms."""
    arms: tuple[Arm, ...] = get_args(Arm)
    return [
        Cell(name, kind, arm)
        for name, model in MODELS.items()
        for kind in ADAPTERS
        if kind != "locon" or model.convolves
        for arm in arms
    ]


def write_pictures(folder: Path) -> Path:
    """Three drawings with captions, of 64 pixels a side."""
    folder.mkdir()
    for number in range(3):
        rng = np.random.default_rng(number)
        image = Image.new("RGB", (64, 64), "white")
        pen = ImageDraw.Draw(image)
        for x, y, side in rng.integers(4, 40, (6, 3)).tolist():
            pen.ellipse([x, y, x + side, y + side], fill=tuple(rng.integers(0, 255, 3).tolist()))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a drawing number {number}")
    return folder


def cut(pictures: Path, folder: Path) -> Path:
    """The same pictures decomposed."""
    decompose(pictures, folder, DecomposeConfig.model_validate(SLICES))
    return folder


def write_recipe(cell: Cell, model: str, pictures: Path, slices: Path, folder: Path) -> Recipe:
    """The recipe of a cell: the packaged method of its arm with a model, data, an adapter and a short budget."""
    whole = cell.arm == "baseline"
    method = "baseline" if whole else "snr-granularity" if cell.model.diffuses else "granularity"
    trains_text = "text_encoders" in ADAPTERS[cell.kind]
    rate = 1e-3 if cell.kind == "full" else cell.model.rate
    data = {"path": str(pictures), "resolution": 32} if whole else {"path": str(slices)}
    values = {
        "extends": str(METHODS / f"{method}.yaml"),
        "output": str(folder / "run"),
        "model": {"path": model},
        "data": {**data, "cache_text": not trains_text},
        "tuples": {"batch_size": 2},
        "adapter": ADAPTERS[cell.kind],
        "optimizer": {"lr": rate, "lrs": {"text_encoder*": rate / 10} if trains_text else {}},
        "precision": "fp32",
        "device": "cpu",
        "budget": {"amount": 2, "checkpoints": [1.0]},
    }
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(values))
    return load_config(Recipe, file, [])[0]


def predict(family: Family) -> torch.Tensor:
    """The backbone's prediction for captions, so that text encoders take part."""
    with torch.no_grad():
        conditioning = family.condition(ConditionInputs(PROMPTS, None, 1.0))
        return family.predict(initial_noise(family), torch.tensor([[0.8], [0.3]]), conditioning).prediction


def drawn(family: Family, pipeline: Any) -> torch.Tensor:
    """The latents that a pipeline draws in two steps, called as models of this family are."""
    pipeline.set_progress_bar_config(disable=True)
    # a list of its own: Z-Image's pipeline writes the chat template into it
    return pipeline(
        prompt=[*PROMPTS], latents=family.pipeline_latents(initial_noise(family)), num_inference_steps=2, height=HEIGHT,
        width=WIDTH, output_type="latent", **family.guidance_options(3.0, len(PROMPTS)), **family.pipeline_options(),
    ).images  # fmt: skip


def initial_noise(family: Family) -> torch.Tensor:
    scale = family.capabilities.latent_scale
    shape = (len(PROMPTS), family.capabilities.latent_channels, HEIGHT // scale, WIDTH // scale)
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))


def load_by_peft(pipeline: Any, file: Path) -> None:
    """Put an exported adapter in a pipeline's transformer by peft alone."""
    with safe_open(file, framework="pt") as stream:
        settings = json.loads(stream.metadata()["lora_adapter_metadata"])
    config = LoraConfig(**{key.removeprefix("transformer."): value for key, value in settings.items()})
    inject_adapter_in_model(config, pipeline.transformer)
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(file).items()}
    assert not set_peft_model_state_dict(pipeline.transformer, tensors).unexpected_keys
