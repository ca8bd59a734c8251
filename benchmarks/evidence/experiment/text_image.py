"""Prompt alignment by the bundle's own text-image model: the second text encoder of tiny-sdxl and its picture side.

Both were trained together (InfoNCE against frozen MobileNetV2 features, docs/bundle.md) on base styles alone. The
pipeline needs the text side only; the picture side, one linear layer, is kept beside this file. How well it knows the
concepts of a domain is measured on real pictures and stands beside every score.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from flowgrain.families.registry import resolve_model

HEAD = Path(__file__).with_name("picture_head.safetensors")


class TextImageModel:
    """Cosines between pictures, by their MobileNetV2 features, and captions."""

    def __init__(self):
        folder = Path(resolve_model("tiny-sdxl"))
        self._tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer_2")
        self._text = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2", dtype=torch.float32).eval()
        head = load_file(HEAD)
        self._weight, self._bias = head["weight"].float(), head["bias"]

    @torch.inference_mode()
    def pictures(self, features: np.ndarray) -> np.ndarray:
        """Unit vectors of pictures from MobileNetV2 features (n, 1280)."""
        return F.normalize(F.linear(torch.from_numpy(features).float(), self._weight, self._bias), dim=1).numpy()

    @torch.inference_mode()
    def captions(self, captions: Sequence[str]) -> np.ndarray:
        """Unit vectors of captions."""
        tokens = self._tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
        return F.normalize(self._text(tokens.input_ids).text_embeds, dim=1).numpy()

    def alignment(self, features: np.ndarray, captions: Sequence[str]) -> np.ndarray:
        """Cosine of each picture and its caption, in [-1, 1]."""
        return np.einsum("nd,nd->n", self.pictures(features), self.captions(captions))

    def retrieval(self, features: np.ndarray, captions: Sequence[str]) -> float:
        """Share of the pictures whose own caption is among the five nearest of all."""
        order = (self.pictures(features) @ self.captions(captions).T).argsort(axis=1)[:, ::-1][:, :5]
        return float((order == np.arange(len(captions))[:, None]).any(axis=1).mean())
