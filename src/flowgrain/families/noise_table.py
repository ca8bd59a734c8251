"""What families do alike that predict noise, v or x0 at a table of noise levels (Stable Diffusion, PixArt)."""

from abc import ABC
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers import EulerDiscreteScheduler
from jaxtyping import Float, Int
from torch import Tensor

from flowgrain.errors import ModelError
from flowgrain.families.diffusers_family import DiffusersFamily
from flowgrain.flow.paths import Path
from flowgrain.flow.time_laws import LinearShift
from flowgrain.flow.variance_preserving import BetaSchedule, NoiseSchedule, PredictionType, VariancePreserving

RESCALED = "rescale_betas_zero_snr"
"""diffusers' name for zero terminal SNR in the configuration of schedulers that know it."""
ROUNDING = 1e-5
"""How far a scheduler's float32 table may be from the exact one. Cutting zero terminal SNR at 2^-24 is within it."""


class NoiseTableFamily(DiffusersFamily, ABC):
    """A family whose scheduler is a table of noise levels, each trained equally often."""

    shifts_latents: ClassVar = False

    def default_path(self) -> Path:
        """See :meth:`Family.default_path`: the scheduler's own table and prediction type."""
        config = self._pipeline.scheduler.config
        return VariancePreserving(_schedule(config), config.prediction_type)

    def override_path(self, prediction: PredictionType | None, zero_terminal_snr: bool | None) -> None:
        """See :meth:`Family.override_path`: the scheduler is made anew.

        One that does not know zero terminal SNR becomes Euler's; sampling then begins at the last step ("trailing"), as
        Lin et al. (arXiv 2305.08891) have it.
        """
        scheduler = self._pipeline.scheduler
        changes: dict[str, Any] = {} if prediction is None else {"prediction_type": prediction}
        known = RESCALED in scheduler.config
        if zero_terminal_snr or (zero_terminal_snr is not None and known):
            changes[RESCALED] = zero_terminal_snr
        if zero_terminal_snr:
            changes["timestep_spacing"] = "trailing"
        kind = EulerDiscreteScheduler if zero_terminal_snr and not known else type(scheduler)
        self._pipeline.scheduler = kind.from_config(scheduler.config, **changes)
        check_noise_table(self._pipeline.scheduler, self._source)

    def default_shift(self) -> LinearShift | None:
        """See :meth:`Family.default_shift`: none."""
        return None

    def default_time_law(self) -> Literal["logit_normal", "uniform"]:
        """See :meth:`Family.default_time_law`."""
        return "uniform"

    def _steps(self, times: Float[Tensor, "b g"]) -> Int[Tensor, " b"]:
        """The table's entries, floor(t T), on the model's device."""
        total = self._pipeline.scheduler.config.num_train_timesteps
        return (times[:, 0].double() * total).floor().long().clamp(0, total - 1).to(self.device)

    def _check_parts(self) -> None:
        super()._check_parts()
        check_noise_table(self._pipeline.scheduler, self._source)


def check_noise_table(scheduler: Any, source: str) -> None:
    """Raise ModelError unless the scheduler is the table that its configuration says; ``source`` names the model."""
    config, name = scheduler.config, type(scheduler).__name__
    kind, prediction = config.get("beta_schedule"), config.get("prediction_type")
    known, predictions = get_args(BetaSchedule), get_args(PredictionType)
    if config.get("trained_betas") is not None or kind not in known or prediction not in predictions:
        raise ModelError(
            f"{source}: {name} with beta_schedule '{kind}' and prediction_type '{prediction}' is not "
            f"supported; beta_schedule may be {' or '.join(known)}, prediction_type {', '.join(predictions)}, "
            "and trained_betas null (scheduler/scheduler_config.json)"
        )
    if not torch.allclose(scheduler.alphas_cumprod.double(), _schedule(config).alphas_cumprod(), rtol=0, atol=ROUNDING):
        raise ModelError(
            f"{source}: the noise levels of {name} are not those that its configuration says (it does not "
            "know rescale_betas_zero_snr, say); name a scheduler that does in model_index.json, such as "
            "EulerDiscreteScheduler"
        )


def _schedule(config: Any) -> NoiseSchedule:
    return NoiseSchedule(
        steps=config.num_train_timesteps,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        kind=config.beta_schedule,
        zero_terminal_snr=bool(config.get(RESCALED, False)),
    )
