"""What is minimised of the prediction's error (section ``loss``)."""

from typing import Literal

from pydantic import Field, model_validator

from flowgrain.align.haar import BandWeights
from flowgrain.align.wavelet import WaveletLoss
from flowgrain.config import Config
from flowgrain.flow.paths import Path


class BandsConfig(Config):
    """Weights of the four bands of one Haar level; all 1, as released, emphasises none."""

    ll: float = Field(default=1.0, ge=0, description="averages of 2 x 2 latent cells")
    lh: float = Field(default=1.0, ge=0, description="differences between rows")
    hl: float = Field(default=1.0, ge=0, description="differences between columns")
    hh: float = Field(default=1.0, ge=0, description="diagonal differences")

    @model_validator(mode="after")
    def _something_counts(self) -> "BandsConfig":
        if not any((self.ll, self.lh, self.hl, self.hh)):
            raise ValueError("loss.bands are all 0, and nothing would be trained: give one of them a weight")
        return self


class LossConfig(Config):
    """The squared error of what the model predicts, or the wavelet loss of Diffusion-4K."""

    kind: Literal["mse", "wavelet"] = Field(
        default="mse", description="mse, or wavelet: of x0's Haar bands, sigma^2 times mse of velocities by default"
    )
    bands: BandsConfig = Field(default_factory=BandsConfig, description="weights of the bands (wavelet)")

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "LossConfig":
        if self.kind == "mse" and self.bands != BandsConfig():
            raise ValueError("loss.bands is not read by loss.kind mse: remove it or choose wavelet")
        return self

    def build(self, path: Path) -> WaveletLoss | None:
        """The wavelet loss on ``path``; None for the squared error."""
        if self.kind == "mse":
            return None
        bands = self.bands
        return WaveletLoss(path, BandWeights(bands.ll, bands.lh, bands.hl, bands.hh))
