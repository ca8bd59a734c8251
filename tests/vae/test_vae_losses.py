"""Eqs. 6 and 7 put together: sums and weights against explicit ones, who gets gradients, start-up, and collapse."""

import pytest
import torch
from pydantic import ValidationError
from small_autoencoders import noise_for, pictures, small_vae
from torch import nn

from flowgrain.align.gram import GramTarget, gram_loss
from flowgrain.errors import ConfigError
from flowgrain.vae.adaptive_weight import AdaptiveWeight, decoder_last_layer, encoder_last_layer
from flowgrain.vae.config import VaeLossConfig
from flowgrain.vae.deeper import deepen
from flowgrain.vae.discriminator import DiscriminatorConfig, build_discriminator, discriminator_hinge, gradient_penalty
from flowgrain.vae.losses import (
    Roles,
    StageBatch,
    StageModels,
    discriminator_losses,
    generator_losses,
    reconstruct,
    roles,
)
from flowgrain.vae.moments import Moments, kl_to_standard_normal, moment_alignment
from flowgrain.vae.perceptual import PerceptualLoss
from flowgrain.vae.teacher import Teacher

SMALL = DiscriminatorConfig(layers=1, width=4)


class Blurred(nn.Module):
    """A cheap distance in the place of a network's: of 4 x 4 means."""

    def forward(self, x, y):
        return (nn.functional.avg_pool2d(x, 4) - nn.functional.avg_pool2d(y, 4)).square().mean((1, 2, 3))


def loss_config(**terms):
    """Everything off but the reconstruction and what is named."""
    off = {"perceptual": {"weight": 0}, "adversarial": {"weight": 0}, "gram": {"weight": 0}, "moments": {"weight": 0}}
    terms.setdefault("scale", {"weight": 0})
    return VaeLossConfig.model_validate(off | terms)


@pytest.fixture(scope="module")
def stage():
    """A deeper small model with all that takes part, and a micro-batch of three pictures."""
    vae, images = deepen(small_vae()), pictures(3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        discriminator = build_discriminator(SMALL)
        head = nn.Conv2d(4, 6, 3, padding=1)
    perceptual = PerceptualLoss(Blurred(), "blurred", "1", 4)
    models = StageModels(vae, perceptual, discriminator, Teacher(vae))
    reference = torch.randn(3, 16, 6, generator=torch.Generator().manual_seed(4))
    target = GramTarget.of(reference, 6)

    def gram(latents):
        return gram_loss(head(latents).flatten(2).mT, target)

    batch = StageBatch(images, noise_for(vae, images), torch.tensor([0.5, 0.25, 0.25]), gram)
    return models, batch, head


FULL = {
    "perceptual": {"weight": 0.1},
    "adversarial": {"weight": 0.05, "discriminator": SMALL.model_dump()},
    "gram": {"weight": 0.1},
    "moments": {"weight": 1.0},
    "scale": {"weight": 1.0},
    "kl": 1e-3,
}


def test_total_is_the_weighted_sum_of_its_parts(stage):
    models, batch, _ = stage
    losses = generator_losses(models, batch, loss_config(**FULL), 0)
    expected = losses.parts["reconstruction"].clone()
    for name, weight in losses.weights.items():
        expected += weight * losses.parts[name]
    assert set(losses.weights) == {"perceptual", "kl", "adversarial", "gram", "moments", "scale"}
    assert losses.total.shape == (3,)
    assert torch.allclose(losses.total, expected, rtol=1e-5)
    assert torch.equal(losses.output, reconstruct(models.vae, batch))
    assert not any(value.requires_grad for value in (*losses.parts.values(), *losses.weights.values(), losses.output))


def test_every_term_against_its_own_function(stage):
    models, batch, _ = stage
    vae = models.vae
    with torch.no_grad():
        posterior = vae.encode(batch.images).latent_dist
        latents = posterior.mean + posterior.std * batch.noise
        output = vae.decode(latents).sample
        own = Moments.of(posterior.parameters)
        parts = generator_losses(models, batch, loss_config(**FULL), 0).parts
        expected = {
            "reconstruction": (output - batch.images).square().mean((1, 2, 3)),
            "perceptual": models.perceptual(output, batch.images),
            "kl": kl_to_standard_normal(own),
            "adversarial": -models.discriminator(output).mean((1, 2, 3)),
            "gram": batch.gram(latents),
            "moments": moment_alignment(own, models.teacher.moments(batch.images)),
        }
    for name, value in expected.items():
        assert torch.allclose(parts[name], value, rtol=1e-5, atol=1e-7), name
    assert parts["moments"].tolist() == [0, 0, 0]
    assert (parts["scale"] > 0).all()


def test_adaptive_weights_are_ratios_of_two_explicit_gradients(stage):
    models, batch, _ = stage
    vae, share = models.vae, batch.weight
    losses = generator_losses(models, batch, loss_config(**FULL), 0)
    posterior = vae.encode(batch.images).latent_dist
    latents = posterior.mean + posterior.std * batch.noise
    output = vae.decode(latents).sample

    def norm(values, layer):
        return torch.autograd.grad((share * values).sum(), layer, retain_graph=True)[0].norm()

    reconstruction = (output - batch.images).square().mean((1, 2, 3))
    adversarial = -models.discriminator(output).mean((1, 2, 3))
    last = decoder_last_layer(vae)
    w_adv = norm(reconstruction, last) / norm(adversarial, last)
    assert losses.weights["adversarial"].item() == pytest.approx(0.05 * w_adv.item(), rel=1e-4)
    native = reconstruction + 0.1 * models.perceptual(output, batch.images)
    native = native + 1e-3 * kl_to_standard_normal(Moments.of(posterior.parameters)) + 0.05 * w_adv * adversarial
    last = encoder_last_layer(vae)
    w_gram = norm(native, last) / (norm(batch.gram(latents), last) + 1e-4)
    assert losses.weights["gram"].item() == pytest.approx(0.1 * w_gram.item(), rel=1e-4)


@pytest.mark.parametrize("numerator", ["reconstruction", "perceptual", "reconstruction_perceptual", "native"])
def test_numerators(stage, numerator):
    models, batch, _ = stage
    adaptive = {"numerator": numerator, "rule": "floor", "delta": 1e-8}
    terms = FULL | {"adversarial": FULL["adversarial"] | {"adaptive": adaptive}}
    weight = generator_losses(models, batch, loss_config(**terms), 0).weights["adversarial"]
    vae = models.vae
    posterior = vae.encode(batch.images).latent_dist
    output = vae.decode(posterior.mean + posterior.std * batch.noise).sample
    reconstruction = (output - batch.images).square().mean((1, 2, 3))
    perceptual = models.perceptual(output, batch.images)
    measure = {
        "reconstruction": reconstruction,
        "perceptual": perceptual,
        # KL does not reach the decoder's last layer
        "reconstruction_perceptual": reconstruction + 0.1 * perceptual,
        "native": reconstruction + 0.1 * perceptual,
    }[numerator]
    last = decoder_last_layer(vae)
    pair = [
        torch.autograd.grad((batch.weight * value).sum(), last, retain_graph=True)[0].norm()
        for value in (measure, -models.discriminator(output).mean((1, 2, 3)))
    ]
    assert weight.item() == pytest.approx(0.05 * (pair[0] / pair[1]).item(), rel=1e-4)


def test_gradients_reach_autoencoder_and_head_and_nobody_else(stage):
    models, batch, head = stage
    for module in (models.vae, head, models.discriminator):
        module.zero_grad(set_to_none=True)
    losses = generator_losses(models, batch, loss_config(**FULL), 0)
    assert all(parameter.grad is None for parameter in models.vae.parameters())
    (batch.weight * losses.total).sum().backward()
    assert all(parameter.grad is not None for parameter in models.vae.parameters())
    assert head.weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in models.discriminator.parameters())
    assert all(parameter.requires_grad for parameter in models.discriminator.parameters())
    models.vae.zero_grad(set_to_none=True)
    step = discriminator_losses(models.discriminator, batch.images, losses.output, SMALL)
    (batch.weight * step.total).sum().backward()
    assert all(parameter.grad is not None for parameter in models.discriminator.parameters())
    assert all(parameter.grad is None for parameter in models.vae.parameters())


def test_discriminator_losses(stage):
    models, batch, _ = stage
    output = batch.images.flip(0)
    plain = discriminator_losses(models.discriminator, batch.images, output, SMALL)
    logits = models.discriminator(batch.images), models.discriminator(output)
    assert torch.allclose(plain.total, discriminator_hinge(*logits))
    assert torch.allclose(plain.parts["original"], logits[0].mean((1, 2, 3)), atol=1e-7)
    penalised = SMALL.model_copy(update={"gradient_penalty": 10.0})
    both = discriminator_losses(models.discriminator, batch.images, output, penalised)
    penalty = gradient_penalty(models.discriminator, batch.images)
    assert torch.allclose(both.total, plain.total + 10 * penalty, rtol=1e-5)


def test_without_gradients_the_parts_are_the_same(stage):
    models, batch, _ = stage
    with torch.no_grad():
        quiet = generator_losses(models, batch, loss_config(**FULL), 0)
    losses = generator_losses(models, batch, loss_config(**FULL), 0)
    assert all(torch.allclose(value, losses.parts[name], rtol=1e-5) for name, value in quiet.parts.items())
    assert quiet.weights["gram"].item() == quiet.weights["adversarial"].item() == 0


def test_weight_zero_takes_a_term_away(stage):
    models, batch, _ = stage
    alone = StageBatch(batch.images, batch.noise, batch.weight)
    losses = generator_losses(StageModels(models.vae), alone, loss_config(), 0)
    assert set(losses.parts) == {"reconstruction"}
    assert torch.equal(losses.total.detach(), losses.parts["reconstruction"])
    assert losses.weights == {}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"perceptual": {"weight": 0.1}}, "perceptual.weight is above 0, but there is no perceptual network"),
        ({"adversarial": {"weight": 0.1}}, "no discriminator"),
        ({"gram": {"weight": 0.1}}, "no head with reference features"),
        ({"moments": {"weight": 0.1}}, "no teacher"),
        ({"scale": {"weight": None}}, "no teacher"),
    ],
)
def test_a_term_without_its_model_is_an_error(stage, terms, message):
    models, batch, _ = stage
    alone = StageBatch(batch.images, batch.noise, batch.weight)
    with pytest.raises(ConfigError, match=message):
        generator_losses(StageModels(models.vae), alone, loss_config(**terms), 0)


def test_scale_of_a_model_that_is_not_deeper():
    vae, images = small_vae(), pictures()
    batch = StageBatch(images, noise_for(vae, images), torch.ones(2))
    with pytest.raises(ConfigError, match=r"scale\.weight: the autoencoder is not deeper"):
        generator_losses(StageModels(vae), batch, loss_config(scale={"weight": 1.0}), 0)
    losses = generator_losses(StageModels(vae), batch, loss_config(scale={"weight": None}), 0)
    assert "scale" not in losses.parts


def test_mean_instead_of_sample_feeds_the_head(stage):
    models, batch, _ = stage
    seen = []
    spy = StageBatch(batch.images, batch.noise, batch.weight, lambda z: seen.append(z) or batch.gram(z))
    for latent in ("sample", "mean"):
        generator_losses(models, spy, loss_config(gram={"weight": 1.0, "latent": latent}), 0)
    posterior = models.vae.encode(batch.images).latent_dist
    assert torch.allclose(seen[0], posterior.mean + posterior.std * batch.noise)
    assert torch.allclose(seen[1], posterior.mean)


def test_moments_may_have_an_adaptive_weight_and_share_the_measure(stage):
    models, batch, _ = stage
    adaptive = AdaptiveWeight(rule="floor", delta=1e-8).model_dump()
    terms = {"moments": {"weight": 1.0, "adaptive": adaptive, "teacher": "downsampled"}, "gram": {"weight": 1.0}}
    losses = generator_losses(models, batch, loss_config(**terms), 0)
    assert losses.weights["moments"].item() > 0
    # at the start, in form A, the term has no gradient: weight 0, not the maximum
    started = loss_config(moments={"weight": 1.0, "adaptive": adaptive})
    assert generator_losses(models, batch, started, 0).weights["moments"].item() == 0


def test_given_weights_are_taken(stage):
    models, batch, _ = stage
    given = {"adversarial": torch.tensor(2.0), "gram": torch.tensor(3.0)}
    weights = generator_losses(models, batch, loss_config(**FULL), 0, given=given).weights
    assert weights["adversarial"].item() == pytest.approx(0.1)
    assert weights["gram"].item() == pytest.approx(0.3)


def test_given_weights_make_micro_batches_exact(stage):
    models, batch, _ = stage
    config = loss_config(gram={"weight": 0.1}, moments={"weight": 1.0, "teacher": "downsampled"}, scale={"weight": 1.0})
    given = {"gram": torch.tensor(1.5)}
    whole = generator_losses(models, batch, config, 0, given=given)
    for row in range(3):
        part = StageBatch(batch.images[row : row + 1], batch.noise[row : row + 1], batch.weight[row : row + 1])
        small = loss_config(moments={"weight": 1.0, "teacher": "downsampled"}, scale={"weight": 1.0})
        alone = generator_losses(models, part, small, 0)
        assert torch.allclose(alone.total, (whole.total - 0.15 * whole.parts["gram"])[row], rtol=1e-4)


def test_a_layer_that_does_not_train_cannot_measure(stage):
    models, batch, _ = stage
    layer = encoder_last_layer(models.vae)
    layer.requires_grad_(False)
    try:
        with pytest.raises(ConfigError, match=r"gram\.adaptive: the layer it is measured at does not train"):
            generator_losses(models, batch, loss_config(gram={"weight": 1.0}), 0)
        fixed = loss_config(gram={"weight": 1.0, "adaptive": None})
        assert generator_losses(models, batch, fixed, 0).weights["gram"].item() == 1
    finally:
        layer.requires_grad_(True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_start_up_in_low_precision(stage, dtype):
    models, batch, _ = stage
    config = loss_config(**FULL)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = generator_losses(models, batch, config, 0)
    assert losses.total.isfinite().all()
    assert losses.total.dtype == torch.float32
    assert all(weight.isfinite() and weight >= 0 for weight in losses.weights.values())
    models.vae.zero_grad(set_to_none=True)
    losses.total.mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in models.vae.parameters())


def test_a_dead_discriminator_and_a_batch_of_weight_zero(stage):
    models, batch, _ = stage
    with torch.random.fork_rng():
        dead = build_discriminator(SMALL)
    for parameter in dead.parameters():
        nn.init.zeros_(parameter)
    models = StageModels(models.vae, models.perceptual, dead, models.teacher)
    empty = StageBatch(batch.images, batch.noise, torch.zeros(3), batch.gram)
    losses = generator_losses(models, empty, loss_config(**FULL), 0)
    assert losses.weights["adversarial"].item() == 0
    assert losses.total.isfinite().all()


def test_the_adversarial_pull_is_bounded_from_its_first_update_on(stage):
    models, batch, _ = stage
    weight = generator_losses(models, batch, loss_config(**FULL), 0).weights["adversarial"]
    vae = models.vae
    posterior = vae.encode(batch.images).latent_dist
    output = vae.decode(posterior.mean + posterior.std * batch.noise).sample
    last = decoder_last_layer(vae)
    pull, native = (
        torch.autograd.grad((batch.weight * value).sum(), last, retain_graph=True)[0].norm()
        for value in (
            -models.discriminator(output).mean((1, 2, 3)),
            (output - batch.images).square().mean((1, 2, 3)),
        )
    )
    assert weight * pull <= 0.05 * native * (1 + 1e-4)


def test_roles_over_updates():
    term = VaeLossConfig.model_validate({"adversarial": {"start": 3, "lead": 2}}).adversarial
    assert [roles(term, update) for update in range(4)] == [
        Roles(True, False, False),
        Roles(True, True, False),
        Roles(True, True, False),
        Roles(True, True, True),
    ]
    turns = term.model_copy(update={"alternate": True})
    assert [roles(turns, update) for update in (2, 3, 4, 5)] == [
        Roles(True, True, False),
        Roles(True, False, True),
        Roles(False, True, False),
        Roles(True, False, True),
    ]
    off = term.model_copy(update={"weight": 0.0})
    assert roles(off, 10) == Roles(True, False, False)


def test_before_its_start_the_discriminator_changes_nothing(stage):
    models, batch, _ = stage
    late = FULL | {"adversarial": FULL["adversarial"] | {"start": 5}}
    early = generator_losses(models, batch, loss_config(**late), 4)
    without = loss_config(**{name: term for name, term in FULL.items() if name != "adversarial"})
    assert torch.equal(early.total, generator_losses(models, batch, without, 4).total)
    assert "adversarial" in generator_losses(models, batch, loss_config(**late), 5).parts


def test_a_measure_that_does_not_exist_is_a_config_error():
    with pytest.raises(
        ValidationError, match=r"adversarial\.adaptive\.numerator 'perceptual' needs perceptual\.weight"
    ):
        VaeLossConfig.model_validate(
            {"perceptual": {"weight": 0}, "adversarial": {"adaptive": {"numerator": "perceptual"}}}
        )


def test_a_few_steps_reduce_the_loss(stage):
    _, batch, _ = stage
    vae = deepen(small_vae(seed=7))
    models = StageModels(vae, PerceptualLoss(Blurred(), "blurred", "1", 4), teacher=Teacher(vae))
    config = loss_config(perceptual={"weight": 0.1}, moments={"weight": 0.1}, scale={"weight": 0.1})
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    values = []
    for update in range(30):
        losses = generator_losses(models, batch, config, update)
        optimizer.zero_grad()
        (losses.total.mean()).backward()
        optimizer.step()
        values.append(losses.total.mean().item())
    assert values[-1] < 0.8 * values[0]
