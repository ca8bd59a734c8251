"""What each measure means, in one sentence; matched by a piece of its name."""

import re

MEANINGS = (
    (
        r"validation loss",
        "validation loss",
        "mean squared error of the predicted velocity on held-out slices at fixed noise levels.",
    ),
    (
        r"Frechet distance",
        "Frechet distance",
        "distance between the distributions of generated and real pictures in an encoder's features, as Gaussians. "
        "It is not an FID unless the encoder is the Inception network that FID is defined on.",
    ),
    (
        r"kernel distance",
        "kernel distance",
        "distance between the same two distributions through a polynomial kernel, as in KID; unbiased for few pictures "
        "too, so it can fall below 0.",
    ),
    (
        r"image-image cosine",
        "image-image cosine",
        "how near each picture lies to the real picture of its own prompt, from -1 to 1; “centred” first takes away "
        "the mean of the real pictures, which all features share.",
    ),
    (
        r"-I( \(|$)",
        "CLIP-I, DINO-I and the like",
        "mean cosine over all pairs of a generated and a reference picture, from -1 to 1: nearness to the domain. "
        "Copies of the references raise it.",
    ),
    (r"-T$", "CLIP-T", "mean cosine of each picture and its own prompt, from -1 to 1."),
    (r"CLIPScore", "CLIPScore", "CLIPScore is 2.5 times the cosine of picture and prompt, none below 0."),
    (
        r"Inception Score",
        "Inception Score",
        "how surely a classifier names each picture and how many different things it names.",
    ),
    (
        r"precision \(",
        "precision",
        "share of generated pictures that lie among the real ones in feature space: quality.",
    ),
    (r"recall \(", "recall", "share of real pictures that lie among the generated ones in feature space: variety."),
    (r"density \(", "density", "how many real pictures each generated one lies near, 1 for equal distributions."),
    (r"coverage \(", "coverage", "share of real pictures that have a generated one near."),
    (
        r"out-of-domain rate",
        "out-of-domain rate",
        "share of generated pictures further from the references than these are from each other; alpha is what chance "
        "allows.",
    ),
    (
        r"aesthetic score",
        "aesthetic score",
        "LAION's guess of people's ratings, about 1 to 10; made for photographs and art at large.",
    ),
    (r"HPSv2|PickScore", "HPSv2 and PickScore", "guesses of which picture of a prompt people would choose."),
    (
        r"GLCM|compression ratio",
        "GLCM and compression ratio",
        "how much fine detail pictures hold. Neither direction is better by itself: noise has most.",
    ),
)
"""(pattern of a result's name, what it is called, meaning)."""


def meanings_of(names: list[str]) -> tuple[str, ...]:
    """One sentence for each kind of measure among ``names``."""
    return tuple(
        f"{title}: {meaning}" for pattern, title, meaning in MEANINGS if any(re.search(pattern, name) for name in names)
    )
