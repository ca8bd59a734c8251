"""kohya's network options for SDXL and Stable Diffusion as ``adapter``: networks.lora, and LyCORIS' LoCon and DoRA."""

from flowgrain.convert.draft import Draft
from flowgrain.convert.kohya_adapter import network_arguments, write_ranks, write_start
from flowgrain.convert.kohya_command import Architecture
from flowgrain.convert.options import Cited, Options
from flowgrain.errors import ConfigError

_FORMAT = "diffusers' format is read: convert kohya's file to it first"
_ENCODERS: dict[Architecture, tuple[str, ...]] = {"sdxl": ("text_encoder", "text_encoder_2"), "sd": ("text_encoder",)}
_FULL_PRESET = "without conv_in, conv_out and the time embedding, which LyCORIS' preset full adapts as well"

_BY_BLOCK = "one rank and rate for all blocks: give adapter.ranks and optimizer.lrs diffusers' names"
_NOT_NEEDED = {
    "algo": "read with network_module",
    "verbose": "a matter of display",
    "rank_dropout_scale": "read with rank_dropout alone",
}
_UNSUPPORTED = {
    **dict.fromkeys(("block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas"), _BY_BLOCK),
    **dict.fromkeys(("down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold"), _BY_BLOCK),
    **dict.fromkeys(
        ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio"),
        "give optimizer.lrs the pattern *lora_B*, with that many times the rate",
    ),
    **dict.fromkeys(("rank_dropout", "module_dropout"), "adapter.dropout is the dropout there is"),
    **dict.fromkeys(("use_tucker", "use_cp", "use_scalar", "rs_lora", "train_norm"), "the adapter has no such setting"),
    "preset": "name the layers in adapter.targets",
    "factor": "lora and dora are the adapters there are",
}


def write_unet_adapter(options: Options, draft: Draft) -> None:
    """``adapter``: kind, ranks of linear layers and convolutions, the weights to start from."""
    extra = network_arguments(options)
    module = options.text("network_module", "networks.lora") or ""
    lycoris = module.startswith("lycoris")
    cited = options.cite("network_module")
    dora = extra.given("dora_wd") and extra.flag("dora_wd")
    draft.complete("adapter.kind", "dora" if dora else "lora", cited.origin)
    if module == "networks.lora":
        draft.same(cited, "adapter.kind")
    elif lycoris and extra.text("algo", "lora") in ("lora", "locon"):
        draft.same(cited, "adapter.kind", _FULL_PRESET)
    else:
        draft.unsupported(cited, "lora and dora are the adapters there are; lora is written with the ranks below")
    if extra.given("dora_wd"):
        note = "row lengths are not differentiated through the norm; LyCORIS differentiates them" if dora else ""
        draft.same(extra.cite("dora_wd"), "adapter.kind", note)
    rank = write_ranks(options, draft)
    if extra.active("dropout") and not draft.has("adapter.dropout"):
        draft.convert(extra.cite("dropout"), "adapter.dropout", extra.number("dropout"), "drops inputs of the update")
    _write_convolutions(extra, draft, cited, lycoris, rank)
    draft.sweep(extra, _NOT_NEEDED, _UNSUPPORTED)
    options.cite("network_args")
    write_start(options, draft, _FORMAT)


def _write_convolutions(extra: Options, draft: Draft, module: Cited, lycoris: bool, rank: int) -> None:
    """Convolutions: with conv_dim (networks.lora), or always, with network_dim where it is left out (LyCORIS)."""
    given = extra.integer("conv_dim", rank if lycoris else None)
    alpha = extra.number("conv_alpha", draft.get("adapter.alpha") if lycoris else 1.0)
    if not given:
        for name in ("conv_dim", "conv_alpha"):
            if extra.given(name):
                draft.not_needed(extra.cite(name), "convolutions are not adapted")
        return
    if extra.given("conv_dim"):
        draft.convert(extra.cite("conv_dim"), "adapter.conv_rank", given)
    else:
        draft.complete("adapter.conv_rank", given, f"{module.option}: network_dim, where conv_dim is left out")
    cited = extra.cite("conv_alpha")
    draft.convert(cited, "adapter.conv_alpha", alpha if alpha else float(given))


def write_text_encoders(options: Options, draft: Draft, architecture: Architecture) -> None:
    """``adapter.text_encoders`` with their rates in ``optimizer.lrs``; they train unless network_train_unet_only."""
    names = _ENCODERS[architecture]
    only = options.flag("network_train_unet_only")
    cited = options.cite("network_train_unet_only")
    rates = {name: rate for name, rate in _rates(options, names).items() if rate}
    sources = [name for name in ("text_encoder_lr", "text_encoder_lr1", "text_encoder_lr2") if options.given(name)]
    if only or not rates:
        draft.not_needed(cited, "the U-Net alone is trained" if only else "text encoders have the rate 0")
        for name in sources:
            draft.not_needed(options.cite(name), "text encoders are not trained")
        return
    draft.complete("adapter.text_encoders.names", list(rates), cited.origin)
    draft.complete("data.cache_text", False, "text encoders train: captions are encoded in every update, as there")
    draft.same(cited, "adapter.text_encoders")
    backbone = draft.get("optimizer.lr")
    own = {f"{name}.*": rate for name, rate in rates.items() if rate != backbone}
    if own and draft.get("optimizer.name") == "prodigy":
        for name in sources:
            draft.unsupported(options.cite(name), "Prodigy estimates one rate for all: optimizer.lr is its factor")
        return
    if own:
        draft.complete("optimizer.lrs", own, ", ".join(sources) or "learning_rate")
    for name in sources:
        draft.same(options.cite(name), "optimizer.lrs" if own else "optimizer.lr")


def _rates(options: Options, names: tuple[str, ...]) -> dict[str, float]:
    """The learning rate of each text encoder: one for all, one each, or learning_rate."""
    given = options.texts("text_encoder_lr")
    try:
        values = [float(value) for value in given]
    except ValueError:
        raise ConfigError(f"{options.where}: text_encoder_lr: expected numbers, got {', '.join(given)}") from None
    fallback = options.number("learning_rate", 2e-6) or 0.0
    first = values[0] if values else fallback
    rates = [first, *(values[1:] or [first])]
    found = dict(zip(names, rates, strict=False))
    for name, own in zip(names, ("text_encoder_lr1", "text_encoder_lr2"), strict=False):
        if options.given(own):
            found[name] = options.number(own) or 0.0
    return found
