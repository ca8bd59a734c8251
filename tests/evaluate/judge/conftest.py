"""Comparisons of small pictures whose colour tells a simulated judge whose they are."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

sys.path.insert(0, str(Path(__file__).parents[2] / "vlm"))  # the fake endpoint

from simulated_judge import SHADES


def _pictures(folder, variant, prompts, seeds):
    folder.mkdir(parents=True)
    records = []
    for number, prompt in enumerate(prompts):
        for seed in range(seeds):
            file = f"{variant}-{number}-{seed}.png"
            info = PngImagePlugin.PngInfo()
            info.add_text("parameters", f"drawn by {variant}")
            pixels = np.zeros((24, 16, 3), np.uint8)
            pixels[..., 0], pixels[..., 1], pixels[..., 2] = SHADES[variant], number, seed
            Image.fromarray(pixels).save(folder / file, pnginfo=info)
            records.append(json.dumps({"file": file, "prompt": prompt, "seed": seed}) + "\n")
    (folder / "samples.jsonl").write_text("".join(records), encoding="utf-8")


def _references(folder, captions):
    folder.mkdir()
    for number, caption in enumerate(captions):
        Image.new("RGB", (16, 16), (255, 0, number)).save(folder / f"r{number}.png")
        (folder / f"r{number}.txt").write_text(caption, encoding="utf-8")


@pytest.fixture
def make_comparison(tmp_path):
    """Settings -> folder that holds a comparison.yaml."""

    def make(
        protocol="granularity",
        prompts=2,
        seeds=1,
        variants=tuple(SHADES),
        references=2,
        name="fox",
        prompt="fox #",
    ):
        root = tmp_path / f"eval-{name}"
        texts = [prompt.replace("#", str(number)) for number in range(prompts)]
        for variant in variants:
            _pictures(root / f"folder-{variant}", variant, texts, seeds)
        dataset = {
            "name": name,
            "description": "red foxes",
            "variants": [{"name": variant, "pictures": f"folder-{variant}"} for variant in variants],
        }
        if references:
            _references(root / "references", [f"fox {number}" for number in range(references)])
            dataset["references"] = "references"
        content = {"protocol": protocol, "datasets": [dataset]}
        (root / "comparison.yaml").write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        return root

    return make
