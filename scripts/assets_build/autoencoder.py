"""Train the bundle's autoencoder (16 channels, 8x smaller sides) on the base styles only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from .features import MobileNetV2
from .render import WHOLE, BaseImages, shrink
from .training import Average, Run, cosine, save_atomically, to_unit

SEED = 11
LEARNING_RATE = 1.2e-3
SMALL_CROP_PART = 0.7  # of the time: 64-px crops, cheap; then 128 px
PERCEPTUAL_WEIGHT, KL_WEIGHT = 0.15, 2e-4
PERCEPTUAL_STAGES = (1, 3, 6)


def build() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=WHOLE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def load(work: Path) -> AutoencoderKL:
    """The trained autoencoder (averaged weights) with its measured shift and scaling in the config."""
    saved = torch.load(work / "autoencoder" / "final.pt", weights_only=True)
    model = build()
    model.load_state_dict(saved["weights"])
    model.register_to_config(shift_factor=saved["shift_factor"], scaling_factor=saved["scaling_factor"])
    return model.eval().requires_grad_(False)


class _Crops:
    """Random square crops, from the 128-px whole pictures and from the 256-px originals (close-ups)."""

    def __init__(self, images: BaseImages, rows: list[int]) -> None:
        self.large = images.pixels
        self.rows = rows
        self.whole = {row: shrink(images.pixels[row : row + 1])[0] for row in rows}

    def batch(self, count: int, side: int, rng: np.random.Generator) -> Tensor:
        return to_unit(torch.from_numpy(np.stack([self._one(side, rng) for _ in range(count)])))

    def _one(self, side: int, rng: np.random.Generator) -> np.ndarray:
        row = self.rows[rng.integers(len(self.rows))]
        source = self.large[row] if rng.random() < 0.4 else self.whole[row]
        spare = source.shape[0] - side
        for _ in range(3):  # a crop of bare background teaches nothing; look again twice
            top, left = rng.integers(spare + 1), rng.integers(spare + 1)
            crop = source[top : top + side, left : left + side]
            if crop.std() > 8:
                break
        return crop[:, ::-1].copy() if rng.random() < 0.5 else crop.copy()


def _loss(model: AutoencoderKL, eye: MobileNetV2, images: Tensor) -> Tensor:
    posterior = model.encode(images).latent_dist
    decoded = model.decode(posterior.sample()).sample
    loss = F.l1_loss(decoded, images) + F.mse_loss(decoded, images)
    kl = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
    real = eye.stages(images, PERCEPTUAL_STAGES)
    fake = eye.stages(decoded, PERCEPTUAL_STAGES)
    perceptual = sum(
        (F.normalize(a, dim=1) - F.normalize(b, dim=1)).pow(2).sum(1).mean() for a, b in zip(real, fake, strict=True)
    )
    return loss + PERCEPTUAL_WEIGHT * perceptual + KL_WEIGHT * kl


def train(work: Path, seconds: float) -> None:
    """Train for ``seconds`` of work (resumable), then measure the latents and write ``autoencoder/final.pt``."""
    folder = work / "autoencoder"
    if (folder / "final.pt").exists():
        print("autoencoder is trained", flush=True)
        return
    torch.manual_seed(SEED)
    images = BaseImages.load(work)
    crops = _Crops(images, images.rows(held_out=False, known_only=False))
    eye, model = MobileNetV2(work), build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average, step, seen = Average(model, 0.998), 0, 0
    run = Run(folder / "checkpoint.pt", seconds)
    if run.state:
        model.load_state_dict(run.state["model"])
        optimizer.load_state_dict(run.state["optimizer"])
        average.values, average.updates = run.state["average"], run.state["step"]
        step, seen = run.state["step"], run.state["seen"]
    while not run.done:
        progress = run.tick()
        side, count = (64, 32) if progress < SMALL_CROP_PART else (128, 8)
        rng = np.random.default_rng((SEED, step))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(progress)
        with torch.autocast("cpu", torch.bfloat16):
            loss = _loss(model, eye, crops.batch(count, side, rng))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        step, seen = step + 1, seen + count
        if step % 100 == 0:
            print(f"autoencoder {run.spent:6.0f} s  step {step}  seen {seen}  loss {loss.item():.4f}", flush=True)
        if run.due:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average.values}
            run.save(step=step, seen=seen, **state)
    _finish(folder, average, images, crops, seen)


@torch.no_grad()
def _finish(folder: Path, average: Average, images: BaseImages, crops: _Crops, seen: int) -> None:
    model = build()
    model.load_state_dict(average.values)
    model.eval()
    rows = [row for row in crops.rows if images.concepts[row] in images.known]
    whole = to_unit(torch.from_numpy(np.stack([crops.whole[row] for row in rows])))
    latents = torch.cat([model.encode(part).latent_dist.mode() for part in whole.split(32)])
    shift, scaling = latents.mean().item(), 1 / latents.std().item()
    state = {"weights": model.state_dict(), "shift_factor": shift, "scaling_factor": scaling, "seen": seen}
    save_atomically(state, folder / "final.pt")
    report = {"shift_factor": shift, "scaling_factor": scaling, "images_seen": seen, "quality": quality(model, images)}
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    print(json.dumps(report), flush=True)


def quality(model: AutoencoderKL, images: BaseImages) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of whole held-out pictures, a style at a time."""
    result = {}
    for style in dict.fromkeys(images.styles):
        rows = [row for row in images.rows(held_out=True, known_only=False) if images.styles[row] == style][:100]
        result[style] = reconstruction_quality(model, shrink(images.pixels[rows]))
    return result


@torch.no_grad()
def reconstruction_quality(model: AutoencoderKL, pixels: np.ndarray) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of encode-decode on bytes ``[n, h, w, 3]``."""
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    decoded = reconstruct(model, pixels)
    psnr = [peak_signal_noise_ratio(a, b) for a, b in zip(pixels, decoded, strict=True)]
    ssim = [structural_similarity(a, b, channel_axis=2) for a, b in zip(pixels, decoded, strict=True)]
    return {"images": len(pixels), "psnr": round(float(np.mean(psnr)), 2), "ssim": round(float(np.mean(ssim)), 4)}


@torch.no_grad()
def reconstruct(model: AutoencoderKL, pixels: np.ndarray) -> np.ndarray:
    """Encode and decode bytes ``[n, h, w, 3]``."""
    parts = to_unit(torch.from_numpy(pixels)).split(16)
    decoded = torch.cat([model.decode(model.encode(part).latent_dist.mode()).sample for part in parts])
    scaled = decoded.clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).numpy()
