"""Encode every view and every caption once, so that FLUX training reads small tensors only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import autoencoder, domains, text, views, vocabulary
from .render import BaseImages
from .training import save_atomically, to_unit


@dataclass(frozen=True)
class Cache:
    """Latents by format with the caption of each, and the encodings of all captions (number 0 is the empty one)."""

    latents: dict[str, Tensor]
    caption: dict[str, Tensor]
    kinds: dict[str, list[str]]
    concepts: dict[str, list[str]]
    taught: list[str]
    pooled: Tensor
    sequence: Tensor
    captions: list[str]

    @classmethod
    def load(cls, work: Path) -> Cache:
        return cls(**torch.load(work / "latents" / "cache.pt", weights_only=True))


def cache(work: Path) -> None:
    """Write ``latents/cache.pt``: formats "square", "portrait", "landscape" for training, "held_out" for validation."""
    target = work / "latents" / "cache.pt"
    if target.exists():
        print("latents are cached", flush=True)
        return
    images, model, encoders = BaseImages.load(work), autoencoder.load(work), text.load(work)
    taught = views.all_views(images, images.rows(held_out=False, known_only=True))
    formats = {"square": [view for view in taught if view.kind not in views.OBLONG]}
    for kind in views.OBLONG:
        formats[kind] = [view for view in taught if view.kind == kind]
    unknown = views.all_views(images, images.rows(held_out=True, known_only=True))
    formats["held_out"] = [view for view in unknown if view.kind == "whole"]
    captions = ["", *sorted({view.caption for group in formats.values() for view in group})]
    number = {words: index for index, words in enumerate(captions)}
    pooled, sequence = encode_captions(encoders, captions)
    state = {
        "latents": {name: _encode(model, group) for name, group in formats.items()},
        "caption": {name: torch.tensor([number[v.caption] for v in group]) for name, group in formats.items()},
        "kinds": {name: [view.kind for view in group] for name, group in formats.items()},
        "concepts": {name: [images.concepts[view.row] for view in group] for name, group in formats.items()},
        "taught": taught_concepts(work, images),
        "pooled": pooled,
        "sequence": sequence,
        "captions": captions,
    }
    save_atomically(state, target)
    print({name: tuple(part.shape) for name, part in state["latents"].items()}, len(captions), flush=True)


def taught_concepts(work: Path, images: BaseImages) -> list[str]:
    """What FLUX is taught: known concepts that all adaptation domains draw too, so that few are learnt well."""
    shared = domains.shared_concepts(work)
    return sorted(c for c in images.known if c in shared and not vocabulary.is_held_out(c))


@torch.no_grad()
def encode_captions(encoders: text.TextEncoders, captions: list[str]) -> tuple[Tensor, Tensor]:
    pairs = [encoders.encode(*encoders.tokens(captions[start : start + 128])) for start in range(0, len(captions), 128)]
    return torch.cat([pooled for pooled, _ in pairs]), torch.cat([sequence for _, sequence in pairs])


@torch.no_grad()
def _encode(model: autoencoder.AutoencoderKL, group: list[views.View]) -> Tensor:
    """Shifted and scaled posterior means, ``[n, 16, h / 8, w / 8]``."""
    pixels = torch.from_numpy(np.stack([view.pixels for view in group]))
    raw = torch.cat([model.encode(to_unit(part)).latent_dist.mode() for part in pixels.split(32)])
    return (raw - model.config.shift_factor) * model.config.scaling_factor
