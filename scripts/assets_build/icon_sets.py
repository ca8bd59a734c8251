"""Read SVG icon sets in the iconify JSON layout and rasterise single icons."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image


@dataclass(frozen=True)
class IconSet:
    """One unpacked iconify package: SVG bodies, aliases and categories, all keyed by kebab-case names."""

    width: int
    height: int
    icons: dict[str, dict]
    aliases: dict[str, dict]
    categories: dict[str, list[str]]
    names_by_code: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> IconSet:
        data = json.loads((folder / "icons.json").read_text())
        meta = json.loads((folder / "metadata.json").read_text())
        chars = folder / "chars.json"
        return cls(
            width=data["width"],
            height=data["height"],
            icons=data["icons"],
            aliases={k: v for k, v in data.get("aliases", {}).items() if set(v) == {"parent"}},
            categories=meta["categories"],
            names_by_code=json.loads(chars.read_text()) if chars.exists() else {},
        )

    def __contains__(self, name: str) -> bool:
        return name in self.icons or name in self.aliases

    def render(self, name: str, size: int) -> np.ndarray:
        """The icon on white, ``size`` x ``size`` RGB bytes."""
        icon = self.icons[self.aliases[name]["parent"] if name in self.aliases else name]
        width, height = icon.get("width", self.width), icon.get("height", self.height)
        left, top = icon.get("left", 0), icon.get("top", 0)
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{left} {top} {width} {height}" width="{size}" height="{size}">{icon["body"]}</svg>'
        )
        png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size)
        return on_white(Image.open(io.BytesIO(bytes(png))), size)


def on_white(image: Image.Image, size: int) -> np.ndarray:
    """Flatten transparency onto white and centre the picture on a square of ``size`` pixels."""
    rgba = image.convert("RGBA")
    rgba.thumbnail((size, size), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (size, size), (255, 255, 255, 255))
    canvas.alpha_composite(rgba, ((size - rgba.width) // 2, (size - rgba.height) // 2))
    return np.asarray(canvas.convert("RGB"))
