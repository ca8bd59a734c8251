"""The path between data and noise in a recipe (section ``path``), and the noise at its end (section ``noise``)."""

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from flowgrain.config import Config
from flowgrain.errors import ConfigError
from flowgrain.flow.paths import Path
from flowgrain.flow.variance_preserving import PredictionType, VariancePreserving

_EPSILON_AT_ZERO = (
    "epsilon does not go with zero terminal SNR: the last step is noise alone, of which predicting the noise says "
    "nothing about the picture; set path.prediction to v_prediction or path.zero_terminal_snr to false"
)


class PathConfig(Config):
    """What a diffusion model predicts, and its last noise level; flow-matching models read neither."""

    prediction: Literal["model"] | PredictionType = Field(
        default="model", description="what the network predicts: as its scheduler says, or noise, v or x0"
    )
    zero_terminal_snr: Literal["model"] | bool = Field(
        default="model",
        description="whether the last noise level is pure noise (Lin et al. 2024): as its scheduler says, or so",
    )

    @model_validator(mode="after")
    def _predicts_something_at_the_end(self) -> "PathConfig":
        if self.prediction == "epsilon" and self.zero_terminal_snr is True:
            raise ValueError(f"path.prediction {_EPSILON_AT_ZERO}")
        return self

    @property
    def overrides(self) -> tuple[PredictionType | None, bool | None]:
        """Prediction type and zero terminal SNR, None where they are the model's own."""
        return (
            None if self.prediction == "model" else self.prediction,
            None if self.zero_terminal_snr == "model" else self.zero_terminal_snr,
        )

    def build(self, default: Path) -> Path:
        """The model's own path ``default`` with what the recipe says otherwise.

        Raises ConfigError for keys that a flow-matching model does not read, and for a path without sense.
        """
        if not isinstance(default, VariancePreserving):
            for key, value in (("prediction", self.prediction), ("zero_terminal_snr", self.zero_terminal_snr)):
                if value != "model":
                    raise ConfigError(
                        f"path.{key} is {value}, but this is a flow-matching model, which predicts the velocity and "
                        "has no table of noise levels; remove the key"
                    )
            return default
        prediction, zero = self.overrides
        prediction = default.prediction if prediction is None else prediction
        zero = default.schedule.zero_terminal_snr if zero is None else zero
        if prediction == "epsilon" and zero:
            raise ConfigError(f"path.prediction: {_EPSILON_AT_ZERO}")
        return VariancePreserving(replace(default.schedule, zero_terminal_snr=zero), prediction)


class NoiseConfig(Config):
    """The noise of training. Offset noise moves the mean of each channel, which noise of its own never does.

    noise + (offset + adaptive |mean of x0|) * N(0, 1), one draw a sample and channel (crosslabs 2023; kohya's trainer).
    The model predicts the noise that it was given, the offset included.
    """

    offset: float = Field(
        default=0.0, ge=0, description="strength of offset noise; SDXL was trained with 0.0357; 0 = none"
    )
    adaptive: float = Field(
        default=0.0,
        description="added to the offset: this times the absolute mean of the latent's channel",
    )

    @model_validator(mode="after")
    def _adapts_an_offset(self) -> "NoiseConfig":
        if self.adaptive and not self.offset:
            raise ValueError("noise.adaptive is not read where noise.offset is 0: set noise.offset or remove it")
        return self
