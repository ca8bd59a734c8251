"""A small comparison on disk with everything that a report reads; its names try to break out of every format."""

import json

import numpy as np
import yaml
from PIL import Image

from flowgrain.evaluate.bootstrap import Bootstrap
from flowgrain.evaluate.comparison import read_comparison
from flowgrain.evaluate.ranking.records import Ranking, write_rankings
from flowgrain.evaluate.ranking.summarise import summarise
from flowgrain.evaluate.ranking.summary import write_summary
from flowgrain.evaluate.results import MetricDifference, MetricResult, MetricTable, write_results

SCRIPT = "</script><script>alert(1)</script>"
PROMPTS = (
    "a fox",
    f"{SCRIPT}<img src=x onerror=alert(2)>",
    '=HYPERLINK("https://x.example")',
    "| *b* [l](http://x) `c` $y$",
)
VARIANTS = (("base", None, None), (f"baseline {SCRIPT} 1x", "baseline", 1.0), ("granularity 1x", "granularity", 1.0))
NAMES = tuple(name for name, _, _ in VARIANTS)
DATASETS = ("alpha", f"-{SCRIPT}")
SEEDS = (0, 1)
NOTE = "8 pictures and 4 references, fewer than 2048: a Frechet distance is biased for few pictures"
FAST = Bootstrap(resamples=120)


def save_picture(path, seed, size=(48, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(path)


def write_comparison(
    folder, *, variants=VARIANTS, datasets=DATASETS, prompts=PROMPTS, protocol="granularity", pairs=()
):
    """``comparison.yaml`` with pictures and references; the first prompts have own references."""
    config = {"protocol": protocol, "pairs": [list(pair) for pair in pairs], "datasets": []}
    for number, dataset in enumerate(datasets):
        references = folder / f"references{number}"
        for index, prompt in enumerate(prompts[:3]):
            save_picture(references / f"r{index}.png", 900 + index)
            (references / f"r{index}.txt").write_text(prompt, encoding="utf-8")
        save_picture(references / "other.png", 950)
        entries = []
        for column, (name, run, fraction) in enumerate(variants):
            pictures = folder / f"d{number}v{column}"
            lines = []
            for p, prompt in enumerate(prompts):
                for seed in SEEDS:
                    save_picture(pictures / f"{p}-{seed}.png", 100 * number + 10 * p + seed + 1000 * column)
                    lines.append(json.dumps({"file": f"{p}-{seed}.png", "prompt": prompt, "seed": seed}))
            (pictures / "samples.jsonl").write_text("\n".join(lines), encoding="utf-8")
            entry = {"name": name, "pictures": pictures.name}
            if run is not None:
                entry |= {"run": run, "fraction": fraction}
                if number == 0:
                    entry["run_folder"] = f"runs/{run}"
            entries.append(entry)
        config["datasets"].append(
            {"name": dataset, "description": SCRIPT, "references": references.name, "variants": entries}
        )
    (folder / "comparison.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), "utf-8")
    return read_comparison([folder])


def rank(comparison, strengths, *, raters, dimensions, repeats=1, seed=0, first_place_bonus=0.0):
    """Rankings of every item with planted strengths; the first place may draw."""
    generator = np.random.default_rng(seed)
    rankings = []
    for item in comparison.items():
        for rater in raters:
            for dimension in dimensions:
                for repeat in range(repeats):
                    shown = [comparison.variants[i] for i in generator.permutation(len(comparison.variants))]
                    utility = {name: strengths[name] + generator.gumbel() for name in shown}
                    utility[shown[0]] += first_place_bonus
                    rankings.append(
                        Ranking(
                            item=item.key,
                            dataset=item.dataset,
                            prompt=item.prompt,
                            seed=item.seed,
                            dimension=dimension,
                            rater=rater,
                            repeat=repeat,
                            tiers=tuple((name,) for name in sorted(shown, key=lambda name: -utility[name])),
                            shown=tuple(shown),
                        )
                    )
    return rankings


def write_ballot(folder, comparison, rankings, source, dimensions):
    summary = summarise(
        rankings,
        source=source,
        dimensions=dimensions,
        variants=comparison.variants,
        pairs=comparison.pairs,
        bootstrap=FAST,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_rankings(folder / "rankings.jsonl", rankings)
    write_summary(folder / "summary.json", summary)
    return summary


def metric_table(comparison, differences=(0.02, -0.01, 0.03)):
    """CLIP-I and a Frechet distance on every data set; of three pairs the first and last difference are supported."""
    table = MetricTable()
    for number, dataset in enumerate(comparison.datasets):
        for name, base, better, note in (("CLIP-I", 0.7, True, None), ("CLIP Frechet distance", 40.0, False, NOTE)):
            results = tuple(
                MetricResult(
                    name,
                    variant,
                    dataset.name,
                    base + 0.01 * i + 0.1 * number,
                    base - 0.05,
                    base + 0.25,
                    0.95,
                    8,
                    4,
                    "CLIP ViT-L/14",
                    better,
                    note,
                )
                for i, variant in enumerate(comparison.variants)
            )
            pairs = zip(comparison.pairs, differences, strict=False)
            rows = tuple(
                MetricDifference(name, dataset.name, a, b, value, value - 0.015, value + 0.015, 0.95, 4, better)
                for (a, b), value in pairs
            )
            table += MetricTable(results, rows)
    return table


def write_run(folder, log_lines):
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": folder.name, "seed": 0}), "utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log_lines), "utf-8")


def write_evaluation(folder, log_lines):
    """Everything: metrics, a judge with a bias for the first place, a study, two runs."""
    comparison = write_comparison(folder)
    strengths = dict(zip(comparison.variants, (-1.5, 0.0, 1.5), strict=True))
    dimensions = ("geometry", "rendering")
    judged = rank(
        comparison, strengths, raters=(f"judge {SCRIPT}",), dimensions=dimensions, repeats=2, first_place_bonus=2.5
    )
    write_ballot(folder / "judge", comparison, judged, "judge", dimensions)
    people = rank(comparison, strengths, raters=("p1", "p2", "p3"), dimensions=("overall",), seed=1)
    write_ballot(folder / "study" / "results", comparison, people, "study", ("overall",))
    write_results(folder / "metrics", metric_table(comparison))
    for run in ("baseline", "granularity"):
        write_run(folder / "runs" / run, log_lines)
