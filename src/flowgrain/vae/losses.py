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


@dataclass(frozen=True)
class LossTerm:
    """One term of a micro-batch, with its graph."""

    name: str
    value: Float[Tensor, " b"]
    weight: float
    adaptive: AdaptiveWeight | None = None
    layer: nn.Parameter | None = None
    """Where the adaptive weight is measured."""
    native: bool = True
    """Whether it is part of L_VAE, which weights of terms on latents are measured by."""


@dataclass(frozen=True)
class LossTerms:
    """All terms of a micro-batch."""

    terms: list[LossTerm]
    output: Float[Tensor, "b c h w"]
    """The reconstruction, with its graph."""


def loss_terms(models: StageModels, batch: StageBatch, config: VaeLossConfig, update: int) -> LossTerms:
    """The terms of Eqs. 6 and 7 before their weights: those of L_VAE first, the reconstruction at the head.

    Raises :class:`ConfigError` where a term of positive weight lacks its model, the autoencoder is not deeper and has a
    scale term, or a layer at which a weight is measured does not train.
    """
    scale_weight = _scale_weight(models.vae, config.scale)
    vae: Any = models.vae
    with captured_input(vae.decoder.conv_out) as found:
        posterior = vae.encode(batch.images).latent_dist
        own = Moments.of(posterior.parameters)
        latents = own.sample(batch.noise)
        output = vae.decode(latents.to(vae.dtype)).sample

    rec = config.reconstruction
    terms = [LossTerm("reconstruction", reconstruction_error(output, batch.images, rec.norm, rec.clamp), 1.0)]
    if config.perceptual.weight:
        perceptual = _present(models.perceptual, "perceptual", "perceptual network")
        terms.append(LossTerm("perceptual", perceptual(output, batch.images), config.perceptual.weight))
    if config.kl:
        terms.append(LossTerm("kl", kl_to_standard_normal(own), config.kl))
    if roles(config.adversarial, update).adversarial:
        discriminator = _present(models.discriminator, "adversarial", "discriminator")
        with frozen(discriminator):
            value = generator_hinge(discriminator(output))
        term = config.adversarial
        terms.append(LossTerm("adversarial", value, term.weight, term.adaptive, decoder_last_layer(vae)))
    if config.gram.weight:
        gram, term = _present(batch.gram, "gram", "head with reference features"), config.gram
        value = gram(latents if term.latent == "sample" else own.mean)
        terms.append(LossTerm("gram", value, term.weight, term.adaptive, encoder_last_layer(vae), native=False))
    if config.moments.weight:
        teacher, term = _present(models.teacher, "moments", "teacher"), config.moments
        value = moment_alignment(own, teacher.moments(batch.images, term.teacher), term.form)
        terms.append(LossTerm("moments", value, term.weight, term.adaptive, encoder_last_layer(vae), native=False))
    if scale_weight:
        teacher = _present(models.teacher, "scale", "teacher")
        value = _scale(found.one(), teacher, batch.images, config.scale)
        terms.append(LossTerm("scale", value, scale_weight, native=False))
    for term in terms:
        if term.adaptive is not None and term.layer is not None and not term.layer.requires_grad:
            raise ConfigError(f"{term.name}.adaptive: the layer it is measured at does not train; set it to null")
    return LossTerms(terms, output)


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
    ``gram``, ``moments``) that are taken instead of measured. Raises as :func:`loss_terms`. Under ``torch.no_grad``
    measured weights are 0; ``parts`` are what a validation reads.
    """
    run = _Measuring(batch, config, combine, given or {})
    found = loss_terms(models, batch, config, update)
    for term in found.terms:
        run.add(term)
    return GeneratorLosses(
        run.total, {name: value.detach() for name, value in run.values.items()}, run.weights, found.output.detach()
    )


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

    def add(self, term: LossTerm) -> None:
        """Add the term times its weight times its adaptive weight."""
        if not term.native and self.native is None:
            self.native = self.total
        self.values[term.name] = term.value
        scale = term.value.new_tensor(term.weight)
        if term.adaptive is not None and term.layer is not None:
            measured = self.given.get(term.name)
            if measured is None:
                own = self._norm(term.value, term.layer)
                measured = weight_from_norms(self._native_norm(term.adaptive.numerator, term.layer), own, term.adaptive)
            scale = scale * measured.to(scale.device)
        self.total = self.total + scale * term.value
        if term.name != "reconstruction":
            self.weights[term.name] = scale

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
        shares = numerator_shares(kind, self.config)
        first, *rest = [share * self.values[name] for name, share in shares.items()]
        return sum(rest, first)

    def _mean(self, values: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """Weighted by slices; plain where all weights are 0, as in the padding of a process that has less to do."""
        weight = self.batch.weight.to(values)
        total = weight.sum()
        return torch.where(total > 0, (weight * values).sum() / total.clamp(min=1e-12), values.mean())


def numerator_shares(kind: Numerator, config: VaeLossConfig) -> dict[str, float]:
    """Terms and factors of what an adaptive weight is measured by; not for ``native``, which depends on weights."""
    if kind == "reconstruction_perceptual":
        return {"reconstruction": 1.0, "perceptual": config.perceptual.weight}
    return {kind: 1.0}


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
