"""The law of noise levels in a recipe (section ``time``)."""

from typing import Literal

from pydantic import Field, model_validator

from flowgrain.config import Config
from flowgrain.errors import ConfigError
from flowgrain.flow.time_laws import LinearShift, LogitNormal, TimeLaw, UniformTime
from flowgrain.granularity import GRANULARITIES, Granularity

TimeKind = Literal["logit_normal", "uniform"]


class ShiftConfig(Config):
    """A resolution shift of one's own: the line through (base_tokens, base_shift) and (max_tokens, max_shift)."""

    base_tokens: int = Field(default=256, gt=0)
    max_tokens: int = Field(default=4096, gt=0)
    base_shift: float = 0.5
    max_shift: float = 1.15

    @model_validator(mode="after")
    def _two_points(self) -> "ShiftConfig":
        if self.base_tokens == self.max_tokens:
            raise ValueError(f"base_tokens and max_tokens must differ, both are {self.base_tokens}")
        return self


class TimeConfig(Config):
    """The law of noise levels: conditional logit-normal with resolution shift (Eqs. 29-31), or uniform."""

    kind: Literal["model", "logit_normal", "uniform"] = Field(
        default="model",
        description="as the model was trained (flow matching: logit-normal, diffusion: uniform), or one",
    )
    mean: float = Field(default=0.0, description="mean of logit t before the shifts (logit_normal)")
    std: float = Field(default=1.0, gt=0, description="standard deviation of logit t, the paper's s (logit_normal)")
    granularity_shift: dict[Granularity, float] = Field(
        default_factory=dict,
        description="Delta(xi) of Eq. 29, positive = noisier; granularities left out get 0 (logit_normal)",
    )
    resolution_shift: Literal["model", "none"] | ShiftConfig = Field(
        default="model", description="mu(tokens) of Eq. 31: the model's own line, none, or one's own (logit_normal)"
    )

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "TimeConfig":
        if self.kind == "uniform" and (problem := self._not_read_by_uniform()):
            raise ValueError(f"{problem}, or choose time.kind logit_normal")
        return self

    def law(self, model_shift: LinearShift | None, model_kind: TimeKind = "logit_normal") -> TimeLaw:
        """The time law, with the model's own kind and resolution shift where the recipe asks for them.

        Raises ConfigError for a key that the law does not read.
        """
        if (model_kind if self.kind == "model" else self.kind) == "uniform":
            if problem := self._not_read_by_uniform():
                raise ConfigError(
                    f"{problem}, or choose time.kind logit_normal (time.kind is '{self.kind}', and this model's own "
                    "law is uniform)"
                )
            return UniformTime()
        shift: LinearShift | None = None
        if isinstance(self.resolution_shift, ShiftConfig):
            shift = LinearShift(**self.resolution_shift.model_dump())
        elif self.resolution_shift == "model":
            shift = model_shift
        delta = tuple(self.granularity_shift.get(granularity, 0.0) for granularity in GRANULARITIES)
        return LogitNormal(mean=self.mean, std=self.std, delta=delta, shift=shift)

    def _not_read_by_uniform(self) -> str:
        """What is set that a uniform law does not read, and what to do; empty where nothing is.

        Values are compared, not what was written: a run's own recipe.yaml writes all of them.
        """
        if any(self.granularity_shift.values()):
            return (
                "time.granularity_shift is not read by a uniform law of noise levels: remove it and give each "
                "granularity its own weighting.gamma instead (weighting.kind min_snr)"
            )
        for key in ("mean", "std", "resolution_shift"):
            if getattr(self, key) != type(self).model_fields[key].default:
                return f"time.{key} is not read by a uniform law of noise levels: remove it"
        return ""
