"""Feature maps of ImageNet MobileNetV2 (arXiv 1801.04381): a small convolutional reference, for comparison.

Its weights come from the package index. The farther in, the coarser: 32 channels at 1/8 of the side, 96 at 1/16, 320 at
1/32, each what the last block of that resolution gives.
"""

from jaxtyping import Float
from torch import Tensor

from flowgrain.align.encoders.base import StructureEncoder
from flowgrain.align.encoders.normalisation import Normalisation
from flowgrain.pretrained import mobilenet
from flowgrain.pretrained.precision import Precision


class MobileNetStructure(StructureEncoder):
    """The map at ``stride`` 8, 16 or 32. Raises what :func:`mobilenet.load_mobilenet_v2` raises."""

    def __init__(self, stride: int = 16, device: str = "cpu", precision: Precision = "float32"):
        self._stride = stride
        self._network = mobilenet.load_mobilenet_v2()
        super().__init__(
            kind="mobilenet",
            label=f"MobileNetV2 at 1/{stride}",
            origin=f"torchvision IMAGENET1K_V1 sha256 {mobilenet.WEIGHTS_SHA256} stride {stride}",
            patch=stride,
            width=mobilenet.STAGES[stride][1],
            normalisation=Normalisation(mobilenet.MEAN, mobilenet.STD),
            device=device,
            precision=precision,
        )
        self._network.to(self.device, self.dtype)

    def feature_map(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """See :meth:`StructureEncoder.feature_map`."""
        return self._network.stage(pixels, self._stride)
