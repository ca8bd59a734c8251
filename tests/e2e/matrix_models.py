"""The models of the matrix: one of every family, what it can be asked for, and which of its cells are ordinary."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

sys.path.append(str(Path(__file__).parents[1] / "families"))  # the random models of the families' tests

from random_auraflow import random_auraflow_pipeline
from random_flux2 import random_flux2_pipeline, random_klein_pipeline
from random_pixart import random_alpha_pipeline, random_sigma_pipeline
from random_qwen import random_qwen_pipeline
from random_sd3 import random_sd3_pipeline
from random_unet import random_sd15_pipeline, random_sd21_pipeline
from random_z import random_z_pipeline

Kind = Literal["full", "lora", "dora", "locon"]
Arm = Literal["baseline", "granularity"]
Source = str | Callable[[], Any]
"""The name of an embedded model, or what builds a pipeline of random weights."""


@dataclass(frozen=True)
class Model:
    """A row of the matrix."""

    source: Source
    diffuses: bool = False
    """Whether it is a diffusion model, whose granularity arm weighs by SNR; else it matches flows and shifts times."""
    convolves: bool = False
    rate: float = 3e-2
    """Learning rate of its low-rank adapters; random weights are indifferent to small changes, trained ones are not."""
    kohya: bool = False
    """Whether kohya's tools have a layout for it."""
    lora_loader: bool = True
    """Whether its diffusers pipeline loads adapters; elsewhere peft does."""
    ordinary: tuple[Kind, Arm] | None = None
    """Its one cell of the ordinary suite, None: all are."""


MODELS = {
    "flux": Model("tiny-flux", rate=1e-2, kohya=True),
    "sdxl": Model("tiny-sdxl", rate=1e-2, diffuses=True, convolves=True, kohya=True),
    "sd15": Model(random_sd15_pipeline, diffuses=True, convolves=True, kohya=True, ordinary=("locon", "granularity")),
    "sd21": Model(random_sd21_pipeline, diffuses=True, convolves=True, kohya=True, ordinary=("dora", "baseline")),
    "sd3": Model(partial(random_sd3_pipeline, pos_embed_max_size=16), kohya=True, ordinary=("lora", "granularity")),
    "auraflow": Model(partial(random_auraflow_pipeline, pos_embed_max_size=256), ordinary=("dora", "granularity")),
    "pixart-alpha": Model(random_alpha_pipeline, diffuses=True, lora_loader=False, ordinary=("lora", "granularity")),
    "pixart-sigma": Model(random_sigma_pipeline, diffuses=True, lora_loader=False, ordinary=("dora", "baseline")),
    "flux2": Model(random_flux2_pipeline, ordinary=("full", "granularity")),
    "flux2-klein": Model(random_klein_pipeline, ordinary=("lora", "baseline")),
    "qwen-image": Model(random_qwen_pipeline, ordinary=("dora", "granularity")),
    "z-image": Model(random_z_pipeline, ordinary=("full", "baseline")),
}
