"""The losses of one micro-batch: one function for the autoencoder's step, one for the discriminator's.

Values are by sample, adaptive weights by micro-batch: a value times its weight is what a sample adds to the loss, and
the loop's slice weights go on top. Adaptive weights depend on which samples meet in a micro-batch; ``given`` weights
make a micro-batch exact again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.errors import ConfigError
from flowgrain.vae.adaptive_weight import (
    AdaptiveWeight,
    Combine,
    Numerator,
    decoder_last_layer,
    encoder_last_layer,
    gradient_norm,
    weight_from_norms,
)
from flowgrain.vae.config import AdversarialTerm, ScaleTerm, VaeLossConfig
from flowgrain.vae.deeper import depth_of
from flowgrain.vae.discriminator import (
    Discriminator,
    DiscriminatorConfig,
    discriminator_hinge,
    frozen,
    generator_hinge,
    gradient_penalty,
)
from flowgrain.vae.moments import Moments, kl_to_standard_normal, moment_alignment
from flowgrain.vae.perceptual import PerceptualLoss
from flowgrain.vae.reconstruction import reconstruction_error
from flowgrain.vae.scale_consistency import captured_input, pooled_scale_consistency, scale_consistency
from flowgrain.vae.teacher import Teacher

LatentTerm = Callable[[Tensor], Tensor]
"""Latents (b, c, h, w), unscaled, to one value a sample: head and Gram loss with the micro-batch's reference inside."""


@dataclass(frozen=True)
class StageModels:
    """What takes part; None where its terms have weight 0."""

    vae: AutoencoderKL
    perceptual: PerceptualLoss | None = None
    discriminator: Discriminator | None = None
    teacher: Teacher | None = None


@dataclass(frozen=True)
class StageBatch:
    """One micro-batch."""

    images: Float[Tensor, "b c h w"]
    """In [-1, 1]."""
    noise: Float[Tensor, "b d i j"]
    """Standard normal, of the latents' shape: makes the posterior's sample."""
    weight: Float[Tensor, " b"]
    """Slice weights: the means that adaptive weights are measured on use them."""
    gram: LatentTerm | None = None


@dataclass(frozen=True)
class GeneratorLosses:
    """Of the autoencoder and the Gram head."""

    total: Float[Tensor, " b"]
    """What is differentiated, by sample, before slice weights."""
    parts: dict[str, Tensor]
    """Each term by sample, before its weight, detached."""
    weights: dict[str, Tensor]
    """What each term but the reconstruction was multiplied by, lambda times w; scalars."""
    output: Float[Tensor, "b c h w"]
    """The reconstruction, detached: for the discriminator's step and the watch for collapse."""


@dataclass(frozen=True)
class DiscriminatorLosses:
    """Of the discriminator."""

    total: Float[Tensor, " b"]
    parts: dict[str, Tensor]
    """``hinge``, ``penalty`` before its weight, ``original`` and ``output`` (mean logits), detached."""


@dataclass(frozen=True)
class Roles:
    """Who learns in an update, and whether the autoencoder feels the discriminator."""

    generator: bool
    discriminator: bool
    adversarial: bool


def roles(config: AdversarialTerm, update: int) -> Roles:
    """Of update number ``update``, from 0."""
    if not config.weight:
        return Roles(generator=True, discriminator=False, adversarial=False)
    started = update >= config.start
    if started and config.alternate:
        generator = (update - config.start) % 2 == 0
        return Roles(generator, not generator, adversarial=generator)
    return Roles(generator=True, discriminator=update >= config.start - config.lead, adversarial=started)


def generator_losses(
    models: StageModels,
    batch: StageBatch,
    config: VaeLossConfig,
    update: int,
    combine: Combine | None = None,
    given: Mapping[str, Tensor] | None = None,
) -> GeneratorLosses:
    """Eqs. 6 and 7 of one micro-batch, with gradient for the autoencoder and the Gram head, not the discriminator.

    ``combine`` averages last-layer gradients over processes. ``given`` holds adaptive weights by term (``adversarial``,
    ``gram``, ``moments``) that are taken instead of measured. Raises :class:`ConfigError` where a term of positive
    weight lacks its model, or the autoencoder is not deeper and has a scale term. Under ``torch.no_grad`` measured
    weights are 0; ``parts`` are what a validation reads.
    """
    run = _Measuring(models.vae, batch, config, combine, given or {})
    scale_weight = _scale_weight(models.vae, config.scale)
    vae: Any = models.vae
    with captured_input(vae.decoder.conv_out) as found:
        posterior = vae.encode(batch.images).latent_dist
        own = Moments.of(posterior.parameters)
        latents = own.sample(batch.noise)
        output = vae.decode(latents.to(vae.dtype)).sample

    rec = config.reconstruction
    run.add("reconstruction", reconstruction_error(output, batch.images, rec.norm, rec.clamp), 1.0)
    if config.perceptual.weight:
        perceptual = _present(models.perceptual, "perceptual", "perceptual network")
        run.add("perceptual", perceptual(output, batch.images), config.perceptual.weight)
    if config.kl:
        run.add("kl", kl_to_standard_normal(own), config.kl)
    if roles(config.adversarial, update).adversarial:
        discriminator = _present(models.discriminator, "adversarial", "discriminator")
        with frozen(discriminator):
            value = generator_hinge(discriminator(output))
        term = config.adversarial
        run.add("adversarial", value, term.weight, term.adaptive, decoder_last_layer(vae))
    run.native = run.total  # L_VAE: what terms on latents are measured by
    if config.gram.weight:
        gram = _present(batch.gram, "gram", "head with reference features")
        value = gram(latents if config.gram.latent == "sample" else own.mean)
        run.add("gram", value, config.gram.weight, config.gram.adaptive, encoder_last_layer(vae))
    if config.moments.weight:
        teacher, term = _present(models.teacher, "moments", "teacher"), config.moments
        value = moment_alignment(own, teacher.moments(batch.images, term.teacher), term.form)
        run.add("moments", value, term.weight, term.adaptive, encoder_last_layer(vae))
    if scale_weight:
        teacher = _present(models.teacher, "scale", "teacher")
        run.add("scale", _scale(found.one(), teacher, batch.images, config.scale), scale_weight)
    parts = {name: value.detach() for name, value in run.values.items()}
    return GeneratorLosses(run.total, parts, run.weights, output.detach())


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, batch: StageBatch) -> Float[Tensor, "b c h w"]:
    """The output that :func:`generator_losses` judges, for updates in which the discriminator alone learns."""
    model: Any = vae
    own = Moments.of(model.encode(batch.images).latent_dist.parameters)
    return model.decode(own.sample(batch.noise).to(vae.dtype)).sample


def discriminator_losses(
    discriminator: Discriminator,
    images: Float[Tensor, "b c h w"],
    output: Float[Tensor, "b c h w"],
    config: DiscriminatorConfig,
) -> DiscriminatorLosses:
    """Hinge loss and penalty of one micro-batch, with gradient for the discriminator alone.

    ``output`` is the autoencoder's, of the same images or (SC-VAE) of the update's before.
    """
    original, reconstructed = discriminator(images), discriminator(output.detach())
    hinge = discriminator_hinge(original, reconstructed)
    logits = {"original": original, "output": reconstructed}
    parts = {"hinge": hinge.detach()} | {name: map_.detach().float().mean((1, 2, 3)) for name, map_ in logits.items()}
    if not config.gradient_penalty:
        return DiscriminatorLosses(hinge, parts)
    penalty = gradient_penalty(discriminator, images, config.penalty_form)
    parts["penalty"] = penalty.detach()
    return DiscriminatorLosses(hinge + config.gradient_penalty * penalty, parts)


@dataclass
class _Measuring:
    """Sums terms up and measures adaptive weights on the way."""

    vae: AutoencoderKL
    batch: StageBatch
    config: VaeLossConfig
    combine: Combine | None
    given: Mapping[str, Tensor]
    values: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    """At the encoder's last layer."""
    native: Tensor | None = None

    def __post_init__(self) -> None:
        self.total: Any = 0.0

    def add(
        self,
        name: str,
        value: Float[Tensor, " b"],
        weight: float,
        adaptive: AdaptiveWeight | None = None,
        layer: nn.Parameter | None = None,
    ) -> None:
        """Add ``weight`` times the adaptive weight times ``value``."""
        self.values[name] = value
        scale = value.new_tensor(weight)
        if adaptive is not None and layer is not None:
            if not layer.requires_grad:
                raise ConfigError(f"{name}.adaptive: the layer it is measured at does not train; set it to null")
            measured = self.given.get(name)
            if measured is None:
                norms = self._native_norm(adaptive.numerator, layer), self._norm(value, layer)
                measured = weight_from_norms(*norms, adaptive)
            scale = scale * measured.to(scale.device)
        self.total = self.total + scale * value
        if name != "reconstruction":
            self.weights[name] = scale

    def _native_norm(self, kind: Numerator, layer: nn.Parameter) -> Float[Tensor, ""]:
        """Of the measure; terms on latents share it, and with it a backward pass through the decoder."""
        if self.native is None:
            return self._norm(self._numerator(kind), layer)
        if kind not in self.norms:
            self.norms[kind] = self._norm(self._numerator(kind), layer)
        return self.norms[kind]

    def _norm(self, values: Float[Tensor, " b"], layer: nn.Parameter) -> Float[Tensor, ""]:
        return gradient_norm(self._mean(values), layer, self.combine)

    def _numerator(self, kind: Numerator) -> Tensor:
        if kind == "native":
            return self.total if self.native is None else self.native
        if kind == "reconstruction":
            return self.values["reconstruction"]
        if kind == "perceptual":
            return self.values["perceptual"]
        return self.values["reconstruction"] + self.config.perceptual.weight * self.values["perceptual"]

    def _mean(self, values: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """Weighted by slices; plain where all weights are 0, as in the padding of a process that has less to do."""
        weight = self.batch.weight.to(values)
        total = weight.sum()
        return torch.where(total > 0, (weight * values).sum() / total.clamp(min=1e-12), values.mean())


def _scale_weight(vae: AutoencoderKL, term: ScaleTerm) -> float:
    deeper = depth_of(vae).doublings > 0
    if term.weight and not deeper:
        raise ConfigError("scale.weight: the autoencoder is not deeper than its teacher; set it to null or 0")
    return float(deeper) if term.weight is None else term.weight


def _scale(student: Tensor, teacher: Teacher, images: Tensor, term: ScaleTerm) -> Tensor:
    if term.form == "pooled":
        return pooled_scale_consistency(student, teacher.pooled_features(images))
    return scale_consistency(student, teacher.last_features(images), teacher.factor)


def _present(model: Any, term: str, what: str) -> Any:
    if model is None:
        raise ConfigError(f"{term}.weight is above 0, but there is no {what}; set {term}.weight=0 or give it")
    return model
