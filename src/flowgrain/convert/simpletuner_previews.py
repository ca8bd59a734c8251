"""SimpleTuner's validation pictures as previews."""

import re
from pathlib import Path

from flowgrain.convert.draft import Draft
from flowgrain.convert.options import Options, read_json
from flowgrain.errors import ConfigError


def write_previews(options: Options, draft: Draft) -> None:
    """``previews`` from the options that begin with validation."""
    interval = "validation_steps" if options.given("validation_steps") else "validation_step_interval"
    prompts = _prompts(options, draft)
    off = options.flag("validation_disable")
    if off or not prompts:
        why = "validation_disable" if off else "no prompt is given"
        names = (
            "validation_disable",
            "validation_prompt",
            "validation_resolution",
            "validation_guidance",
            "validation_seed",
        )
        for name in (*names, "validation_num_inference_steps", "validation_steps", "validation_step_interval"):
            if options.given(name):
                draft.not_needed(options.cite(name), f"nothing is drawn: {why}")
        return
    source = "validation_prompt" if options.active("validation_prompt") else "user_prompt_library"
    draft.convert(options.cite(source), "previews.prompts", prompts)
    if source == "validation_prompt" and options.active("user_prompt_library"):
        draft.same(options.cite("user_prompt_library"), "previews.prompts")
    if options.given("validation_disable"):
        draft.not_needed(options.cite("validation_disable"), "switched off there")
    draft.convert(options.cite(interval), "previews.every", options.integer(interval, 100) or 100)
    draft.convert(
        options.cite("validation_num_inference_steps"),
        "previews.sampler.steps",
        options.integer("validation_num_inference_steps", 30),
    )
    draft.convert(
        options.cite("validation_guidance"), "previews.sampler.guidance", options.number("validation_guidance", 7.5)
    )
    if options.given("validation_seed"):
        draft.convert(options.cite("validation_seed"), "previews.seeds", [options.integer("validation_seed")])
    _write_size(options, draft)


def _prompts(options: Options, draft: Draft) -> list[str]:
    found = [options.text("validation_prompt") or ""]
    if options.active("user_prompt_library"):
        path = Path(options.text("user_prompt_library") or "")
        try:
            content = read_json(path)
        except ConfigError as error:
            draft.unsupported(
                options.cite("user_prompt_library"), f"{error}: write the prompts into previews.prompts by hand"
            )
            content = {}
        if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
            raise ConfigError(f"{path}: expected an object of names and prompts")
        found += content.values()
    return [prompt for prompt in found if prompt.strip()]


def _write_size(options: Options, draft: Draft) -> None:
    text = options.text("validation_resolution")
    if text is None:
        return
    cited = options.cite("validation_resolution")
    first, *others = text.split(",")
    match = re.fullmatch(r"\s*(\d+)(?:\.0*)?\s*(?:x\s*(\d+))?\s*", first)
    if match is None or int(match[1]) < 64:
        draft.unsupported(cited, "give WIDTHxHEIGHT in pixels: previews.sampler.width and height")
        return
    note = "the first of several sizes" if others else ""
    draft.convert(cited, "previews.sampler.width", int(match[1]), note)
    draft.complete("previews.sampler.height", int(match[2] or match[1]), "validation_resolution")
