"""The Inception network of FID, through torch-fidelity (the ``fidelity`` extra) and a weights file the user names.

Only with the published weights (torch-fidelity's conversion of the 2015 TensorFlow graph) is a Frechet distance in its
pooled features an FID. ``pool`` gives FID's 2048 features, ``spatial`` the 2023 of sFID (Nash et al. 2021) as ADM's
evaluator takes them: the first 7 channels of ``mixed_6/conv``, the 1 x 1 branch of the block called Mixed_6d here,
at 17 x 17 places. Class logits for the Inception Score are a linear map of the pooled features, without the bias, which
the published scores leave out too.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from flowgrain.errors import MissingExtraError, ModelError
from flowgrain.evaluate.base import ImageLike
from flowgrain.evaluate.encoders.base import ImageEncoder
from flowgrain.evaluate.encoders.batches import decoded_batches
from flowgrain.pretrained.weights import fingerprint, one_line, read_tensors

PUBLISHED_SHA256 = "6726825d"
"""Start of the SHA-256 of weights-inception-2015-12-05-6726825d.pth."""
SPATIAL_CHANNELS = 7
_SPATIAL_BLOCK = "Mixed_6d"
_POOLED = 2048
_SPATIAL = SPATIAL_CHANNELS * 17 * 17


class InceptionEncoder(ImageEncoder):
    """Features of FID's Inception network.

    The network resizes pictures itself, from their own size to 299 x 299 pixels, as TensorFlow 1 does: bilinear,
    without antialiasing. Raises :class:`ModelError` for a wrong weights file, MissingExtraError without torch-fidelity.
    """

    size = 299
    resize = "TensorFlow 1 bilinear, not antialiased, stretched to 299"

    def __init__(
        self,
        weights: Path,
        features: Literal["pool", "spatial"] = "pool",
        device: str = "cpu",
        batch_size: int = 16,
    ):
        self._device = torch.device(device)
        self._network = _load(weights).to(self._device)
        self._spatial: list[Tensor] = []
        self._features = features
        if features == "spatial":
            block: Any = self._network.get_submodule(_SPATIAL_BLOCK)
            block.register_forward_hook(lambda _module, _inputs, output: self._spatial.append(output))
        digest = fingerprint([weights])
        published = digest.startswith(PUBLISHED_SHA256)
        self.version = f"{'published FID weights' if published else 'not the published weights'}, sha256 {digest}"
        self.family = "Inception" if features == "pool" else "Inception spatial"
        self.dimension = _POOLED if features == "pool" else _SPATIAL
        self.batch_size = batch_size
        what = "pooled" if features == "pool" else f"first {SPATIAL_CHANNELS} channels of mixed_6/conv,"
        self.name = f"Inception-v3 of FID ({self.version}), {what} {self.dimension}-d, 299 px, {self.resize}, float32"

    @torch.inference_mode()
    def __call__(self, images: Sequence[ImageLike]) -> Float[np.ndarray, "n d"]:
        """See :meth:`ImageEncoder.__call__`."""
        result = np.empty((len(images), self.dimension), dtype=np.float32)
        start = 0
        for batch in decoded_batches(images, _eight_bit, self.batch_size):
            # the network resizes, so only pictures of one size go in together
            by_size: dict[tuple[int, ...], list[int]] = {}
            for place, pixels in enumerate(batch):
                by_size.setdefault(pixels.shape, []).append(place)
            for places in by_size.values():
                stacked = torch.from_numpy(np.stack([batch[place] for place in places])).permute(0, 3, 1, 2)
                result[[start + place for place in places]] = self._forward(stacked.to(self._device)).cpu().numpy()
            start += len(batch)
        return result

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n c"] | None:
        """The 1008 class logits of pooled features, without bias; None for spatial ones."""
        if self._features == "spatial":
            return None
        head: Any = self._network.get_submodule("fc")
        return features @ head.weight.cpu().numpy().T

    def _forward(self, pixels: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        (pooled,) = self._network(pixels)
        if self._features == "pool":
            return pooled
        # channels run fastest, as in published statistics (reference_statistics.spatial_features)
        return self._spatial.pop()[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)


def _eight_bit(image: Image.Image) -> np.ndarray:
    return np.array(image)


def _load(weights: Path) -> nn.Module:
    if find_spec("torch_fidelity") is None:
        raise MissingExtraError("torch-fidelity", "fidelity", "the Inception network of FID")
    # torch-fidelity unpickles the file without limits; what passes here holds tensors and nothing to run
    read_tensors(weights)
    from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
        FeatureExtractorInceptionV3,
    )

    try:
        return FeatureExtractorInceptionV3("inception", [str(_POOLED)], feature_extractor_weights_path=str(weights))
    except (RuntimeError, KeyError, TypeError) as error:
        raise ModelError(
            f"{weights}: not the weights of FID's Inception network ({one_line(error)}); give torch-fidelity's "
            f"weights-inception-2015-12-05-{PUBLISHED_SHA256}.pth"
        ) from None
