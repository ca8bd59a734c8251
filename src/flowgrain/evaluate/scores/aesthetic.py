"""LAION's aesthetic score: a linear head on CLIP ViT-L/14 (Schuhmann 2022, improved-aesthetic-predictor).

The head called sac+logos+ava1-l14-linearMSE is five linear layers without activations between them, on picture
features of unit length. Scores are about 1 to 10, people's ratings that the head was fitted to.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.errors import ModelError
from flowgrain.evaluate.base import ImageLike, PictureScore
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.pretrained.weights import fingerprint, load_exactly, read_tensors

CLIP_DIMENSION = 768


class AestheticHead(nn.Module):
    """768-1024-128-64-16-1, with the published file's names (layers 0, 2, 4, 6, 7; dropout lies between)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(CLIP_DIMENSION, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Float[Tensor, "n 768"]) -> Float[Tensor, " n"]:
        """Scores of features of unit length."""
        return self.layers(features)[:, 0]


class AestheticScore(PictureScore):
    """The aesthetic score of each picture. Raises :class:`ModelError` for another file or an encoder of other width."""

    title = "aesthetic score"
    higher_is_better = True

    def __init__(self, encoder: ImageEncoder, head: Path):
        if encoder.dimension != CLIP_DIMENSION or encoder.family != "CLIP":
            raise ModelError(
                f"the aesthetic head takes the {CLIP_DIMENSION} numbers of CLIP ViT-L/14, not the {encoder.dimension} "
                f"of {encoder.name}; open clip-vit-large-patch14"
            )
        self.encoder = encoder
        self.head = AestheticHead()
        load_exactly(self.head, read_tensors(head), str(head))
        self.head.float().eval().requires_grad_(False)
        self.version = f"{head.name} sha256 {fingerprint([head])}, {encoder.name}"

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[ImageLike], prompts: Sequence[str]) -> Float[np.ndarray, " n"]:
        """See :meth:`PictureScore.__call__`; prompts do not matter."""
        features = torch.from_numpy(self.encoder(pictures))
        return self.head(nn.functional.normalize(features, dim=1)).double().numpy()
