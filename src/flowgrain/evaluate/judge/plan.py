"""Which questions are asked: every item, dimension, mode and repeat, in an order whose every start is a fair sample."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from flowgrain.errors import ConfigError
from flowgrain.evaluate.comparison import Comparison, Dataset, Item
from flowgrain.evaluate.judge.config import JudgeConfig, Mode
from flowgrain.evaluate.judge.modes import MODES, MOST_RANKED
from flowgrain.evaluate.judge.pictures import PictureBook
from flowgrain.evaluate.judge.prompts import PromptFolder, QuestionPrompts
from flowgrain.evaluate.protocol import Dimension
from flowgrain.rng import numpy_generator, stable_seed

_KEY_VERSION = 1
"""Raised when the same question would be put to the model in another way."""


@dataclass(frozen=True)
class Question:
    """One question about the pictures of one item."""

    key: str
    """Hash of all that its answer depends on: pictures and references by content, order, texts, model, sampling."""
    item: Item
    description: str
    """Of the data set, told to the model."""
    dimension: Dimension
    mode: Mode
    shown: tuple[str, ...]
    """Variants in the order of their places."""
    repeat: int
    references: tuple[Path, ...]
    prompts: QuestionPrompts

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The pictures to judge, in the order of their places."""
        return tuple(self.item.pictures[variant] for variant in self.shown)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the model calls the pictures."""
        return MODES[self.mode].labels(len(self.shown))

    def values(self) -> dict[str, object]:
        """What the prompts may use."""
        return {
            "prompt": self.item.prompt,
            "dataset": self.item.dataset,
            "description": self.description,
            "dimension": self.dimension.name,
            "title": self.dimension.title,
            "question": self.dimension.question,
            "count": len(self.shown),
            "labels": _enumerated(self.labels),
            "references": len(self.references),
        }

    def about(self) -> dict[str, Any]:
        """What the log says of it."""
        item = self.item
        return {
            "item": item.key,
            "dataset": item.dataset,
            "prompt": item.prompt,
            "seed": item.seed,
            "dimension": self.dimension.name,
            "mode": self.mode,
            "repeat": self.repeat,
            "shown": list(self.shown),
            "prompts": self.prompts.hash,
        }


def resolve(comparison: Comparison, config: JudgeConfig) -> JudgeConfig:
    """The configuration with what it leaves to the protocol filled in; raises ConfigError for what does not fit."""
    protocol = comparison.protocol
    modes = config.chosen_modes(protocol, comparison.variants)
    if "rank" in modes and len(comparison.variants) > MOST_RANKED:
        raise ConfigError(
            f"{len(comparison.variants)} variants: at most {MOST_RANKED} can be ranked at once; use --mode pairwise"
        )
    filled = {
        "modes": modes,
        "pairs": _pairs(comparison, config),
        "references": protocol.references if config.references is None else config.references,
        "prompts": config.prompts or ("urae" if protocol.preset == "urae" else "default"),
    }
    return config.model_copy(update=filled)


def plan_questions(comparison: Comparison, config: JudgeConfig, book: PictureBook) -> tuple[Question, ...]:
    """All questions of a resolved configuration, item by item in a seeded order.

    Raises ConfigError for malformed prompts, DataError for pictures that cannot be read.
    """
    modes, pairs, prompt_folder = config.modes, config.pairs, config.prompts
    if modes is None or prompt_folder is None or isinstance(pairs, str):
        raise ValueError("the configuration is not resolved")  # a bug of the caller
    folder = PromptFolder(prompt_folder)
    dimensions = comparison.protocol.judge_dimensions
    prompts: dict[tuple[Mode, str], tuple[Dimension, QuestionPrompts]] = {
        (mode, dimension.name): (dimension, folder.of(mode, dimension)) for mode in modes for dimension in dimensions
    }
    groups: dict[Mode, tuple[tuple[str, ...], ...]] = {
        mode: _groups(mode, comparison.variants, pairs) for mode in modes
    }
    return tuple(
        _keyed(Question("", item, dataset.description, dimension, mode, shown, repeat, references, texts), config, book)
        for dataset, item in chosen_items(comparison, config)
        for references in (chosen_references(dataset, item.prompt, config),)
        for (mode, _), (dimension, texts) in prompts.items()
        for group in groups[mode]
        for repeat, shown in enumerate(
            shown_orders(group, config.repeats, config.seed, item.key, dimension.name, *group)
        )
    )


def chosen_items(comparison: Comparison, config: JudgeConfig) -> list[tuple[Dataset, Item]]:
    """Items in seeded order, data sets taking turns, so that any start of the list is a fair sample of all."""
    queues = [
        [
            (dataset, item)
            for item in sorted(dataset.items(), key=lambda item: stable_seed(config.seed, "items", item.key))
        ]
        for dataset in comparison.datasets
    ]
    queues = [queue[: config.limit] for queue in queues]
    longest = max(len(queue) for queue in queues)
    return [queue[i] for i in range(longest) for queue in queues if i < len(queue)]


def chosen_references(dataset: Dataset, prompt: str, config: JudgeConfig) -> tuple[Path, ...]:
    """Reference pictures of a prompt, the same for all its questions: its own by caption, then drawn with the seed."""
    own = dataset.own_reference(prompt)
    others = [reference.path for reference in dataset.references if reference is not own]
    order = numpy_generator(config.seed, "references", dataset.name, prompt).permutation(len(others))
    first = [] if own is None else [own.path]
    return tuple([*first, *(others[i] for i in order)][: config.references])


def _pairs(comparison: Comparison, config: JudgeConfig) -> tuple[tuple[str, str], ...]:
    if config.pairs == "all":
        return tuple(combinations(comparison.variants, 2))
    pairs = comparison.pairs if config.pairs == "comparison" else config.pairs
    seen: set[frozenset[str]] = set()
    for pair in pairs:
        if not set(pair) <= set(comparison.variants) or pair[0] == pair[1] or frozenset(pair) in seen:
            raise ConfigError(
                f"pairs: ({pair[0]}, {pair[1]}) is no new pair of variants; variants: {', '.join(comparison.variants)}"
            )
        seen.add(frozenset(pair))
    return pairs


def shown_orders(names: Sequence[str], repeats: int, *identity: int | str) -> list[tuple[str, ...]]:
    """The order of each repeat: a permutation from the identity alone, its reverse, its rotation by half, the
    reverse of that, its rotation by one, ...

    So with two repeats first and last change places, after n repeats of n = 2 or 4 pictures each has been at every
    place once, and after 2n repeats of any n twice.
    """
    count = len(names)
    base = [sorted(names)[i] for i in numpy_generator("shown", *identity).permutation(count)]
    steps = dict.fromkeys(step % count for start in range(count) for step in (start, start + count // 2))
    turns = [base[step:] + base[:step] for step in steps]
    orders = [tuple(order) for turn in turns for order in (turn, turn[::-1])]
    return [orders[repeat % len(orders)] for repeat in range(repeats)]


def _groups(mode: Mode, variants: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, ...], ...]:
    """What is shown together: all variants, pairs, or each by itself."""
    if mode == "rank":
        return (variants,)
    return pairs if mode == "pairwise" else tuple((variant,) for variant in variants)


def _keyed(question: Question, config: JudgeConfig, book: PictureBook) -> Question:
    identity = {
        "version": _KEY_VERSION,
        "item": question.item.key,
        "dimension": question.dimension.model_dump(),
        "description": question.description,
        "mode": question.mode,
        "repeat": question.repeat,
        "pictures": [book.facts(path).sha1 for path in question.pictures],
        "references": [book.facts(path).sha1 for path in question.references],
        "sent": config.pictures.model_dump(),
        "prompts": question.prompts.hash,
        "endpoint": config.endpoint.identity(),
    }
    text = json.dumps(identity, sort_keys=True, ensure_ascii=False)
    key = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    return replace(question, key=key)


def _enumerated(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
