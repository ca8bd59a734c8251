"""From the recipe's ``align`` section to terms with heads, and to the reference's tokens of a data set."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from flowgrain import rng
from flowgrain.align.encoders.base import StructureEncoder
from flowgrain.align.encoders.registry import EncoderConfig, open_structure_encoder
from flowgrain.align.features import FeatureCache, FeatureSource, LiveFeatures, forecast_feature_bytes
from flowgrain.align.references import References, Wanted, wanted_references
from flowgrain.align.terms.base import AlignmentConfig, AlignmentTerm, TermShape
from flowgrain.data.config import DataConfig
from flowgrain.data.dataset import SliceDataset
from flowgrain.families.registry import load_skeleton
from flowgrain.train.recipe import Recipe
from flowgrain.train.tap_layout import TapLayout, tap_layouts

Encoders = Mapping[EncoderConfig, StructureEncoder]
Progress = Callable[[str, int, int], None]
"""(what, done, total)"""


def layouts_of(recipe: Recipe) -> dict[str, TapLayout]:
    """Layouts of the taps that the recipe's terms name, from the model's configuration files; empty without terms.

    Raises ModelError for a tap that the model does not have.
    """
    terms = recipe.terms_in_force
    if not terms:
        return {}
    model = recipe.model
    skeleton = load_skeleton(model.path, model.family, getattr(torch, model.dtype), model.config, model.vae)
    return tap_layouts(skeleton, (term.tap for term in terms))


def open_encoders(terms: Sequence[AlignmentConfig], device: torch.device) -> dict[EncoderConfig, StructureEncoder]:
    """Each encoder that a term names, once. Raises what the encoders raise."""
    return {config: open_structure_encoder(config, str(device)) for config in dict.fromkeys(t.encoder for t in terms)}


def shapes_of(
    terms: Sequence[AlignmentConfig], layouts: Mapping[str, TapLayout], encoders: Encoders
) -> dict[str, TermShape]:
    """By a term's name, what it has to know of model and encoder."""
    found = {}
    for term in terms:
        tap, encoder = layouts[term.tap], encoders[term.encoder]
        found[term.name] = TermShape(tap.width, tap.cells, encoder.width, encoder.grid_multiple)
    return found


def build_terms(recipe: Recipe, shapes: Mapping[str, TermShape], device: torch.device) -> tuple[AlignmentTerm, ...]:
    """The recipe's terms, heads initialised from the run's seed; raises ConfigError for a head that does not fit."""
    seed = rng.stable_seed(recipe.seed, "alignment")
    terms = tuple(AlignmentTerm(config, shapes[config.name], seed) for config in recipe.terms_in_force)
    for term in terms:
        term.head().to(device)
    return terms


def open_references(
    terms: Sequence[AlignmentTerm],
    dataset: SliceDataset,
    encoders: Encoders,
    latent_scale: int,
    on_progress: Progress,
) -> References | None:
    """The reference's tokens of a data set, filled caches or live encoders as ``data.cache`` says; None without terms.

    Encoders whose tokens are cached leave the device. Raises ConfigError for a slice without a grid, DataError and
    ModelError as :class:`FeatureCache`.
    """
    if not terms:
        return None
    cache = dataset.config.cache
    sources: list[tuple[Wanted, FeatureSource]] = []
    for wanted in wanted_references(terms, dataset, latent_scale):
        encoder = encoders[wanted.encoder]
        if cache is False:
            sources.append((wanted, LiveFeatures(dataset, encoder, wanted.rule, wanted.kept)))
            continue
        kept = FeatureCache(cache if isinstance(cache, Path) else None, encoder, wanted.rule, wanted.kept)
        kept.fill(dataset, dataset.flips, _labelled(on_progress, wanted.encoder.kind))
        sources.append((wanted, kept))
    if cache is not False:
        for encoder in encoders.values():
            encoder.move("cpu")
    return References(sources)


def _labelled(on_progress: Progress, kind: str) -> Callable[[int, int], None]:
    return lambda done, total: on_progress(f"caching: {kind} features", done, total)


def reference_bytes(
    terms: Sequence[AlignmentTerm], dataset: SliceDataset, encoders: Encoders, latent_scale: int
) -> int:
    """Bytes of the reference's tokens of a data set in the cache, both mirror states where it flips."""
    return sum(
        forecast_feature_bytes(dataset, encoders[wanted.encoder].width, wanted.rule, wanted.kept)
        for wanted in wanted_references(terms, dataset, latent_scale)
    )


def encoder_bytes(data: DataConfig, encoders: Iterable[StructureEncoder]) -> int:
    """Bytes of encoders that stay on the device while training: none where their tokens are cached."""
    return sum(encoder.weight_bytes() for encoder in encoders) if data.cache is False else 0
