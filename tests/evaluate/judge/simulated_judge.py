"""What simulated judges answer: they see only what a model sees."""

import json
import re

import numpy as np
from fake_endpoint import Say

from flowgrain.evaluate.judge.config import JudgeConfig

SHADES = {"baseline": 40, "baseline-15": 90, "granularity": 200, "granularity-15": 150}
"""Red of every variant's pictures: a simulated judge that prefers red finds granularity best."""


def settings(url, **sections):
    """A configuration for a fake endpoint: it waits for nothing."""
    endpoint = {"model": "fake", "base_url": url, "first_wait": 0.0, "timeout": 10.0, "attempts": 3}
    own = {"endpoint": endpoint | sections.pop("endpoint", {}), "resamples": 100}
    return JudgeConfig.model_validate(own | sections)


def shades(call):
    """Red of the pictures to judge, in the order shown; references come before and are left out."""
    references = len(re.findall(r"^Reference \d+:$", call.text, re.MULTILINE))
    return [int(np.asarray(picture)[0, 0, 0]) for picture in call.pictures[references:]]


def answer(call, preference):
    """``preference(shades)``: one number a picture, the higher the better; equal ones are tied."""
    worth = preference(shades(call))
    if "number from 0 to 100" in call.text:
        return json.dumps({"reason": "so", "score": worth[0]})
    if "strictly the score" in call.text:
        return f"{worth[0]}"
    if "Please output [Image 1]" in call.text:
        return f"[Image {1 if worth[0] >= worth[1] else 2}] because it is."
    if '"choice"' in call.text:
        return json.dumps({"choice": "tie" if worth[0] == worth[1] else "1" if worth[0] > worth[1] else "2"})
    tiers = {}
    for label, value in zip("ABCDEFGH", worth, strict=False):
        tiers.setdefault(value, []).append(label)
    return json.dumps({"reason": "so", "ranking": [tiers[value] for value in sorted(tiers, reverse=True)]})


def judge_by(preference):
    """A well-behaved judge of this preference."""
    return lambda call: Say(answer(call, preference), usage=(1000, 50))


def by_red(values):
    """Redder is better; scores are a tenth of the red."""
    return [value / 4 for value in values]


def first_is_best(values):
    """Whatever is shown first."""
    return [50 - place for place in range(len(values))]
