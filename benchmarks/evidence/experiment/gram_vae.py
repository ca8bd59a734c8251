"""Train one autoencoder, reconstruct held-out pictures with it, and measure what is lost.

Held-out pictures of the styles that it trained on and of styles that it never saw. What is compared is 8-bit pictures,
by the posterior's mean. Beside that: how far the latents have moved from the model's own, and their structure.
"""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from flowgrain.align.encoders.registry import EncoderConfig, open_structure_encoder
from flowgrain.align.gram import unit_rows
from flowgrain.align.structure import similarity_correlation
from flowgrain.config import load_config
from flowgrain.data.images import from_tensor, list_images, open_image, to_tensor
from flowgrain.errors import ModelError
from flowgrain.evaluate.encoders.registry import open_encoder
from flowgrain.evaluate.frechet import frechet_distance
from flowgrain.evaluate.reconstruction.autoencoder import DiffusersAutoencoder
from flowgrain.evaluate.reconstruction.base import PairScore
from flowgrain.evaluate.reconstruction.measure import PIXEL_SCORES, Pair, score_pairs
from flowgrain.evaluate.reconstruction.perceptual_weights import open_perceptual
from flowgrain.evaluate.reconstruction.pictures import Preparation
from flowgrain.families.embedded import resolve_model
from flowgrain.train.loop import Observer
from flowgrain.train.recipe import find_recipe
from flowgrain.train.state import CHECKPOINTS, RUN_NAME
from flowgrain.train.vae_recipe import VaeRecipe
from flowgrain.train.vae_run import train_vae
from flowgrain.vae.deeper import deepen
from flowgrain.vae.deeper_files import load_deeper_vae

from .domains import open_domain
from .gram_design import OTHER, OTHER_STYLES, VAE, VAE_ARMS, VAE_STYLES, Compression, VaeCell
from .gram_structure import PLACES
from .measuring import ENCODERS
from .results import code_version

SIZE = 128
PERCEPTUAL = "st-lpips"
"""The LPIPS-type distance: no arm trains with its network. Left out where its weights are not installed."""
DOUBLINGS: dict[Compression, int] = {"f8": 0, "f16": 1}
RECIPES: dict[Compression, str] = {"f8": "tiny-vae", "f16": "tiny-vae-f16"}
SETS = {"own": VAE_STYLES, "other": OTHER_STYLES}
"""Styles whose training pictures autoencoders see, and others."""
DIGITS = 5
SHOWN = 6
"""Pictures whose files are kept."""


def vae_run_folder(compression: Compression, arm: str, seed: int, work: Path, stage: str = VAE) -> Path:
    """Where an autoencoder trains."""
    return work / "runs" / stage / compression / arm / f"seed{seed}"


def vae_folder(compression: Compression, arm: str, seed: int, work: Path) -> Path:
    """A tuned autoencoder in diffusers' layout; raises SystemExit before the stage ``vae`` has made it."""
    folder = vae_run_folder(compression, arm, seed, work) / "vae"
    if not (folder / "config.json").exists():
        raise SystemExit(f"{compression} {arm} seed {seed}: not trained yet; run the stage {VAE} first")
    return folder


def vae_recipe(cell: VaeCell, work: Path) -> VaeRecipe:
    """The packaged recipe with the arm's settings, on the training pictures of all its styles."""
    sources = [{"path": str(open_domain(name, work).train), "name": name} for name in VAE_STYLES]
    overrides = [
        "data.path=null",
        f"data.sources={json.dumps(sources)}",
        "data.holdout=null",
        f"data.cache={work / 'cache'}",
        "validation=null",
        "previews=null",
        "save_every=null",
        f"output={vae_run_folder(cell.compression, cell.arm, cell.seed, work, cell.stage)}",
        f"budget.amount={cell.updates}",
        f"seed={cell.seed}",
        *(VAE_ARMS[cell.arm].settings or ()),
        *(("data.max_roots=24",) if cell.stage == "quick" else ()),
    ]
    return load_config(VaeRecipe, find_recipe(RECIPES[cell.compression]), overrides)[0]


def run_vae_cell(cell: VaeCell, work: Path, limit: int | None = None) -> dict[str, Any]:
    """The record of an autoencoder, trained where the arm trains.

    With a ``limit`` so many pictures of each of its own styles are measured, and no other style is fetched.
    """
    torch.set_num_threads(1)
    started = time.process_time()
    record: dict[str, Any] = {"key": cell.key, "cell": cell.as_dict(), "code": code_version()}
    if VAE_ARMS[cell.arm].settings is None:
        vae = deepen(_own(), DOUBLINGS[cell.compression]) if DOUBLINGS[cell.compression] else _own()
    else:
        chosen = vae_recipe(cell, work)
        if train_vae(chosen, (chosen.output / RUN_NAME).exists(), Observer()).interrupted:
            raise SystemExit(f"{cell.key}: stopped by a signal; run the stage again to go on")
        record["recipe_identity"] = chosen.identity()
        record["training_core_seconds"] = round(time.process_time() - started, 1)
        vae = load_deeper_vae(chosen.output / "vae")
    vae.eval().requires_grad_(False)
    sets = SETS if limit is None else {"own": VAE_STYLES}
    record["sets"] = {name: _measured(cell, vae, styles, work, limit) for name, styles in sets.items()}
    record["core_seconds"] = round(time.process_time() - started, 1)
    return record


def tidy_vae(cell: VaeCell, work: Path) -> None:
    """Delete what only a resume needs."""
    folder = vae_run_folder(cell.compression, cell.arm, cell.seed, work, cell.stage)
    for name in ("trainable.safetensors", "optimizer.pt"):
        for file in (folder / CHECKPOINTS).glob(f"*/{name}"):
            file.unlink()


def _measured(
    cell: VaeCell, vae: AutoencoderKL, styles: Sequence[str], work: Path, limit: int | None
) -> dict[str, Any]:
    """Values by picture, Frechet distances of the set by encoder, and what became of the latents."""
    prepare = Preparation(size=SIZE, multiple=8 * 2 ** DOUBLINGS[cell.compression])
    files = [file for style in styles for file in list_images(open_domain(style, work).holdout)[:limit]]
    originals = [prepare(open_image(file)) for file in files]
    autoencoder = DiffusersAutoencoder(cell.arm, vae, cell.key)
    reconstructions = [
        from_tensor(autoencoder(to_tensor(original), str(number))) for number, original in enumerate(originals)
    ]
    _keep(originals[:SHOWN], reconstructions[:SHOWN], work / "pictures" / cell.key / styles[0])
    both = zip(originals, reconstructions, strict=True)
    pairs = [Pair(cell.arm, str(number), *pictures) for number, pictures in enumerate(both)]
    found: dict[str, Any] = {"pictures": len(pairs), "frechet": {}}
    for name in ENCODERS:
        scores = _scores() if name == ENCODERS[0] else ()
        values = score_pairs(pairs, scores, open_encoder(name, "cpu", 16, "float32"))[cell.arm]
        if values.originals is None or values.reconstructions is None:
            raise RuntimeError("score_pairs was given an encoder and has no features")
        found["frechet"][name] = round(frechet_distance(values.reconstructions, values.originals), 4)
        found |= {title: _rounded(column) for title, column in values.values.items()}
    return found | _latents(vae, DOUBLINGS[cell.compression], torch.stack([to_tensor(one) for one in originals]))


def _keep(originals: Sequence[Image.Image], reconstructions: Sequence[Image.Image], folder: Path) -> None:
    """Files of the first pictures, for the report."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, both in enumerate(zip(originals, reconstructions, strict=True)):
        for image, name in zip(both, ("original", "reconstruction"), strict=True):
            image.save(folder / f"{number}-{name}.png")


def _scores() -> tuple[PairScore, ...]:
    try:
        return (*PIXEL_SCORES, open_perceptual(PERCEPTUAL))
    except ModelError as error:
        print(f"note: left out: {error}", flush=True)
        return PIXEL_SCORES


@torch.no_grad()
def _latents(vae: AutoencoderKL, doublings: int, pixels: Float[Tensor, "n 3 h w"]) -> dict[str, Any]:
    """``moved``: squared distance of posterior means from those of the untuned autoencoder, over the variance of these.

    ``latent_structure``: correlation of the latents' similarities with an encoder's, by picture.
    """
    frozen = deepen(_own(), doublings) if doublings else _own()
    own, before = (_means(model, pixels) for model in (vae, frozen))
    spread = (before - before.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
    rows = unit_rows(functional.adaptive_avg_pool2d(own, (PLACES.height, PLACES.width)).flatten(2).mT)
    structure = {}
    for name in OTHER:
        encoder = open_structure_encoder(EncoderConfig(model=name), "cpu")
        tokens = torch.cat([encoder.tokens(part, PLACES) for part in pixels.split(16)])
        structure[name] = _rounded(similarity_correlation(rows, unit_rows(tokens)).nan_to_num(0.0).numpy())
    moved = (own - before).square().mean() / spread
    return {"moved": round(float(moved), DIGITS), "latent_structure": structure}


def _means(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    model: Any = vae
    return torch.cat([model.encode(part).latent_dist.mean for part in pixels.split(8)]).float()


def _own() -> AutoencoderKL:
    return load_deeper_vae(Path(resolve_model("tiny-flux")) / "vae").eval().requires_grad_(False)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), DIGITS) for value in values]


def compare_vae(cell: VaeCell, stored: dict[str, Any] | None, again: dict[str, Any]) -> dict[str, Any]:
    """Mean PSNR and Frechet distance by set of pictures, stored and again, and the greatest difference in PSNR."""
    if stored is None:
        raise SystemExit(f"{cell.key}: no stored result to compare with; run the cell without --repeat first")
    rows, greatest = [], 0.0
    for name, values in again["sets"].items():
        old = stored["sets"][name]
        before, now = float(np.mean(old["PSNR"])), float(np.mean(values["PSNR"]))
        greatest = max(greatest, abs(now - before))
        rows.append({"set": name, "stored": round(before, 4), "again": round(now, 4), "frechet stored": old["frechet"],
                     "frechet again": values["frechet"]})  # fmt: skip
    return {"key": cell.key, "greatest_difference_db": round(greatest, 6), "sets": rows}
