"""SimpleTuner's LoRA and optimizer options."""

import math

from flowgrain.convert import flux_law
from flowgrain.convert.draft import Draft
from flowgrain.convert.options import Options

_ATTENTION = flux_law.IMAGE_ATTENTION + flux_law.TEXT_ATTENTION + flux_law.SINGLE_ATTENTION
_MLPS = flux_law.IMAGE_MLP + flux_law.TEXT_MLP + flux_law.SINGLE_MLP
_TARGETS: dict[str, tuple[str, ...]] = {
    "all": _ATTENTION,
    "all+ffs": _ATTENTION + _MLPS,
    "mmdit": flux_law.IMAGE_ATTENTION + flux_law.SINGLE_ATTENTION,
    "context": flux_law.TEXT_ATTENTION,
    "context+ffs": flux_law.TEXT_ATTENTION + flux_law.TEXT_MLP,
    "ai-toolkit": _ATTENTION
    + _MLPS
    + flux_law.IMAGE_MODULATION
    + flux_law.TEXT_MODULATION
    + flux_law.SINGLE_MODULATION,
}
"""Layers of each ``flux_lora_target`` as OPTIONS.md describes them."""

_OPTIMIZERS: dict[str, tuple[str, str]] = {
    "adamw_bf16": ("adamw", "parameters and state are float32, not bfloat16 with stochastic rounding"),
    "bnb-adamw": ("adamw", ""),
    "bnb-adamw-paged": ("adamw", "its state is not paged"),
    "optimi-adamw": ("adamw", "without Kahan summation: parameters are float32"),
    "ao-adamw8bit": ("adamw8bit", "bitsandbytes' 8 bits instead of torchao's"),
    "bnb-adamw8bit": ("adamw8bit", ""),
    "bnb-adamw8bit-paged": ("adamw8bit", "its state is not paged"),
    "optimi-lion": ("lion", "without Kahan summation: parameters are float32"),
    "bnb-lion": ("lion", ""),
    "bnb-lion-paged": ("lion", "its state is not paged"),
    "bnb-lion8bit": ("lion", "its state is kept in 32 bits"),
    "bnb-lion8bit-paged": ("lion", "its state is kept in 32 bits"),
    "prodigy": ("prodigy", ""),
}


def write_adapter(options: Options, draft: Draft) -> None:
    """``adapter``."""
    dora = options.flag("use_dora")
    kind = options.text("lora_type", "standard")
    cited = options.cite("use_dora" if dora else "lora_type")
    draft.complete("adapter.kind", "dora" if dora else "lora", cited.origin)
    if kind != "standard":
        draft.unsupported(
            options.cite("lora_type"), "LyCORIS is not there; adapter.kind lora is written with the ranks below"
        )
    elif not dora:
        draft.same(options.cite("lora_type"), "adapter.kind")
    if options.given("use_dora"):
        draft.same(options.cite("use_dora"), "adapter.kind")
    rank = options.integer("lora_rank", 16) or 16
    draft.convert(options.cite("lora_rank"), "adapter.rank", rank)
    alpha = options.number("lora_alpha")
    if alpha:
        draft.convert(options.cite("lora_alpha"), "adapter.alpha", alpha)
    else:
        draft.complete("adapter.alpha", float(rank), "lora_rank: alpha follows the rank where it is not set")
    draft.convert(options.cite("lora_dropout"), "adapter.dropout", options.number("lora_dropout", 0.1))
    if options.text("lora_init_type", "default") != "default":
        draft.unsupported(options.cite("lora_init_type"), "peft's default start: B is 0")
    elif options.given("lora_init_type"):
        draft.not_needed(options.cite("lora_init_type"), "peft's default start")
    target = options.text("flux_lora_target", "all") or "all"
    if target in _TARGETS:
        draft.convert(options.cite("flux_lora_target"), "adapter.targets", list(_TARGETS[target]))
    else:
        draft.unsupported(
            options.cite("flux_lora_target"),
            "name its layers in adapter.targets; all attention and MLP layers until then",
        )
    if options.active("init_lora"):
        draft.convert(options.cite("init_lora"), "adapter.init_from.path", options.text("init_lora"))
        draft.complete("adapter.init_from.mode", "continue", "init_lora")
    if options.given("lora_format"):
        note = "diffusers' format, always; docs/from-simpletuner.md says how ComfyUI reads it"
        draft.not_needed(options.cite("lora_format"), note)


def write_optimizer(options: Options, draft: Draft, batch: int) -> None:
    """``optimizer`` and ``clip``; ``batch`` for lr_scale."""
    name = options.text("optimizer", "adamw_bf16") or "adamw_bf16"
    cited = options.cite("optimizer")
    ours, difference = _OPTIMIZERS.get(name, ("adamw", ""))
    if name in _OPTIMIZERS:
        draft.convert(cited, "optimizer.name", ours, difference)
    else:
        draft.complete("optimizer.name", ours, cited.origin)
        draft.unsupported(cited, "there are adamw, adamw8bit, lion and prodigy; adamw is written: check optimizer.lr")
    rate = options.number("learning_rate", 4e-7) or 0.0
    factor, note = 1.0, ""
    if options.flag("lr_scale"):
        factor = math.sqrt(batch) if options.flag("lr_scale_sqrt") else float(batch)
        note = f"times {factor:g}: lr_scale"
    draft.convert(options.cite("learning_rate"), "optimizer.lr", rate * factor, note)
    for flag in ("lr_scale", "lr_scale_sqrt"):
        if options.given(flag):
            draft.same(options.cite(flag), "optimizer.lr")
    _write_settings(options, draft, ours)
    norm = options.number("max_grad_norm", 2.0)
    method = options.text("grad_clip_method", "value")
    other = "" if method == "norm" else "the norm of all gradients is limited, not each value"
    draft.convert(options.cite("max_grad_norm"), "clip", norm or None, other)
    if options.given("grad_clip_method"):
        draft.same(options.cite("grad_clip_method"), "clip", other)


def _write_settings(options: Options, draft: Draft, ours: str) -> None:
    extra = _pairs(options)
    options.cite("optimizer_config")
    for source, name in ((extra, "weight_decay"), (options, "adam_weight_decay")):
        if source.given(name) and not draft.has("optimizer.weight_decay"):
            draft.convert(source.cite(name), "optimizer.weight_decay", source.number(name))
    for source, name in ((extra, "eps"), (options, "adam_epsilon")):
        if source.given(name) and ours != "lion":
            draft.convert(source.cite(name), "optimizer.eps", source.number(name))
        elif source.given(name):
            draft.not_needed(source.cite(name), "lion has none")
    for first, second in (("optimizer_beta1", "optimizer_beta2"), ("adam_beta1", "adam_beta2")):
        if options.given(first) and options.given(second) and not draft.has("optimizer.betas"):
            draft.convert(options.cite(first), "optimizer.betas", [options.number(first), options.number(second)])
            draft.same(options.cite(second), "optimizer.betas")
        for name in (first, second):
            if options.given(name) and name in options.unread():
                draft.not_needed(options.cite(name), "both betas are needed, or optimizer_beta1 and 2 decide")
    for key in extra.unread():
        draft.unsupported(extra.cite(key), "the optimizer here has no such setting")


def _pairs(options: Options) -> Options:
    """``key=value,key=value`` of optimizer_config."""
    found: dict[str, str] = {}
    for part in (options.text("optimizer_config") or "").split(","):
        key, _, value = part.partition("=")
        if key.strip():
            found[key.strip()] = value.strip()
    return Options(found, options.where, {key: f"optimizer_config {key}" for key in found})
