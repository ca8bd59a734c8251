"""CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023): pictures and text in one space.

Features are the pooled, projected ones (``image_embeds``, ``text_embeds``), not normalised; a cosine does that.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerBase, SiglipModel

from flowgrain.errors import ModelError
from flowgrain.evaluate.base import ImageLike
from flowgrain.evaluate.encoders.base import ImageEncoder, TextFeatures
from flowgrain.evaluate.encoders.batches import decoded_batches
from flowgrain.evaluate.encoders.preprocessing import Preprocessing, read_preprocessing
from flowgrain.pretrained.precision import Precision
from flowgrain.pretrained.transformers_loading import load_model, load_tokenizer, quiet_transformers, read_model_type
from flowgrain.pretrained.weights import fingerprint, model_folder, model_label, weight_files

FAMILIES = {"clip": "CLIP", "siglip": "SigLIP"}
"""``model_type`` of config.json -> family. Fixed-resolution SigLIP 2 models call themselves siglip."""


class ClipEncoder(ImageEncoder):
    """Picture and text features of a CLIP or SigLIP model. ``label`` names the model, ``origin`` its weights."""

    def __init__(
        self,
        model: CLIPModel | SiglipModel,
        tokenizer: PreTrainedTokenizerBase,
        preprocessing: Preprocessing,
        *,
        label: str,
        origin: str,
        device: str = "cpu",
        batch_size: int = 16,
        dtype: Precision = "float32",
    ):
        _check_parts(model, tokenizer, preprocessing, label)
        self._dtype = getattr(torch, dtype)
        self._device = torch.device(device)
        self._model: Any = model.eval()
        self._model.to(self._device, self._dtype)
        self._tokenizer = tokenizer
        self._preprocessing = preprocessing
        self.family = FAMILIES[self._model.config.model_type]
        self.dimension = _dimension(self._model)
        self.size = preprocessing.size
        self.resize = preprocessing.describe()
        self.batch_size = batch_size
        self.version = origin
        self.name = f"{self.family} {label} ({origin}), {self.dimension}-d, {self.size} px, {self.resize}, {dtype}"

    @property
    def context(self) -> int:
        """Longest prompt in tokens, special ones included."""
        return self._model.config.text_config.max_position_embeddings

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine in the model's own logits."""
        return float(self._model.logit_scale.float().exp())

    @torch.inference_mode()
    def __call__(self, images: Sequence[ImageLike]) -> Float[np.ndarray, "n d"]:
        """See :meth:`ImageEncoder.__call__`."""
        rows = [torch.empty(0, self.dimension)]
        for batch in decoded_batches(images, self._preprocessing.pixels, self.batch_size):
            pixels = self._preprocessing.normalised(batch).to(self._device, self._dtype)
            rows.append(self._image_features(pixels).float().cpu())
        return torch.cat(rows).numpy()

    @torch.inference_mode()
    def text(self, prompts: Sequence[str]) -> TextFeatures:
        """Prompts in the space of the pictures; each distinct prompt is encoded once."""
        if len(prompts) == 0:
            return TextFeatures(np.empty((0, self.dimension), dtype=np.float32), ())
        distinct = list(dict.fromkeys(prompts))
        with quiet_transformers():  # it warns of every prompt above the context
            tokens = self._tokenizer(distinct, padding="max_length", truncation=True, max_length=self.context)
            whole = self._tokenizer(distinct, padding=False, truncation=False)
        ids = torch.tensor(tokens["input_ids"])
        batches = ids.split(self.batch_size)
        features = torch.cat([self._text_features(batch.to(self._device)).float().cpu() for batch in batches])
        number_of = {prompt: number for number, prompt in enumerate(distinct)}
        places = [number_of[prompt] for prompt in prompts]
        too_long = [len(row) > self.context for row in whole["input_ids"]]
        truncated = tuple(row for row, place in enumerate(places) if too_long[place])
        return TextFeatures(features[places].numpy(), truncated)

    def _image_features(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return self._model.visual_projection(pooled) if isinstance(self._model, CLIPModel) else pooled

    def _text_features(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b d"]:
        # no attention mask: CLIP's attention is causal and reads its feature at the first end token, so what follows
        # has no part in it, and SigLIP was trained with its padding in sight
        pooled = self._model.text_model(input_ids=ids).pooler_output
        return self._model.text_projection(pooled) if isinstance(self._model, CLIPModel) else pooled


def load_clip(
    model: str,
    device: str = "cpu",
    batch_size: int = 16,
    dtype: Precision = "float32",
    processor: str | None = None,
) -> ClipEncoder:
    """A CLIP or SigLIP model from a folder or hub id; tokenizer and resize rule from ``processor`` where given.

    Raises :class:`ModelError` for what cannot be found, read or matched.
    """
    folder = model_folder(model)
    beside = folder if processor is None else model_folder(processor)
    read_model_type(folder, FAMILIES, "picture and text features")
    preprocessing, tokenizer = read_preprocessing(beside), load_tokenizer(beside)
    network: Any = load_model(folder)
    return ClipEncoder(
        network,
        tokenizer,
        preprocessing,
        label=model_label(model),
        origin=f"sha256 {fingerprint(weight_files(folder))}",
        device=device,
        batch_size=batch_size,
        dtype=dtype,
    )


def _dimension(model: Any) -> int:
    config = model.config
    return config.projection_dim if isinstance(model, CLIPModel) else config.vision_config.hidden_size


def _check_parts(model: Any, tokenizer: PreTrainedTokenizerBase, preprocessing: Preprocessing, label: str) -> None:
    wanted, known = model.config.vision_config.image_size, model.config.text_config.vocab_size
    if preprocessing.size != wanted:
        raise ModelError(
            f"{label}: the network takes {wanted} pixels, its preprocessor_config.json gives {preprocessing.size}; the "
            "two files belong to different models"
        )
    if len(tokenizer) > known or tokenizer.pad_token_id is None:
        raise ModelError(
            f"{label}: the text encoder knows {known} tokens, its tokenizer has {len(tokenizer)} and pads with "
            f"{tokenizer.pad_token!r}; the two belong to different models"
        )
