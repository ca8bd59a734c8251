"""MobileNetV2 with ImageNet weights, without torchvision: the eye that trains the autoencoder and the text."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from . import packages

# expansion, channels, repeats, first stride: table 2 of the MobileNetV2 paper.
_LAYOUT = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU6())


class _InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        layers: list[nn.Module] = [_convolution(inputs, hidden, 1)] if expansion > 1 else []
        layers += [_convolution(hidden, hidden, 3, stride, hidden)]
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class MobileNetV2(nn.Module):
    """The frozen feature network; images in [-1, 1]."""

    def __init__(self, work: Path) -> None:
        super().__init__()
        blocks: list[nn.Module] = [_convolution(3, 32, 3, 2)]
        width = 32
        for expansion, channels, repeats, stride in _LAYOUT:
            for index in range(repeats):
                blocks.append(_InvertedResidual(width, channels, stride if index == 0 else 1, expansion))
                width = channels
        blocks.append(_convolution(width, 1280, 1))
        self.features = nn.Sequential(*blocks)
        folder = packages.unpacked(work, packages.MOBILENET)
        state = torch.load(next(folder.rglob("mobilenet_v2-*.pth")), weights_only=True)
        self.load_state_dict({k: v for k, v in state.items() if k.startswith("features.")})
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def _normalised(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2 - self.mean) / self.std

    def stages(self, images: Tensor, wanted: tuple[int, ...]) -> list[Tensor]:
        """Feature maps after the given blocks; nothing past the last of them is computed."""
        maps, x = [], self._normalised(images)
        for index in range(max(wanted) + 1):
            x = self.features[index](x)
            if index in wanted:
                maps.append(x)
        return maps

    def pooled(self, images: Tensor) -> Tensor:
        """One 1280-vector an image."""
        return self.features(self._normalised(images)).mean(dim=(2, 3))
