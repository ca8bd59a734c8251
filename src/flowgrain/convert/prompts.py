"""Prompts for previews: kohya's files (text, TOML, JSON) and the options that go with them."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowgrain.convert.draft import Draft
from flowgrain.convert.options import Cited, Options, read_json, read_toml
from flowgrain.errors import ConfigError

_SWITCH = re.compile(r"\s--([a-z]+)(?:\s+|$)")
_NUMBERS = {"d": "seed", "s": "steps", "w": "width", "h": "height", "g": "guidance", "l": "scale"}
_TABLE = {
    "seed": "seed", "sample_steps": "steps", "width": "width", "height": "height", "guidance_scale": "guidance",
    "scale": "scale",
}  # fmt: skip
_WHOLE = ("seed", "steps", "width", "height")
_FLUX_DEFAULTS = {"steps": 20, "width": 512, "height": 512, "guidance": 3.5}
_DEFAULTS = {"steps": 30, "width": 512, "height": 512, "scale": 7.5}
"""What kohya's trainers draw with where the file says nothing; ``scale`` is that of classifier-free guidance."""


@dataclass(frozen=True)
class Prompt:
    """One preview."""

    text: str
    settings: dict[str, float]
    negative: bool
    """Whether a negative prompt goes with it."""


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file of kohya's; raises :class:`ConfigError` where it cannot be read."""
    if path.suffix in (".toml", ".json"):
        content = read_toml(path) if path.suffix == ".toml" else read_json(path)
        if path.suffix == ".toml" and isinstance(content.get("prompt"), dict):
            shared = content["prompt"]
            content = [{**shared, **item} for item in shared.get("subset", [shared]) if isinstance(item, dict)]
        if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
            raise ConfigError(f"{path}: expected a list of prompts")
        return [_of_table(item) for item in content if str(item.get("prompt") or "").strip()]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    return [_of_line(line.strip()) for line in lines if line.strip() and not line.startswith("#")]


def write_previews(options: Options, draft: Draft, flux: bool) -> None:
    """``previews`` from sample_prompts and sample_every_n_steps; ``flux``: guidance is an input of the model."""
    if not options.active("sample_prompts"):
        for name in ("sample_every_n_steps", "sample_every_n_epochs", "sample_prompts"):
            if options.given(name):
                draft.not_needed(options.cite(name), "nothing is drawn without sample_prompts")
        return
    cited = options.cite("sample_prompts")
    path = Path(options.text("sample_prompts") or "")
    try:
        prompts = read_prompts(path)
    except ConfigError as error:
        draft.unsupported(cited, f"{error}: write the prompts into previews.prompts by hand")
        prompts = []
    if prompts:
        _write_prompts(draft, cited, prompts, flux)
    every = options.integer("sample_every_n_steps")
    if every and every > 0 and prompts and not options.active("sample_every_n_epochs"):
        draft.convert(options.cite("sample_every_n_steps"), "previews.every", every)
    elif options.given("sample_every_n_steps"):
        draft.not_needed(options.cite("sample_every_n_steps"), "nothing to draw, or sample_every_n_epochs decides")
    if options.active("sample_every_n_epochs"):
        draft.unsupported(
            options.cite("sample_every_n_epochs"), "set previews.every in updates; kept checkpoints are drawn anyway"
        )


def _write_prompts(draft: Draft, cited: Cited, prompts: list[Prompt], flux: bool) -> None:
    drop = ""
    if flux and any(p.negative or "scale" in p.settings for p in prompts):
        drop = "negative prompts and classifier-free guidance have no effect on FLUX.1-dev"
    elif any(p.negative for p in prompts):
        drop = "without negative prompts"
    draft.convert(cited, "previews.prompts", [prompt.text for prompt in prompts], drop)
    seeds = [int(prompt.settings["seed"]) for prompt in prompts if "seed" in prompt.settings]
    if seeds:
        note = f"{cited.option}: one list of seeds for all prompts" if len(set(seeds)) > 1 else cited.option
        draft.complete("previews.seeds", sorted(set(seeds)), note)
    for key, default in (_FLUX_DEFAULTS if flux else _DEFAULTS).items():
        values = {prompt.settings[key] if key in prompt.settings else default for prompt in prompts}
        value = max(values)
        note = (
            cited.option
            if len(values) == 1
            else f"{cited.option}: the largest of {sorted(values)}, one for all prompts"
        )
        target = "guidance" if key == "scale" else key
        draft.complete(f"previews.sampler.{target}", int(value) if key in _WHOLE else value, note)


def _of_line(line: str) -> Prompt:
    parts = _SWITCH.split(f" {line}")
    settings: dict[str, float] = {}
    negative = False
    for name, value in zip(parts[1::2], parts[2::2], strict=True):
        if name in _NUMBERS:
            settings |= _number(_NUMBERS[name], value.strip())
        negative |= name == "n"
    return Prompt(parts[0].strip(), settings, negative)


def _of_table(item: dict[str, Any]) -> Prompt:
    settings: dict[str, float] = {}
    for name, key in _TABLE.items():
        if item.get(name) is not None:
            settings |= _number(key, str(item[name]))
    return Prompt(" ".join(str(item["prompt"]).split()), settings, bool(item.get("negative_prompt")))


def _number(key: str, text: str) -> dict[str, float]:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"the prompt's {key} is no number: '{text}'") from None
    return {key: value}
