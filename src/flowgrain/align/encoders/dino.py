"""DINOv2 (arXiv 2304.07193, with registers 2309.16588) and DINOv3 (2508.10104) vision transformers.

Patch tokens after the final layer norm, without class and register tokens, as REPA and iREPA take them
(``x_norm_patchtokens``).
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from flowgrain.align.encoders.base import StructureEncoder, patch_map
from flowgrain.align.encoders.normalisation import IMAGENET, read_normalisation
from flowgrain.align.encoders.vision_folder import folder_origin, patch_size
from flowgrain.pretrained.precision import Precision
from flowgrain.pretrained.transformers_loading import load_model, read_model_type
from flowgrain.pretrained.weights import model_folder, model_label

FAMILIES = {"dinov2": "DINOv2", "dinov2_with_registers": "DINOv2 with registers", "dinov3_vit": "DINOv3"}
"""``model_type`` of config.json -> family."""


class DinoStructure(StructureEncoder):
    """A DINOv2 or DINOv3 vision transformer from a folder or hub id.

    Raises :class:`ModelError` for what cannot be found, read or matched; pickles are not opened.
    """

    def __init__(self, model: str, device: str = "cpu", precision: Precision = "float32"):
        folder = model_folder(model, safetensors_only=True)
        family = FAMILIES[read_model_type(folder, FAMILIES, "DINO features")]
        self._network: Any = load_model(folder, safetensors_only=True)
        super().__init__(
            kind="dino",
            label=f"{family} {model_label(model)}",
            origin=folder_origin(folder),
            patch=patch_size(self._network.config, folder),
            width=self._network.config.hidden_size,
            normalisation=read_normalisation(folder, IMAGENET),
            device=device,
            precision=precision,
        )
        self._network.to(self.device, self.dtype)

    def feature_map(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """See :meth:`StructureEncoder.feature_map`."""
        # class token, then registers where there are any, then patches
        return patch_map(self._network(pixel_values=pixels).last_hidden_state, pixels, self.patch)
