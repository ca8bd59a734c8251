"""The image encoder of SAM 2 (Ravi et al. 2024, arXiv 2408.00714): a Hiera trunk and a feature pyramid behind it.

Spatial Gram Alignment takes "SAM2-B/32", whose stride is that of the trunk's last stage (896 channels in Hiera-B+); its
text does not say which level that is. ``trunk`` is that stage, the default; ``fpn4`` to ``fpn32`` are the levels of the
pyramid (256 channels).
"""

import math
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from flowgrain.align.encoders.base import StructureEncoder
from flowgrain.align.encoders.normalisation import IMAGENET, read_normalisation
from flowgrain.align.encoders.vision_folder import folder_origin
from flowgrain.errors import ModelError
from flowgrain.pretrained.precision import Precision
from flowgrain.pretrained.transformers_loading import load_model, read_model_type
from flowgrain.pretrained.weights import model_folder, model_label

Level = Literal["trunk", "fpn32", "fpn16", "fpn8", "fpn4"]
MODEL_TYPES = ("sam2", "sam2_video", "sam2_vision_model")
"""``model_type`` of config.json; published SAM 2.1 folders call themselves sam2_video."""


class Sam2Structure(StructureEncoder):
    """SAM 2's image encoder from a folder or hub id of a whole SAM 2 or of its vision model.

    Raises :class:`ModelError` for what cannot be found, read or matched; pickles are not opened.
    """

    def __init__(self, model: str, level: Level = "trunk", device: str = "cpu", precision: Precision = "float32"):
        folder = model_folder(model, safetensors_only=True)
        kind = read_model_type(folder, MODEL_TYPES, "SAM 2 features")
        loaded: Any = load_model(folder, safetensors_only=True)
        self._network: Any = loaded if kind == "sam2_vision_model" else loaded.vision_encoder
        trunk = self._network.config.backbone_config
        strides = stage_strides(trunk)
        stride = strides[-1] if level == "trunk" else int(level.removeprefix("fpn"))
        if stride not in strides:
            levels = ", ".join(f"fpn{each}" for each in strides)
            raise ModelError(f"{folder}: this SAM 2 has no level {level}; it has trunk, {levels}")
        self._level, self._place = level, strides.index(stride)
        # every stage halves evenly, and the position embeddings of windows are laid like tiles over the first stage
        sides = math.lcm(strides[-1], strides[0] * trunk.window_size_per_stage[0])
        super().__init__(
            kind="sam2",
            label=f"SAM 2 {model_label(model)} {level}",
            origin=f"{folder_origin(folder)} {level}",
            patch=stride,
            width=trunk.embed_dim_per_stage[-1] if level == "trunk" else self._network.config.fpn_hidden_size,
            normalisation=read_normalisation(folder, IMAGENET),
            grid_multiple=sides // math.gcd(sides, stride),
            device=device,
            precision=precision,
        )
        self._network.to(self.device, self.dtype)

    def feature_map(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c i j"]:
        """See :meth:`StructureEncoder.feature_map`."""
        stages = self._network.backbone(pixels).intermediate_hidden_states
        if self._level == "trunk":
            return stages[-1].permute(0, 3, 1, 2)
        # the neck's own output, coarse to fine: the model drops the coarsest level from what it returns
        levels, _ = self._network.neck(stages)
        return levels[len(stages) - 1 - self._place]


def stage_strides(trunk: Any) -> list[int]:
    """Pixels a place of each stage of the trunk: 4, 8, 16 and 32 of the published ones."""
    found = [_one(trunk.patch_stride)]
    for stage in range(1, len(trunk.blocks_per_stage)):
        found.append(found[-1] * (_one(trunk.query_stride) if stage <= trunk.num_query_pool_stages else 1))
    return found


def _one(sides: Any) -> int:
    """The side of a square; of an oblong one the first, which the check of the grid then refuses."""
    return int(sides[0]) if isinstance(sides, list | tuple) else int(sides)
