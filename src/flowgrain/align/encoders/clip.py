"""The vision towers of CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023, and fixed-resolution SigLIP 2).

Patch tokens as the tower gives them: CLIP's without the class token and without the last layer norm, which belongs to
the class token; SigLIP's after its last layer norm. Position embeddings are interpolated to the grid.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from flowgrain.align.encoders.base import StructureEncoder, patch_map
from flowgrain.align.encoders.normalisation import CLIP, HALF, Normalisation, read_normalisation
from flowgrain.align.encoders.vision_folder import folder_origin, patch_size
from flowgrain.pretrained.precision import Precision
from flowgrain.pretrained.transformers_loading import load_model, read_model_type
from flowgrain.pretrained.weights import model_folder, model_label

FAMILIES: dict[str, tuple[str, Normalisation]] = {
    "clip": ("CLIP", CLIP),
    "clip_vision_model": ("CLIP", CLIP),
    "siglip": ("SigLIP", HALF),
    "siglip_vision_model": ("SigLIP", HALF),
}
"""``model_type`` of config.json -> family and published normalisation."""


class ClipStructure(StructureEncoder):
    """The vision tower of a CLIP or SigLIP folder or hub id, of the whole model or of the tower alone.

    Raises :class:`ModelError` for what cannot be found, read or matched; pickles are not opened.
    """

    def __init__(self, model: str, device: str = "cpu", precision: Precision = "float32"):
        folder = model_folder(model, safetensors_only=True)
        found = read_model_type(folder, FAMILIES, "CLIP features")
        family, published = FAMILIES[found]
        loaded: Any = load_model(folder, safetensors_only=True)
        self._network: Any = loaded if found.endswith("_vision_model") else loaded.vision_model
        super().__init__(
            kind=family.lower(),
            label=f"{family} {model_label(model)}",
            origin=folder_origin(folder),
            patch=patch_size(self._network.config, folder),
            width=self._network.config.hidden_size,
            normalisation=read_normalisation(folder, published),
            device=device,
            precision=precision,
        )
        self._network.to(self.device, self.dtype)

    def feature_map(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """See :meth:`StructureEncoder.feature_map`."""
        output = self._network(pixel_values=pixels, interpolate_pos_encoding=True)
        return patch_map(output.last_hidden_state, pixels, self.patch)
