"""Adapters as part of the base weights: W + s B A, or m (W + s B A) / |W + s B A| by rows.

An adapter trained on fused weights is only right on the same weights, so its header names what was fused, with
digests, and whoever samples from it calls :func:`fuse_recorded` first.
"""

from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn

from flowgrain.adapters.source import AdapterSource, FusedAdapter, LayerUpdate, read_adapter
from flowgrain.errors import CheckpointError, ModelError
from flowgrain.families.base import Family

_FUSED: "WeakKeyDictionary[nn.Module, tuple[FusedAdapter, ...]]" = WeakKeyDictionary()
"""What each component's weights hold by now, so that nothing is fused twice."""


def fuse(family: Family, component: str, path: Path, alpha: float | None = None) -> tuple[FusedAdapter, ...]:
    """Add the adapter that ``path`` means to the weights of ``component`` for good; returns all that they hold.

    What that adapter was trained on top of is fused first. Raises CheckpointError for an adapter that cannot be read
    or does not fit, ModelError for weights that are quantised or hold other fused adapters.
    """
    source = read_adapter(path, alpha)
    fuse_all(family, component, source.fused)
    _merge(family, component, source)
    module = family.components()[component]
    _FUSED[module] = (*fused_in(module), FusedAdapter(str(source.file.resolve()), source.sha256, alpha))
    return _FUSED[module]


def fuse_recorded(family: Family, path: Path) -> tuple[FusedAdapter, ...]:
    """Fuse what the adapter that ``path`` means was trained on top of, not itself; nothing for an ordinary adapter.

    To be called before that adapter is loaded for sampling. Weights that hold the same adapters already stay as they
    are. Raises as :func:`fuse`, and CheckpointError where a recorded file is gone or has changed.
    """
    source = read_adapter(path)
    return fuse_all(family, source.component, source.fused)


def fuse_all(family: Family, component: str, wanted: tuple[FusedAdapter, ...]) -> tuple[FusedAdapter, ...]:
    """Bring the weights of ``component`` to hold exactly ``wanted``; raises as :func:`fuse_recorded`."""
    module = _component(family, component)
    present = [entry.sha256 for entry in fused_in(module)]
    if present != [entry.sha256 for entry in wanted][: len(present)]:
        raise ModelError(
            f"{component}: its weights hold other fused adapters ({', '.join(e.path for e in fused_in(module))}) than "
            "this adapter was trained on; load the model afresh"
        )
    for entry in wanted[len(present) :]:
        if not Path(entry.path).is_file():
            raise CheckpointError(f"{entry.path}: this adapter was trained on top of it, and it is gone; restore it")
        source = read_adapter(Path(entry.path), entry.alpha)
        if source.sha256 != entry.sha256:
            raise CheckpointError(
                f"{entry.path}: SHA-256 {source.sha256[:12]}..., but the adapter was trained on top of "
                f"{entry.sha256[:12]}...; restore that file"
            )
        _merge(family, component, source)
        _FUSED[module] = (*fused_in(module), entry)
    return fused_in(module)


def fused_in(module: nn.Module) -> tuple[FusedAdapter, ...]:
    """What the weights of a component hold by :func:`fuse`."""
    return _FUSED.get(module, ())


def _merge(family: Family, component: str, source: AdapterSource) -> None:
    """Check all layers, then change them."""
    module = _component(family, component)
    if source.component != component:
        raise CheckpointError(f"{source.file}: adapts {source.component}, not {component}; give another adapter")
    linears = {name: part for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    for name, update in source.layers.items():
        linear = linears.get(name)
        if linear is None:
            raise CheckpointError(f"{source.file}: adapts {name}, which {component} has no linear layer for")
        shape = (update.up.shape[0], update.down.shape[1])
        if (linear.out_features, linear.in_features) != shape:
            raise CheckpointError(
                f"{source.file}: {name} is {shape[0]}x{shape[1]} there and {linear.out_features}x{linear.in_features} "
                "in the model; the adapter belongs to another model"
            )
        if type(linear.weight) is not nn.Parameter or not linear.weight.is_floating_point():
            raise ModelError(f"{component}.{name}: its weight is quantised; adapters fuse into plain weights only")
    for name, update in source.layers.items():
        _merge_layer(linears[name], update)


@torch.no_grad()
def _merge_layer(linear: nn.Linear, update: LayerUpdate) -> None:
    device = linear.weight.device
    down, up = update.down.to(device), update.up.to(device)
    weight = torch.addmm(linear.weight.float(), up, down, alpha=update.alpha / update.rank)
    if update.magnitude is not None:
        weight *= (update.magnitude.to(device) / torch.linalg.vector_norm(weight, dim=1))[:, None]
    linear.weight.copy_(weight)


def _component(family: Family, component: str) -> nn.Module:
    components = family.components()
    if component not in components:
        raise CheckpointError(f"adapter of '{component}': the model has only {', '.join(components)} to adapt")
    return components[component]
