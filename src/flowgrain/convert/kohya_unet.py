"""What kohya's SDXL and Stable Diffusion scripts say of the path, the loss and the captions."""

from flowgrain.convert.draft import Draft
from flowgrain.convert.kohya_command import Architecture
from flowgrain.convert.kohya_training import write_loss
from flowgrain.convert.options import Options

_TOKENS = 75
"""Of a caption, beside the two marks: what CLIP reads, and kohya's default."""


def write_unet_loss(options: Options, draft: Draft) -> None:
    """``path``, ``weighting`` and ``noise``; noise levels are uniform there and here."""
    v_prediction = options.flag("v_parameterization")
    prediction = "v_prediction" if v_prediction else "epsilon"
    draft.convert(options.cite("v_parameterization"), "path.prediction", prediction)
    if options.given("v2"):
        draft.not_needed(options.cite("v2"), "the model says of which generation it is")
    _write_terminal_snr(options, draft, v_prediction)
    _write_weighting(options, draft)
    _write_noise(options, draft)
    write_loss(options, draft)


def write_unet_text(options: Options, draft: Draft, architecture: Architecture) -> None:
    """Which layer of the text encoder is read, and how long a caption may be."""
    skip = options.integer("clip_skip")
    if options.given("clip_skip"):
        cited = options.cite("clip_skip")
        if architecture == "sdxl":
            draft.not_needed(
                cited, "SDXL reads the layer before the last of both encoders, always, as in kohya's trainer"
            )
        elif skip in (0, 1):
            draft.not_needed(cited, "the text encoder's last layer, always")
        else:
            draft.unsupported(
                cited, "the text encoder's last layer is read: derivatives of NovelAI's model want another"
            )
    length = options.integer("max_token_length")
    if options.given("max_token_length"):
        cited = options.cite("max_token_length")
        if length == _TOKENS:
            draft.not_needed(cited, "what the model reads")
        else:
            draft.unsupported(cited, f"captions are cut at the {_TOKENS} tokens that the model reads: shorten them")


def _write_terminal_snr(options: Options, draft: Draft, v_prediction: bool) -> None:
    wanted = options.flag("zero_terminal_snr")
    cited = options.cite("zero_terminal_snr")
    if wanted and not v_prediction:
        draft.unsupported(
            cited, "it goes with v_parameterization alone: at the last step noise says nothing of the picture"
        )
        draft.complete("path.zero_terminal_snr", False, cited.origin)
    else:
        draft.convert(cited, "path.zero_terminal_snr", wanted)


def _write_weighting(options: Options, draft: Draft) -> None:
    debiased = options.given("debiased_estimation_loss") and options.flag("debiased_estimation_loss")
    if options.active("min_snr_gamma"):
        cited = options.cite("min_snr_gamma")
        draft.convert(cited, "weighting.gamma", options.number("min_snr_gamma"))
        draft.complete("weighting.kind", "min_snr", cited.origin)
        if debiased:
            draft.unsupported(options.cite("debiased_estimation_loss"), "one weighting: min_snr_gamma is kept")
    elif debiased:
        draft.convert(options.cite("debiased_estimation_loss"), "weighting.kind", "debiased")
    for name in ("min_snr_gamma", "debiased_estimation_loss"):
        if options.given(name) and not options.active(name):
            draft.not_needed(options.cite(name), "switched off there")


def _write_noise(options: Options, draft: Draft) -> None:
    if options.active("noise_offset"):
        draft.convert(options.cite("noise_offset"), "noise.offset", options.number("noise_offset"))
        if options.active("adaptive_noise_scale"):
            draft.convert(
                options.cite("adaptive_noise_scale"), "noise.adaptive", options.number("adaptive_noise_scale")
            )
    for name in ("noise_offset", "adaptive_noise_scale"):
        if options.given(name) and name in options.unread():
            draft.not_needed(options.cite(name), "no offset noise there")
