"""Whether modulation stays what the recipe says or follows what the run measures (``docs/modulation.md``)."""

from typing import Literal

from pydantic import Field, model_validator

from flowgrain.config import Config


class ModulationConfig(Config):
    """Where Delta(xi), Gamma(xi) and the levels' weights come from while a run trains.

    ``fixed``: from ``time.granularity_shift``, ``weighting.gamma`` and ``tuples.lambdas`` alone. ``measured``: from
    there at first, then moved by the held-out losses (``validation``) and the levels' gradients (``interference``).
    """

    kind: Literal["fixed", "measured"] = Field(
        default="fixed", description="the recipe's own numbers throughout, or moved by what the run measures"
    )
    warm_up: int = Field(default=100, ge=0, description="updates that keep the recipe's own numbers (measured)")
    smoothing: float = Field(
        default=0.5, gt=0, le=1, description="part of the way to a new measurement that is gone at once (measured)"
    )
    max_shift: float = Field(
        default=1.0, gt=0, description="largest shift of a granularity from the mean of all, in logit t (validation)"
    )
    gamma_range: tuple[float, float] = Field(
        default=(1.0, 20.0), description="smallest and largest Gamma (validation, weighting.kind min_snr)"
    )
    factor_range: tuple[float, float] = Field(
        default=(0.5, 2.0), description="smallest and largest factor on tuples.lambdas (interference)"
    )
    measurements: int = Field(
        default=8, ge=3, description="measurements of interference before the first factor (interference)"
    )

    @model_validator(mode="after")
    def _every_key_is_read(self) -> "ModulationConfig":
        if self.kind == "fixed" and (changed := self.changed()):
            raise ValueError(f"modulation.{changed[0]} is not read by kind fixed: remove it or choose kind measured")
        if not 0 < self.gamma_range[0] < self.gamma_range[1]:
            raise ValueError(f"gamma_range {list(self.gamma_range)}: must be two increasing positive numbers")
        if not 0 < self.factor_range[0] < 1 < self.factor_range[1]:
            raise ValueError(f"factor_range {list(self.factor_range)}: must be positive and enclose 1")
        return self

    @property
    def measured(self) -> bool:
        """Whether anything is measured."""
        return self.kind == "measured"

    def changed(self) -> list[str]:
        """The keys beside ``kind`` that are not at their default."""
        # by value, not by what was written: a run's own recipe.yaml writes all of them
        fields = type(self).model_fields
        return [name for name in fields if name != "kind" and getattr(self, name) != fields[name].default]
