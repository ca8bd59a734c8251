"""What the weights of a model are called in another program's adapter files, and which rows of ours they hold."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from flowgrain.adapters.plan import Component
from flowgrain.adapters.targets import Layer, adaptable_layers, sides
from flowgrain.errors import ConfigError
from flowgrain.export.original_names import Place, Places, flux_places, same_places, sd3_places, sdxl_places
from flowgrain.families.base import Family

Target = Literal["diffusers", "kohya", "comfyui"]
"""Programs that an adapter file can be for."""

_TEXT_PREFIXES = {
    "stable-diffusion": {"text_encoder": "lora_te"},
    "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "sd3": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "flux": {"text_encoder": "lora_te1"},
}
"""Family -> text encoder -> how kohya's files name it; T5 has no adapters here."""
KOHYA_FAMILIES = tuple(_TEXT_PREFIXES)
_UNETS = ("stable-diffusion", "sdxl")
_COMFY_BLOCKS = (
    "auraflow", "pixart-alpha", "pixart-sigma", "flux2", "flux2-klein", "qwen-image", "z-image",
)  # fmt: skip
"""Families whose blocks' layers ComfyUI knows by diffusers' names; of other layers it knows some."""


@dataclass(frozen=True)
class Rows:
    """Rows of a layer's weight."""

    layer: str
    start: int
    stop: int


@dataclass(frozen=True)
class Module:
    """A weight of another program: rows of our layers, one under another."""

    name: str
    """What its keys in files begin with."""
    component: str
    is_text: bool
    """Whether the component is a text encoder."""
    rows: tuple[Rows, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers that it holds rows of, in order of first appearance."""
        return tuple(dict.fromkeys(rows.layer for rows in self.rows))


@dataclass(frozen=True)
class Keys:
    """Endings of a module's keys."""

    down: str
    up: str
    magnitude: str | None
    """None where the format has no DoRA that its readers compute as it was trained."""
    alpha: str | None
    """None where readers take alpha = rank."""


@dataclass(frozen=True)
class Format:
    """A program's adapter files for one model."""

    target: Target
    keys: Keys
    modules: tuple[Module, ...]
    why_no_dora: str = ""
    """Why ``keys.magnitude`` is None."""


def peft_magnitude(is_text: bool) -> str:
    """Ending of the key of DoRA's row lengths: diffusers loads the backbone, transformers the text encoders."""
    return ".lora_magnitude_vector.weight" if is_text else ".lora_magnitude_vector"


KOHYA_KEYS = Keys(".lora_down.weight", ".lora_up.weight", ".dora_scale", ".alpha")
_COMFY_DORA = (
    "ComfyUI divides by the row lengths of W where DoRA divides by those of W + s B A (and its releases before April "
    "2025 by the columns'), so that it would draw other pictures"
)


def file_format(family: Family, target: Target) -> Format:
    """The format of ``target``'s files for a family; raises ConfigError where it has none for this family."""
    components = components_of(family)
    if target == "diffusers":
        keys = Keys(".lora_A.weight", ".lora_B.weight", peft_magnitude(is_text=False), None)
        return Format(target, keys, tuple(own_modules(components)))
    if target == "kohya" or family.name in _UNETS:
        if family.name not in KOHYA_FAMILIES:
            raise ConfigError(
                f"--to kohya: there is no such layout for {family.name} models, only for {', '.join(KOHYA_FAMILIES)}; "
                "use --to diffusers or --to merged"
            )
        modules = tuple(kohya_modules(family, components))
        keys = KOHYA_KEYS if target == "kohya" else Keys(KOHYA_KEYS.down, KOHYA_KEYS.up, None, KOHYA_KEYS.alpha)
        return Format(target, keys, modules, "" if target == "kohya" else _COMFY_DORA)
    if family.name not in (*KOHYA_FAMILIES, *_COMFY_BLOCKS):
        raise ConfigError(
            f"--to comfyui: its names for {family.name} models are not known; use --to diffusers or merged"
        )
    keys = Keys(".lora_A.weight", ".lora_B.weight", None, ".alpha")
    modules = own_modules(components)
    if family.name in _COMFY_BLOCKS:
        inside = _block_layers(family)
        modules = [module for module in modules if module.rows[0].layer in inside]
    return Format(target, keys, tuple(modules), _COMFY_DORA)


def components_of(family: Family) -> list[Component]:
    """A family's components as adapters name them."""
    return [Component(name, module, name != family.backbone_name) for name, module in family.components().items()]


def own_modules(components: list[Component]) -> list[Module]:
    """diffusers' names, which are ours: each layer by itself."""
    return [
        module
        for component in components
        for module in placed_modules(component, same_places(), component.file_prefix, dotted=True)
    ]


def kohya_modules(family: Family, components: list[Component]) -> list[Module]:
    """kohya's names: the original code's with underscores; CLIP's layers keep the level that transformers dropped."""
    found: list[Module] = []
    for component in components:
        prefix = _TEXT_PREFIXES[family.name].get(component.name)
        if not component.is_text:
            found += placed_modules(component, original_places(family, component), "lora_unet_")
        elif prefix is not None:
            found += placed_modules(component, same_places(), f"{prefix}_{_level(component)}")
    return found


def names_on_import(family: Family) -> dict[str, Module]:
    """Every name of a weight that is known in adapter files of a family, of whichever program."""
    components = components_of(family)
    modules = own_modules(components)
    if family.name in KOHYA_FAMILIES:
        modules += kohya_modules(family, components)
        backbone = components[0]
        original = original_places(family, backbone)
        modules += placed_modules(backbone, original, "diffusion_model.", dotted=True)  # ComfyUI's own
        modules += placed_modules(components[1], same_places(), f"lora_te_{_level(components[1])}")
    for prefix in ("lora_unet_", "lora_transformer_", "lycoris_"):  # older SDXL trainers, OneTrainer, SimpleTuner
        modules += placed_modules(components[0], same_places(), prefix)
    names = {module.name: module for module in reversed(modules)}  # the first of equal names counts
    if family.name in _UNETS:
        names |= {_processor_name(module.name): module for module in own_modules(components[:1])}
    return names


def original_places(family: Family, backbone: Component) -> Places:
    """Where a family's original code, or kohya's version of it, keeps the backbone's layers."""
    layers = adaptable_layers(backbone.module)
    if family.name == "sdxl":
        return sdxl_places(layers)
    if family.name == "flux":
        return flux_places()
    return sd3_places(layers) if family.name == "sd3" else same_places()


def placed_modules(component: Component, places: Places, prefix: str, *, dotted: bool = False) -> list[Module]:
    """A component's weights as another program holds them, in our order of layers."""
    held: dict[str, list[tuple[Place, str, Layer]]] = {}
    for name, layer in adaptable_layers(component.module).items():
        place = places(name)
        if place is not None:
            held.setdefault(place.module, []).append((place, name, layer))
    return [
        Module(
            prefix + (name if dotted else name.replace(".", "_")),
            component.name,
            component.is_text,
            tuple(_rows(entries)),
        )
        for name, entries in held.items()
    ]


def _rows(entries: list[tuple[Place, str, Layer]]) -> Iterable[Rows]:
    for place, name, layer in sorted(entries, key=lambda entry: entry[0].order):
        height = sides(layer)[0]
        if place.halves_swapped:
            yield Rows(name, height // 2, height)
            yield Rows(name, 0, height // 2)
        else:
            yield Rows(name, 0, height)


def _level(component: Component) -> str:
    """The level of CLIP's layer names that files have and the component has not, as kohya writes it."""
    return component.file_prefix.removeprefix(f"{component.name}.").replace(".", "_")


def _processor_name(name: str) -> str:
    """diffusers' name of an attention layer before its release 0.22: ``attn1.processor.to_out``."""
    return name.replace(".to_", ".processor.to_").removesuffix(".0" if ".to_out." in name else "")


def _block_layers(family: Family) -> set[str]:
    """The names of the backbone's layers that are part of its repeated blocks."""
    inside = {id(module) for block in family.blocks() for module in block.modules()}
    return {name for name, layer in adaptable_layers(family.backbone).items() if id(layer) in inside}
