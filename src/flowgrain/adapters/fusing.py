"""Adapters as part of the base weights: W + s B A, or m (W + s B A) / |W + s B A| by rows.

An adapter trained on fused weights is only right on the same weights, so its header names what was fused, with
digests, and whoever samples from it calls :func:`fuse_recorded` first.
"""

from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import nn

from flowgrain.adapters.adapter_file import FusedAdapter
from flowgrain.adapters.fitting import fitting_updates
from flowgrain.adapters.source import AdapterSource, read_adapter, read_recorded, recorded_fusions
from flowgrain.errors import ModelError
from flowgrain.families.base import Family

_FUSED: "WeakKeyDictionary[nn.Module, tuple[FusedAdapter, ...]]" = WeakKeyDictionary()
"""Backbone -> what the weights of its model hold by now, so that nothing is fused twice."""


def fuse(family: Family, path: Path, alpha: float | None = None) -> tuple[FusedAdapter, ...]:
    """Add the adapter that ``path`` means to the weights of its components for good; returns all that they hold.

    What that adapter was trained on top of is fused first. Raises CheckpointError for an adapter that cannot be read
    or does not fit, ModelError for weights that are quantised or hold other fused adapters.
    """
    source = read_adapter(path, alpha)
    fuse_all(family, source.fused)
    _merge(family, source)
    _FUSED[family.backbone] = (*fused_in(family), FusedAdapter(str(source.file.resolve()), source.sha256, alpha))
    return fused_in(family)


def fuse_recorded(family: Family, path: Path) -> tuple[FusedAdapter, ...]:
    """Fuse what the adapter that ``path`` means was trained on top of, not itself; nothing for an ordinary adapter.

    To be called before that adapter is loaded for sampling. Weights that hold the same adapters already stay as they
    are. Raises as :func:`fuse`, and CheckpointError where a recorded file is gone or has changed.
    """
    return fuse_all(family, recorded_fusions(path))


def fuse_all(family: Family, wanted: tuple[FusedAdapter, ...]) -> tuple[FusedAdapter, ...]:
    """Bring the weights of a model to hold exactly ``wanted``; raises as :func:`fuse_recorded`."""
    present = [entry.sha256 for entry in fused_in(family)]
    if present != [entry.sha256 for entry in wanted][: len(present)]:
        raise ModelError(
            f"the weights hold other fused adapters ({', '.join(entry.path for entry in fused_in(family))}) than this "
            "adapter was trained on; load the model afresh"
        )
    for entry in wanted[len(present) :]:
        _merge(family, read_recorded(entry))
        _FUSED[family.backbone] = (*fused_in(family), entry)
    return fused_in(family)


def fused_in(family: Family) -> tuple[FusedAdapter, ...]:
    """What the weights of a model hold by :func:`fuse`."""
    return _FUSED.get(family.backbone, ())


def _merge(family: Family, source: AdapterSource) -> None:
    """Check all layers of all components, then change them."""
    components, found = family.components(), []
    for (component, name), update in fitting_updates(family, source).items():
        weight = components[component].get_submodule(name).weight
        if type(weight) is not nn.Parameter or not weight.is_floating_point():
            raise ModelError(f"{component}.{name}: its weight is quantised; adapters fuse into plain weights only")
        found.append((weight, update))
    with torch.no_grad():
        for weight, update in found:
            weight.copy_(update.merged(weight))
