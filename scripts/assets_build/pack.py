"""Write the trained parts as one ordinary diffusers folder, replaced in a single rename."""

from __future__ import annotations

import json
import platform
import shutil
from pathlib import Path

import diffusers
import numpy as np
import torch
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, StableDiffusionXLPipeline
from PIL import Image

from . import attribution, autoencoder, distill, domains, flow, packages, pretrain, text, text_projected, unet, views

NAME, SDXL_NAME = "tiny-flux", "tiny-sdxl"
SHARED = {"text_encoder": "text_encoder", "tokenizer": "tokenizer", "tokenizer_2": "tokenizer"}
"""Folders of the tiny SDXL whose files are links to those of the tiny FLUX."""
TOKENS_UNSHIFTED = 64  # tokens of a 128-px picture: mu = 0 there, as in training
FLUX_TOKEN_RATIO, FLUX_SHIFT_RANGE = 16, 0.65  # FLUX: mu grows by 1.15 - 0.5 from 256 to 4096 tokens
LARGEST_FILE, LARGEST_TOTAL = 15_000_000, 32_000_000


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX's size-dependent shift, moved so that it starts from none at the size this model was trained on."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_image_seq_len=TOKENS_UNSHIFTED,
        max_image_seq_len=TOKENS_UNSHIFTED * FLUX_TOKEN_RATIO,
        base_shift=0.0,
        max_shift=FLUX_SHIFT_RANGE,
    )


def write(work: Path, out: Path) -> None:
    """Pack the newest complete transformer (distilled if there is one) with the other parts, records and licences."""
    source = next(path for path in (work / "distill", work / "flow") if (path / "final.pt").exists())
    transformer = flow.build()
    transformer.load_state_dict(torch.load(source / "final.pt", weights_only=True)["weights"])
    encoders = text.load(work)
    pipeline = FluxPipeline(
        scheduler=scheduler(),
        vae=autoencoder.load(work).to(torch.bfloat16),
        text_encoder=encoders.clip.to(torch.bfloat16),
        text_encoder_2=encoders.t5.to(torch.bfloat16),
        tokenizer=encoders.clip_tokens,
        tokenizer_2=encoders.t5_tokens,
        transformer=transformer.to(torch.bfloat16),
    )
    target, partial, old = (out / name for name in (NAME, f".{NAME}.partial", f".{NAME}.old"))
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(partial)
    (partial / "bundle.json").write_text(json.dumps(_record(work, out), indent=1) + "\n")
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    attribution.write(out)
    _check_sizes(out)


def write_sdxl(work: Path, out: Path) -> None:
    """Pack the trained U-Net with its second text encoder; the other parts are links into the tiny FLUX.

    The autoencoder's weights are shared, its configuration is not: SDXL's latents are not shifted.
    """
    trained = torch.load(work / "unet" / "final.pt", weights_only=True)["weights"]
    network = unet.build()
    network.load_state_dict(trained)
    encoders, vae = text.load(work), autoencoder.load(work)
    vae.register_to_config(shift_factor=None)
    pipeline = StableDiffusionXLPipeline(
        vae=vae.to(torch.bfloat16),
        text_encoder=encoders.clip.to(torch.bfloat16),
        text_encoder_2=text_projected.load(work).to(torch.bfloat16),
        tokenizer=encoders.clip_tokens,
        tokenizer_2=encoders.clip_tokens,
        unet=network.to(torch.bfloat16),
        scheduler=unet.scheduler(),
    )
    partial = out / f".{SDXL_NAME}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    pipeline.save_pretrained(partial)
    # links of files: of folders, a wheel holds nothing
    for name, shared in SHARED.items():
        shutil.rmtree(partial / name)
        (partial / name).mkdir()
        for path in sorted((out / NAME / shared).iterdir()):
            _link(partial / name / path.name, Path(NAME) / shared / path.name)
    weights = "diffusion_pytorch_model.safetensors"
    (partial / "vae" / weights).unlink()
    _link(partial / "vae" / weights, Path(NAME) / "vae" / weights)
    reports = {name: json.loads((work / name / "report.json").read_text()) for name in ("text_projected", "unet")}
    record = {"seeds": {"text_projected": text_projected.SEED, "unet": unet.SEED}, **reports}
    (partial / "bundle.json").write_text(json.dumps(record, indent=1) + "\n")
    shutil.rmtree(out / SDXL_NAME, ignore_errors=True)
    partial.rename(out / SDXL_NAME)
    _check_sizes(out)


def _link(path: Path, target: Path) -> None:
    """A relative link from a part of one model to a file of the other, ``target`` as seen from the assets folder."""
    path.symlink_to(Path("..") / ".." / target)


def _record(work: Path, out: Path) -> dict:
    """Everything needed to know where these weights come from and how good they measured."""

    def report(stage: str) -> dict | None:
        path = work / stage / "report.json"
        return json.loads(path.read_text()) if path.exists() else None

    model = autoencoder.load(work)
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
        "seeds": {
            "views": views.SEED,
            "autoencoder": autoencoder.SEED,
            "text": text.SEED,
            "flow": pretrain.SEED,
            "distill": distill.SEED,
        },
        "max_sequence_length": 24,
        "autoencoder": report("autoencoder"),
        "autoencoder_on_domains": {
            domain.name: autoencoder.reconstruction_quality(model, _domain_pixels(out, domain.name))
            for domain in domains.ALL
        },
        "text": report("text"),
        "flow": report("flow"),
        "distill": report("distill"),
        "sources": {f"{p.client}:{p.name}@{p.version}": p.sha256 for p in packages.ALL},
    }


def _domain_pixels(out: Path, name: str) -> np.ndarray:
    files = sorted((out / "domains" / name / "holdout").glob("*.webp"))
    resized = [Image.open(path).convert("RGB").resize((128, 128), Image.Resampling.LANCZOS) for path in files]
    return np.stack([np.asarray(image) for image in resized])


def _check_sizes(out: Path) -> None:
    sizes = {path: path.stat().st_size for path in out.rglob("*") if path.is_file() and not path.is_symlink()}
    largest = max(sizes, key=sizes.__getitem__)
    print(
        f"assets: {sum(sizes.values()) / 1e6:.1f} MB, largest {largest.name} {sizes[largest] / 1e6:.1f} MB", flush=True
    )
    if sum(sizes.values()) > LARGEST_TOTAL or sizes[largest] > LARGEST_FILE:
        raise SystemExit(f"{out} is over its limits of {LARGEST_TOTAL} bytes in all and {LARGEST_FILE} a file")
