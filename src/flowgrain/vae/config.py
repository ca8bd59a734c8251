"""Configuration of the autoencoder's losses: Eqs. 6 and 7 of Spatial Gram Alignment (arXiv 2605.20808).

    L     = L_VAE + lambda_gram w_gram L_gram + lambda_moments L_moments + lambda_scale L_scale               (Eq. 6)
    L_VAE = L_rec + lambda_p L_perceptual + lambda_adv w_adv L_adv + lambda_kl KL                             (Eq. 7)

The printed equations are lost; what each option leaves open and where its default comes from is in docs/vae.md.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from flowgrain.config import Config
from flowgrain.vae.adaptive_weight import AdaptiveWeight
from flowgrain.vae.collapse import CollapseConfig
from flowgrain.vae.discriminator import DiscriminatorConfig
from flowgrain.vae.moments import MomentForm
from flowgrain.vae.perceptual import STAND_IN, USAGE
from flowgrain.vae.reconstruction import Norm
from flowgrain.vae.teacher import TeacherForm


class ReconstructionTerm(Config):
    """L_rec, of weight 1: the scale of all others."""

    norm: Norm = Field(default="l2", description="squared or absolute error")
    clamp: bool = Field(default=False, description="cut the output to [-1, 1] first, as released SC-VAE code")


class PerceptualTerm(Config):
    """L_perceptual."""

    weight: float = Field(default=0.1, ge=0)
    network: str = Field(default=STAND_IN, description=USAGE)
    heads: Path | None = Field(default=None, description="LPIPS heads, where the lpips package is not installed")


class AdversarialTerm(Config):
    """L_adv and when it acts; updates count from 0."""

    weight: float = Field(default=0.05, ge=0)
    adaptive: AdaptiveWeight | None = Field(
        default=AdaptiveWeight(numerator="reconstruction", rule="floor", delta=1e-8, maximum=1e4),
        description="w_adv from gradients at the decoder's last layer; null: 1",
    )
    start: int = Field(default=0, ge=0, description="first update of the autoencoder that feels the discriminator")
    lead: int = Field(default=0, ge=0, description="updates before start in which the discriminator alone learns")
    alternate: bool = Field(
        default=False,
        description="from start, VAE and discriminator take turns, on different batches (SC-VAE)",
    )
    discriminator: DiscriminatorConfig = DiscriminatorConfig()


class GramTerm(Config):
    """L_gram, the Gram loss of latents against a vision model; its head and encoder are configured beside it."""

    weight: float = Field(default=0.1, ge=0)
    latent: Literal["sample", "mean"] = Field(default="sample", description="what of the posterior feeds the head")
    adaptive: AdaptiveWeight | None = Field(
        default=AdaptiveWeight(numerator="native", rule="sum", delta=1e-4, maximum=1e8),
        description="w_gram from gradients at the encoder's last layer; null: 1",
    )


class MomentTerm(Config):
    """L_moments."""

    weight: float = Field(default=1.0, ge=0)
    form: MomentForm = Field(default="mse", description="squared differences, or the divergence from the frozen one")
    teacher: TeacherForm = Field(default="strided", description="what the frozen encoder sees (A or B)")
    adaptive: AdaptiveWeight | None = Field(default=None, description="w_moments as w_gram; null: 1")


class ScaleTerm(Config):
    """L_scale, of a deeper autoencoder alone."""

    weight: float | None = Field(default=None, ge=0, description="null: 1 for a deeper autoencoder, 0 for another")
    form: Literal["pooled", "full"] = Field(
        default="pooled", description="the same number: pooled takes 1 / k^2 of the student's memory"
    )


class VaeLossConfig(Config):
    """All terms; a weight of 0 takes a term away with all that it computes."""

    reconstruction: ReconstructionTerm = ReconstructionTerm()
    perceptual: PerceptualTerm = PerceptualTerm()
    adversarial: AdversarialTerm = AdversarialTerm()
    kl: float = Field(default=0.0, ge=0, description="weight of KL to N(0, 1), the mean over latent elements")
    gram: GramTerm = GramTerm()
    moments: MomentTerm = MomentTerm()
    scale: ScaleTerm = ScaleTerm()
    collapse: CollapseConfig = CollapseConfig()

    @model_validator(mode="after")
    def _measures_exist(self) -> "VaeLossConfig":
        """A weight cannot be measured by the gradient of a term that is not there."""
        for name, term in (("adversarial", self.adversarial), ("gram", self.gram), ("moments", self.moments)):
            if term.weight and term.adaptive is not None and not self.perceptual.weight:
                if "perceptual" in term.adaptive.numerator:
                    raise ValueError(
                        f"{name}.adaptive.numerator '{term.adaptive.numerator}' needs perceptual.weight above 0; "
                        "take 'reconstruction' or 'native'"
                    )
        return self
