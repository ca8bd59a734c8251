"""The perceptual distances as scores of pairs, opened by name; the weights: ``flowgrain.pretrained``."""

from pathlib import Path

from flowgrain.evaluate.reconstruction.perceptual import PerceptualDistance
from flowgrain.pretrained.perceptual import Network
from flowgrain.pretrained.perceptual_weights import (
    LoadedNetwork,
    lpips_network,
    open_network,
    shift_tolerant_network,
)


def shift_tolerant_lpips(network: Network = "alex", device: str = "cpu") -> PerceptualDistance:
    """See :func:`flowgrain.pretrained.perceptual_weights.shift_tolerant_network`."""
    return _scored(shift_tolerant_network(network), device)


def lpips(network: Network, backbone: Path, heads: Path | None = None, device: str = "cpu") -> PerceptualDistance:
    """See :func:`flowgrain.pretrained.perceptual_weights.lpips_network`."""
    return _scored(lpips_network(network, backbone, heads), device)


def open_perceptual(spec: str, heads: Path | None = None, device: str = "cpu") -> PerceptualDistance:
    """See :func:`flowgrain.pretrained.perceptual_weights.open_network`."""
    return _scored(open_network(spec, heads), device)


def _scored(loaded: LoadedNetwork, device: str) -> PerceptualDistance:
    return PerceptualDistance(loaded.title, loaded.version, loaded.network, device)
