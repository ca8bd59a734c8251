"""kohya's network options for FLUX as ``adapter``: the same layers, in diffusers' names."""

import re

from flowgrain.convert import flux_law
from flowgrain.convert.draft import Draft
from flowgrain.convert.options import Cited, Options
from flowgrain.errors import ConfigError

_GROUPS: dict[str, tuple[str, ...]] = {
    "img_attn_dim": flux_law.IMAGE_ATTENTION,
    "txt_attn_dim": flux_law.TEXT_ATTENTION,
    "img_mlp_dim": flux_law.IMAGE_MLP,
    "txt_mlp_dim": flux_law.TEXT_MLP,
    "img_mod_dim": flux_law.IMAGE_MODULATION,
    "txt_mod_dim": flux_law.TEXT_MODULATION,
    "single_dim": flux_law.SINGLE_ATTENTION + flux_law.SINGLE_MLP,
    "single_mod_dim": flux_law.SINGLE_MODULATION,
}
"""kohya's rank options by group and the layers of each: networks.lora_flux trains all of them."""

_BLOCKS = {
    "train_double_block_indices": ("transformer_blocks", 19),
    "train_single_block_indices": ("single_transformer_blocks", 38),
}
_NOT_NEEDED = {
    "conv_dim": "FLUX has no convolutions",
    "conv_alpha": "FLUX has no convolutions",
    "split_qkv": "q, k and v always have matrices of their own here",
    "verbose": "a matter of display",
}
_UNSUPPORTED = {
    **dict.fromkeys(
        ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"), "one learning rate for all"
    ),
    **dict.fromkeys(("rank_dropout", "module_dropout"), "adapter.dropout is the dropout there is"),
    **dict.fromkeys(("ggpo_sigma", "ggpo_beta"), "no perturbation of the weights: do without"),
    "network_reg_lrs": "one learning rate for all layers: leave some out with adapter.exclude instead",
    "network_reg_dims": "give adapter.ranks the layers by diffusers' names",
    "in_dims": "embedders can be named in adapter.targets: x_embedder, context_embedder, time_text_embed...",
    "train_t5xxl": "text encoders are not trained",
    "algo": "lora and dora are the adapters there are",
    "preset": "name the layers in adapter.targets",
}
_FORMAT = (
    "diffusers' format is read: convert kohya's file to ai-toolkit's with networks/convert_flux_lora.py, "
    "then set adapter.init_from.alpha to its rank"
)
_SHARED_DOWN = "q, k and v get a down matrix each, kohya's share one: the same rank spans more, the file is larger"


def write_adapter(options: Options, draft: Draft) -> None:
    """``adapter`` from network_module, network_dim, network_alpha, network_args and the weights to start from."""
    extra = network_arguments(options)
    module = options.text("network_module", "networks.lora_flux") or ""
    cited = options.cite("network_module")
    dora = extra.given("dora_wd") and extra.flag("dora_wd")
    draft.complete("adapter.kind", "dora" if dora else "lora", cited.origin)
    if module == "networks.lora_flux":
        draft.same(cited, "adapter.kind")
    elif module.startswith("lycoris") and extra.text("algo", "lora") in ("lora", "locon"):
        draft.same(cited, "adapter.kind", "trained on the layers of networks.lora_flux; set adapter.targets for others")
    else:
        draft.unsupported(
            cited, f"adapters there are: lora and dora; adapter.kind {draft.get('adapter.kind')} is written"
        )
    if extra.given("dora_wd"):
        draft.same(extra.cite("dora_wd"), "adapter.kind")
    rank = write_ranks(options, draft)
    _write_targets(extra, draft, rank, cited)
    draft.sweep(extra, _NOT_NEEDED, _UNSUPPORTED)
    options.cite("network_args")
    write_start(options, draft, _FORMAT)
    _write_text_encoders(options, draft)


def write_ranks(options: Options, draft: Draft) -> int:
    """Rank, alpha and dropout of the linear layers; returns the rank."""
    rank = options.integer("network_dim", 4) or 4
    draft.convert(options.cite("network_dim"), "adapter.rank", rank)
    alpha = options.number("network_alpha", 1.0)
    draft.convert(options.cite("network_alpha"), "adapter.alpha", alpha if alpha else float(rank))
    if options.active("network_dropout"):
        note = "drops inputs of the update; kohya drops what comes out of the down matrix"
        draft.convert(options.cite("network_dropout"), "adapter.dropout", options.number("network_dropout"), note)
    return rank


def network_arguments(options: Options) -> Options:
    """The pairs of network_args as options of their own."""
    pairs = options.pairs("network_args")
    return Options(pairs, options.where, {name: f"network_args {name}" for name in pairs})


def _write_targets(extra: Options, draft: Draft, rank: int, module: Cited) -> None:
    """The layers that kohya trains; ranks of groups; excluded blocks."""
    targets: list[str] = []
    only = extra.text("train_blocks", "all")
    if extra.given("train_blocks"):
        draft.same(extra.cite("train_blocks"), "adapter.targets")
    for name, layers in _GROUPS.items():
        group = extra.integer(name, rank)
        if only in ("single", "double") and name.startswith("single") != (only == "single"):
            continue
        if extra.given(name):
            key = f"adapter.ranks ({len(layers)} patterns)" if group else "adapter.targets"
            draft.same(extra.cite(name), key, "" if group else "0: its layers are left out")
        if not group:
            continue
        targets += layers
    ranks = {
        layer: extra.integer(name)
        for name, layers in _GROUPS.items()
        for layer in layers
        if extra.given(name) and layer in targets
    }
    exclude: list[str] = []
    for name, (blocks, count) in _BLOCKS.items():
        if not extra.given(name):
            continue
        chosen = _indices(extra, name, count)
        mine = [target for target in targets if target.startswith(f"{blocks}.")]
        if not chosen:
            targets = [target for target in targets if target not in mine]
            ranks = {layer: value for layer, value in ranks.items() if layer not in mine}
        else:
            exclude += [f"{blocks}.{index}.*" for index in range(count) if index not in chosen]
        draft.same(extra.cite(name), "adapter.exclude" if chosen else "adapter.targets")
    if not targets:
        raise ConfigError(f"{extra.where}: network_args leave no layer to train")
    draft.complete("adapter.targets", targets, f"{module.option}: the layers that kohya trains, {_SHARED_DOWN}")
    if exclude:
        draft.complete("adapter.exclude", exclude, "network_args: blocks that are not named there")
    if ranks:
        draft.complete("adapter.ranks", ranks, "network_args")


def _indices(extra: Options, name: str, count: int) -> set[int]:
    """``0,1,4-5`` as numbers; all and none as words."""
    text = (extra.text(name) or "").strip()
    if text == "all":
        return set(range(count))
    if text == "none":
        return set()
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if match is None:
            raise ConfigError(f"{extra.where}: network_args {name}: '{part}' is no block index or range")
        found |= set(range(int(match[1]), int(match[2] or match[1]) + 1))
    if found and max(found) >= count:
        raise ConfigError(f"{extra.where}: network_args {name}: block {max(found)}, FLUX has 0 to {count - 1}")
    return found


def write_start(options: Options, draft: Draft, note: str) -> None:
    """network_weights is trained further, base_weights joins the model; ``note`` says what file is read."""
    base = options.texts("base_weights")
    scales = options.texts("base_weights_multiplier")
    if options.active("network_weights"):
        cited = options.cite("network_weights")
        draft.convert(cited, "adapter.init_from.path", options.text("network_weights"), note)
        draft.complete("adapter.init_from.mode", "continue", cited.origin)
    elif len(base) == 1 and scales in ([], ["1"], ["1.0"]):
        cited = options.cite("base_weights")
        draft.convert(cited, "adapter.init_from.path", base[0], note)
        draft.complete("adapter.init_from.mode", "fuse", cited.origin)
        base = []
    if base:
        draft.unsupported(
            options.cite("base_weights"), "one adapter can be fused (adapter.init_from): merge several beforehand"
        )
    if scales and options.active("base_weights_multiplier"):
        draft.not_needed(options.cite("base_weights_multiplier"), "read with base_weights")


def _write_text_encoders(options: Options, draft: Draft) -> None:
    only = options.flag("network_train_unet_only")
    cited = options.cite("network_train_unet_only")
    if only:
        draft.not_needed(cited, "only the transformer is trained")
    else:
        draft.unsupported(
            cited, "kohya trains CLIP-L as well; here text encoders are not trained: expect a weaker trigger word"
        )
    for name in ("text_encoder_lr", "text_encoder_lr1", "text_encoder_lr2"):
        if options.active(name):
            draft.unsupported(options.cite(name), "text encoders are not trained")
        elif options.given(name):
            draft.not_needed(options.cite(name), "text encoders are not trained")
