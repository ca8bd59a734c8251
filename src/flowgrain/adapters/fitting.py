"""An adapter's updates by the layers of a model, every one checked to be of this model."""

from torch import nn

from flowgrain.adapters.source import AdapterSource, LayerUpdate, layer_names
from flowgrain.adapters.targets import Layer, adaptable_layers, sides
from flowgrain.errors import CheckpointError
from flowgrain.families.base import Family

LayerUpdates = dict[tuple[str, str], LayerUpdate]
"""(component, its own layer name) -> update."""


def fitting_updates(family: Family, source: AdapterSource) -> LayerUpdates:
    """A source's updates by our names; ``family`` may be a skeleton or quantised.

    Raises CheckpointError for an update whose layer the model does not have, or has in another shape.
    """
    components, found = family.components(), {}
    for component, updates in source.components.items():
        if component not in components:
            raise CheckpointError(
                f"{source.file}: adapts {component}, the model has only {', '.join(components)}; give its own model"
            )
        layers = adaptable_layers(components[component])
        own = layer_names(updates, set(layers))
        for name, update in updates.items():
            _check(source, component, own[name], layers.get(own[name]), update)
            found[component, own[name]] = update
    return found


def _check(source: AdapterSource, component: str, name: str, layer: Layer | None, update: LayerUpdate) -> None:
    if layer is None:
        raise CheckpointError(
            f"{source.file}: adapts {name}, which {component} has no linear layer or convolution for; give its own "
            "model"
        )
    own = _shape(layer)
    if own != update.shape:
        raise CheckpointError(
            f"{source.file}: {name} is {_size(update.shape)} there and {_size(own)} in the model; give its own model"
        )


def _shape(layer: Layer) -> tuple[int, ...]:
    """Shape of the weight as it was before it was quantised."""
    return tuple(layer.weight.shape) if isinstance(layer, nn.Conv2d) else sides(layer)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in shape)
