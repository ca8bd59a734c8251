"""The weight of the loss at a noise level in a recipe (section ``weighting``)."""

from typing import Any, Literal

from pydantic import Field, model_validator

from flowgrain.config import Config
from flowgrain.errors import ConfigError
from flowgrain.flow.paths import Path
from flowgrain.flow.variance_preserving import VariancePreserving
from flowgrain.flow.weightings import Debiased, MinSnr, Uniform, Weighting
from flowgrain.granularity import GRANULARITIES


class GammaConfig(Config):
    """Gamma of Eq. 32 for each granularity; the paper's are 4, 5 and 7."""

    macro: float = Field(gt=0, description="gamma of macro slices")
    meso: float = Field(gt=0, description="gamma of meso slices")
    micro: float = Field(gt=0, description="gamma of micro slices")

    @model_validator(mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return (
            dict.fromkeys(GRANULARITIES, value)
            if isinstance(value, int | float) and not isinstance(value, bool)
            else value
        )

    @property
    def values(self) -> tuple[float, float, float]:
        """By granularity index."""
        return self.macro, self.meso, self.micro


HANG_ET_AL = GammaConfig(macro=5.0, meso=5.0, micro=5.0)
"""The gamma of Min-SNR's paper (arXiv 2303.09556)."""


class WeightingConfig(Config):
    """omega(t, xi): 1, Min-SNR with a gamma for each granularity (Eqs. 32-33), or debiased estimation."""

    kind: Literal["none", "min_snr", "debiased"] = Field(
        default="none", description="of the loss by SNR, for diffusion models: none, Min-SNR or debiased estimation"
    )
    gamma: GammaConfig = Field(
        default=HANG_ET_AL,
        description="SNR above which the weight falls (min_snr): a number or {macro, meso, micro}; default 5",
    )

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "WeightingConfig":
        # compared by value: the resolved recipe of a run spells out every key and must stay valid
        if self.kind != "min_snr" and self.gamma != HANG_ET_AL:
            raise ValueError(f"weighting.gamma is not read by weighting.kind {self.kind}: remove it or choose min_snr")
        return self

    def build(self, path: Path) -> Weighting:
        """The weighting on ``path``; raises ConfigError where it means nothing there."""
        if self.kind == "none":
            return Uniform()
        if not isinstance(path, VariancePreserving):
            raise ConfigError(
                f"weighting.kind {self.kind} weighs the steps of a diffusion model by their SNR, this is a "
                "flow-matching model: set it to none and modulate the noise levels with time.granularity_shift"
            )
        if self.kind == "min_snr":
            return MinSnr(path, self.gamma.values)
        if path.prediction == "sample":
            raise ConfigError(
                "weighting.kind debiased is defined for models that predict noise or v, this one predicts x0: choose "
                "none or min_snr"
            )
        return Debiased(path)
