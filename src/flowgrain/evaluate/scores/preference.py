"""Scores fitted to people's choices between pictures of one prompt: HPSv2 and PickScore.

Both are CLIP ViT-H/14 models fine-tuned on preferences. HPSv2 (Wu et al. 2023, arXiv 2306.09341) is the cosine of
picture and prompt; PickScore (Kirstain et al. 2023, arXiv 2305.01569) is that cosine times the model's logit scale.
Their own tools run in half precision; here both run in the precision asked for, float32 by default.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image
from transformers import CLIPConfig

from flowgrain.evaluate.base import ImageLike, PictureScore
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.encoders.clip import ClipEncoder, load_clip
from flowgrain.evaluate.encoders.open_clip import VIT_H_14, clip_from_open_clip
from flowgrain.evaluate.encoders.preprocessing import Preprocessing
from flowgrain.evaluate.feature_cache import CachedEncoder
from flowgrain.evaluate.scores.text_alignment import text_image_cosine
from flowgrain.pretrained.precision import Precision
from flowgrain.pretrained.transformers_loading import load_tokenizer
from flowgrain.pretrained.weights import fingerprint, model_folder, read_tensors


class PreferenceScore(PictureScore):
    """``scale`` times the cosine of each picture and its prompt, in the space of a model fitted to preferences."""

    higher_is_better = True

    def __init__(self, title: str, encoder: ImageEncoder, scale: float = 1.0):
        self.title = title
        self.encoder = encoder
        self.scale = scale
        self.version = encoder.name

    def __call__(self, pictures: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """See :meth:`PictureScore.__call__`."""
        return self.scale * text_image_cosine(self.encoder, pictures, prompts, self.title)


def open_hpsv2(
    checkpoint: Path,
    tokenizer: str,
    device: str = "cpu",
    batch_size: int = 16,
    dtype: Precision = "float32",
    cache: Path | None = None,
    config: CLIPConfig | None = None,
) -> PreferenceScore:
    """HPSv2 (or 2.1) from its own checkpoint (HPS_v2_compressed.pt), and the tokenizer of any CLIP folder or hub id.

    Raises :class:`ModelError` for a checkpoint of other names or shapes than ``config``, by default ViT-H/14.
    """
    config = CLIPConfig(**VIT_H_14) if config is None else config
    model: Any = clip_from_open_clip(read_tensors(checkpoint), config, str(checkpoint))
    encoder = ClipEncoder(
        model,
        load_tokenizer(model_folder(tokenizer)),
        hpsv2_preprocessing(model.config.vision_config.image_size),
        label=checkpoint.name,
        origin=f"sha256 {fingerprint([checkpoint])}",
        device=device,
        batch_size=batch_size,
        dtype=dtype,
    )
    return PreferenceScore("HPSv2", _kept(encoder, cache))


def open_pick_score(
    model: str,
    device: str = "cpu",
    batch_size: int = 16,
    dtype: Precision = "float32",
    cache: Path | None = None,
    processor: str | None = None,
) -> PreferenceScore:
    """PickScore from its folder or hub id; tokenizer and resize rule from ``processor``, by default the same folder.

    Raises :class:`ModelError` as :func:`flowgrain.evaluate.encoders.clip.load_clip`.
    """
    encoder = load_clip(model, device, batch_size, dtype, processor)
    return PreferenceScore("PickScore", _kept(encoder, cache), encoder.logit_scale)


def hpsv2_preprocessing(size: int) -> Preprocessing:
    """How HPSv2's own code resizes: floating-point bicubic, longest edge to ``size``, black borders."""
    return Preprocessing(size, size, "longest edge", Image.Resampling.BICUBIC, floats=True)


def _kept(encoder: ClipEncoder, cache: Path | None) -> ImageEncoder:
    return encoder if cache is None else CachedEncoder(encoder, cache)
