"""Rebuild the embedded bundle: fetch published image packages, train the tiny models, pack them into the package.

Example, everything with the default budgets (three to four hours on two cores):

    python scripts/build_assets.py --work /tmp/bundle --stage all --out src/flowgrain/assets
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from assets_build import training

STAGES = (
    "fetch",
    "render",
    "vae",
    "text",
    "latents",
    "flux",
    "distill",
    "text-projected",
    "unet",
    "pack",
    "pack-sdxl",
    "grid",
)
DEFAULT_SECONDS = {
    "vae": 840.0,
    "text": 200.0,
    "flux": 2400.0,
    "distill": 480.0,
    "text-projected": 150.0,
    "unet": 5400.0,
}


def run_stage(stage: str, work: Path, out: Path, seconds: float | None) -> None:
    """Run one stage; imports happen here so that ``--help`` and the early stages start at once."""
    budget = seconds if seconds is not None else DEFAULT_SECONDS.get(stage, 0.0)
    if stage == "fetch":
        from assets_build import packages

        packages.fetch(work)
    elif stage == "render":
        from assets_build import domains, render

        render.render(work)
        domains.write(work, out)
    elif stage == "vae":
        from assets_build import autoencoder

        autoencoder.train(work, budget)
    elif stage == "text":
        from assets_build import text

        text.train(work, budget)
    elif stage == "latents":
        from assets_build import latents

        latents.cache(work)
    elif stage == "flux":
        from assets_build import pretrain

        pretrain.train(work, budget)
    elif stage == "distill":
        from assets_build import distill

        distill.train(work, budget)
    elif stage == "text-projected":
        from assets_build import text_projected

        text_projected.train(work, budget)
    elif stage == "unet":
        from assets_build import unet

        unet.train(work, budget)
    elif stage == "pack":
        from assets_build import pack

        pack.write(work, out)
    elif stage == "pack-sdxl":
        from assets_build import pack

        pack.write_sdxl(work, out)
    elif stage == "grid":
        from assets_build import grid

        grid.draw(work, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads, caches and checkpoints")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all", help="one stage, or all in order")
    parser.add_argument("--seconds", type=float, help="training budget of a stage (default: see DEFAULT_SECONDS)")
    parser.add_argument("--out", type=Path, default=Path("src/flowgrain/assets"), help="the package's assets folder")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    arguments = parser.parse_args()
    training.tune_process()
    import torch

    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)
    for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
        run_stage(stage, arguments.work.resolve(), arguments.out.resolve(), arguments.seconds)


if __name__ == "__main__":
    main()
