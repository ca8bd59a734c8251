"""From a recipe's adapter section to an adapter in a model, fresh or continued."""

from torch import Tensor

from flowgrain.adapters.base import Adapter, AdapterConfig, some
from flowgrain.adapters.dora import plain_weight
from flowgrain.adapters.full import FullAdapter
from flowgrain.adapters.fusing import fuse, fuse_all, fused_in
from flowgrain.adapters.joint import JointAdapter
from flowgrain.adapters.lora import LowRankAdapter
from flowgrain.adapters.plan import Component, LowRankPlan, low_rank_plans, planned_components
from flowgrain.adapters.source import AdapterSource, layer_names, locate_adapter, read_adapter
from flowgrain.errors import CheckpointError, ConfigError
from flowgrain.families.base import Family
from flowgrain.families.peft_layers import carries_adapter


def inject(family: Family, config: AdapterConfig, seed: int) -> Adapter:
    """Put an adapter into the components that ``config`` names; a fresh one leaves predictions bitwise what they were.

    With kind ``full`` they are so to rounding. The initial values depend on ``seed`` and the layers' names alone, not
    on dtype, device or order; with ``config.init_from`` they, or the base weights under them, are those of an earlier
    adapter. Raises ConfigError for an unknown component or target, a rank above the smallest side of a target, a DoRA
    target with an all-zero row (its direction is 0 / 0), or quantised weights that are to train; CheckpointError for
    an ``init_from`` that cannot be read or does not fit.
    """
    components = planned_components(family, config)
    for component in components:
        if carries_adapter(component.module):
            raise ConfigError(f"adapter: {component.name} carries an adapter already; remove or merge it first")
    if config.kind == "full":
        return _inject_full(family, config, components)
    plans = low_rank_plans(family, config, components)
    source = _prepare_base(family, config)
    if config.kind == "dora":
        for plan in plans:
            _refuse_empty_rows(plan)
    fused = fused_in(family)
    parts = [LowRankAdapter(plan, config, fused) for plan in plans]
    for part in parts:
        part.initialise(seed)
    adapter = parts[0] if len(parts) == 1 else JointAdapter(config, parts)
    if source is not None:
        adapter.load_state_dict(_fitting_state(source, parts, config))
    adapter.train(True)
    return adapter


def _inject_full(family: Family, config: AdapterConfig, components: list[Component]) -> Adapter:
    init = config.init_from
    if init is not None and init.mode == "fuse":
        fuse(family, init.path, init.alpha)
    adapter = FullAdapter(config, components)
    if init is not None and init.mode == "continue":
        adapter.load(locate_adapter(init.path))
    return adapter


def _prepare_base(family: Family, config: AdapterConfig) -> AdapterSource | None:
    """Fuse what ``init_from`` asks for; the adapter whose weights are continued, None where there is none."""
    if config.init_from is None:
        return None
    path, alpha = config.init_from.path, config.init_from.alpha
    if config.init_from.mode == "fuse":
        fuse(family, path, alpha)
        return None
    source = read_adapter(path, alpha)
    fuse_all(family, source.fused)
    return source


def _fitting_state(source: AdapterSource, parts: list[LowRankAdapter], config: AdapterConfig) -> dict[str, Tensor]:
    """The source's weights by our names; raises CheckpointError naming the first difference to the recipe."""
    hint = "set them alike or use adapter.init_from.mode=fuse"
    ours = {part.component.name for part in parts}
    if ours != source.components.keys():
        raise CheckpointError(
            f"{source.file}: adapts {', '.join(source.components)}, the recipe adapts {', '.join(sorted(ours))}; set "
            f"adapter.component and adapter.text_encoders alike, or {hint}"
        )
    if source.kind != config.kind:
        raise CheckpointError(f"{source.file}: is a {source.kind}, adapter.kind is {config.kind}; {hint}")
    return {name: value for part in parts for name, value in _part_state(source, part, hint).items()}


def _part_state(source: AdapterSource, part: LowRankAdapter, hint: str) -> dict[str, Tensor]:
    ours, updates = part.scalings(), source.components[part.component.name]
    own = layer_names(updates, set(ours))
    theirs = {own[name]: update for name, update in updates.items()}
    if ours.keys() != theirs.keys():
        differences = [f"lacks {some(ours.keys() - theirs.keys())}"] if ours.keys() - theirs.keys() else []
        if theirs.keys() - ours.keys():
            differences.append(f"also adapts {some(theirs.keys() - ours.keys())}")
        raise CheckpointError(f"{source.file}: {' and '.join(differences)}; set adapter.targets alike, or {hint}")
    shapes = {name: parameter.shape for name, parameter in part.parameters()}
    state = {}
    for name, (rank, alpha) in ours.items():
        update, prefix = theirs[name], part.file_name(name)
        for what, value, other in (("rank", rank, update.rank), ("alpha", alpha, update.alpha)):
            if value != other:
                raise CheckpointError(f"{source.file}: {what} of {name} is {other:g} there and {value:g} here; {hint}")
        state[f"{prefix}.lora_A.weight"], state[f"{prefix}.lora_B.weight"] = update.down, update.up
        if update.magnitude is not None:
            magnitude = part.magnitude_name(name)
            state[magnitude] = update.magnitude.view(shapes[magnitude])
    return state


def _refuse_empty_rows(plan: LowRankPlan) -> None:
    for name, layer in plan.targets.items():
        weight = plain_weight(layer)
        if weight.is_meta:  # a forecast: shapes without values
            continue
        empty = int((weight == 0).flatten(1).all(dim=1).sum())
        if empty:
            raise ConfigError(
                f"adapter.kind: dora needs a direction in every row, but {empty} of {len(weight)} rows of {name} are "
                "zero; leave that layer out of adapter.targets or use kind lora"
            )
