"""What an adapter's configuration means for one model: the components, their layers, ranks and alphas."""

import re
from dataclasses import dataclass

from peft import LoraConfig
from torch import nn
from transformers import CLIPTextModel

from flowgrain.adapters.base import AdapterConfig, TextEncoderAdapterConfig
from flowgrain.adapters.targets import Layer, ValueT, also_matched, find_targets, is_spatial, sides, values_by_layer
from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.base import Family

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""Layers by which diffusers knows the format of a text encoder's adapter."""


@dataclass(frozen=True)
class Component:
    """A module that is adapted."""

    name: str
    module: nn.Module
    is_text: bool
    """Whether it is a text encoder."""

    @property
    def file_prefix(self) -> str:
        """What the component's layers are called by in files, before their own names.

        transformers 5 took a level out of CLIPTextModel; files keep the name that all tools know.
        """
        flat = isinstance(self.module, CLIPTextModel) and "text_model" not in dict(self.module.named_children())
        return f"{self.name}.text_model." if flat else f"{self.name}."


@dataclass(frozen=True)
class LowRankPlan:
    """What is adapted in one component, and with which ranks."""

    component: Component
    targets: dict[str, Layer]
    peft: LoraConfig


def planned_components(family: Family, config: AdapterConfig) -> list[Component]:
    """The components that ``config`` adapts: the backbone, then the text encoders.

    Raises ConfigError for a name that the model does not have or that is given twice.
    """
    there, backbone = family.components(), family.backbone_name
    if config.component in there and config.component != backbone:
        raise ConfigError(
            f"adapter.component: '{config.component}' is a text encoder, which trains beside the backbone; name it in "
            "adapter.text_encoders.names"
        )
    if config.component not in (None, backbone):
        raise ConfigError(f"adapter.component: '{config.component}' is unknown; remove it, or say {backbone}")
    names = [backbone]
    if config.text_encoders is not None:
        names += _encoder_names(family, config.text_encoders)
    return [Component(name, there[name], name != backbone) for name in names]


def low_rank_plans(family: Family, config: AdapterConfig, components: list[Component]) -> list[LowRankPlan]:
    """Layers and ranks of each component; raises ConfigError for targets, ranks or layers that do not go together."""
    first, *encoders = components
    plans = [_backbone_plan(family, config, first)]
    text = config.text_encoders or TextEncoderAdapterConfig()
    rank, alpha = text.rank or config.rank, text.alpha or config.alpha
    key = "adapter.rank" if text.rank is None else "adapter.text_encoders.rank"
    for component in encoders:
        own = family.adapter_targets(component.name)  # also where the recipe names layers: the family must know it
        targets = find_targets(component.module, text.targets or own, key="adapter.text_encoders.targets")
        if not any(name.endswith(_ATTENTION) for name in targets):
            raise ConfigError(
                f"adapter.text_encoders.targets: diffusers loads no adapter of a text encoder without a layer of its "
                f"attention ({', '.join(_ATTENTION)}); name one"
            )
        for name, layer in targets.items():
            _check_rank(name, layer, rank, key)
        plans.append(LowRankPlan(component, targets, _peft_config(config, component, targets, rank, alpha)))
    return plans


def _encoder_names(family: Family, text: TextEncoderAdapterConfig) -> list[str]:
    there = [name for name in family.components() if name != family.backbone_name]
    if text.names is None:
        names = [name for name in there if _is_adaptable(family, name)]
        if not names:
            raise ConfigError(
                f"adapter.text_encoders: no text encoder of a {family.name} model can be adapted; remove the key"
            )
        return names
    for name in text.names:
        if name not in there:
            known = f"choose from {', '.join(there)}" if there else "remove the key"
            raise ConfigError(
                f"adapter.text_encoders.names: '{name}' is no text encoder of a {family.name} model; {known}"
            )
    if len(set(text.names)) != len(text.names):
        raise ConfigError("adapter.text_encoders.names: names an encoder twice; once each")
    return [name for name in there if name in text.names]


def _is_adaptable(family: Family, name: str) -> bool:
    try:
        return bool(family.adapter_targets(name))
    except ModelError:  # the family's pipeline has no place for it in an adapter file (T5)
        return False


def _backbone_plan(family: Family, config: AdapterConfig, component: Component) -> LowRankPlan:
    own = family.adapter_targets(component.name)
    if config.targets is None and config.conv_rank is not None:
        own = [*own, *family.convolution_targets(component.name)]
    targets = find_targets(component.module, config.targets or own, config.exclude)
    spatial = [name for name, layer in targets.items() if is_spatial(layer)]
    _check_convolutions(config, targets, spatial)
    given_ranks = values_by_layer("adapter.ranks", config.ranks, targets)
    given_alphas = values_by_layer("adapter.alphas", config.alphas, targets)
    ranks, alphas = dict.fromkeys(targets, config.rank), dict.fromkeys(targets, config.alpha)
    conv_rank, conv_alpha = config.conv_rank, config.resolved_conv_alpha
    if conv_rank is not None and conv_alpha is not None:
        ranks |= dict.fromkeys(spatial, conv_rank)
        alphas |= dict.fromkeys(spatial, conv_alpha)
    ranks |= given_ranks
    for name, layer in targets.items():
        key = "adapter.ranks" if name in given_ranks else "adapter.conv_rank" if name in spatial else "adapter.rank"
        _check_rank(name, layer, ranks[name], key)
    peft = _peft_config(config, component, targets, config.rank, config.alpha)
    peft.rank_pattern = _pattern(ranks, config.rank)
    peft.alpha_pattern = _pattern(alphas | given_alphas, config.alpha)
    return LowRankPlan(component, targets, peft)


def _check_convolutions(config: AdapterConfig, targets: dict[str, Layer], spatial: list[str]) -> None:
    if spatial and config.conv_rank is None:
        size = "x".join(str(side) for side in targets[spatial[0]].weight.shape[2:])
        raise ConfigError(
            f"adapter.targets: {spatial[0]} is a {size} convolution; set adapter.conv_rank, or leave it out"
        )
    if config.conv_rank is not None and not spatial:
        raise ConfigError("adapter.conv_rank: not read, no convolution larger than 1x1 is among the targets; remove it")
    for name, layer in targets.items():
        if isinstance(layer, nn.Conv2d) and (layer.groups, layer.dilation, layer.padding_mode) != (1, (1, 1), "zeros"):
            raise ConfigError(
                f"adapter.targets: {name} is a grouped, dilated or not zero-padded convolution, which has no low-rank "
                "update here; leave it out"
            )


def _check_rank(name: str, layer: Layer, rank: int, key: str) -> None:
    limit = min(sides(layer))
    if rank > limit:
        raise ConfigError(
            f"{key}: {rank} is more than {limit}, the smallest side of {name}; lower the rank or leave that layer "
            "out of adapter.targets"
        )


def _peft_config(
    config: AdapterConfig, component: Component, targets: dict[str, Layer], rank: int, alpha: float
) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType] (peft only divides it by the rank)
        lora_dropout=config.dropout,
        target_modules=sorted(targets),
        exclude_modules=also_matched(component.module, targets) or None,
        use_dora=config.kind == "dora",
    )


def _pattern(values: dict[str, ValueT], usual: ValueT) -> dict[str, ValueT]:
    """peft's pattern for the layers whose value is not the usual one."""
    return {f"^{re.escape(name)}": value for name, value in values.items() if value != usual}
