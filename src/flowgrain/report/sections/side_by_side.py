"""Pictures of all variants side by side, and a slider for any two of them."""

from collections.abc import Sequence
from typing import TypeVar

from flowgrain.evaluate.comparison import Comparison, Dataset, Item
from flowgrain.report.page import (
    Block,
    GridRow,
    Paragraph,
    PictureStrips,
    PromptGrid,
    PromptRows,
    Section,
    SeedRow,
    Slider,
)
from flowgrain.report.pictures import picture_tile
from flowgrain.report.wording import counted

T = TypeVar("T")
LONGEST_CHOICE = 90
"""Letters of a prompt in the slider's menu; the grid holds it in full."""


def side_by_side_section(comparison: Comparison, rows: int, side: int) -> Section:
    """For each data set its references and at most ``rows`` rows of pictures of at most ``side`` pixels."""
    blocks: list[Block] = []
    choices, first_number = [], 0
    for dataset in comparison.datasets:
        chosen = choose_items(dataset, rows)
        prompts = _prompt_rows(dataset, chosen, first_number, side)
        first_number += len(chosen)
        choices.append((dataset.name, tuple(_choice(prompt, row) for prompt in prompts for row in prompt.rows)))
        blocks += _dataset_blocks(comparison, dataset, chosen, prompts, side)
    slider = _slider(comparison, blocks, tuple(choices))
    if slider is not None:
        blocks.insert(0, slider)
    blocks.append(Paragraph(f"Pictures larger than {side} pixels are scaled down to that side on this page.", "note"))
    return Section(
        "pictures",
        "Pictures side by side",
        "Every row is one prompt and one noise seed, the same for all variants: what differs is the model alone.",
        tuple(blocks),
    )


def choose_items(dataset: Dataset, rows: int) -> list[Item]:
    """At most ``rows`` items, evenly spaced: first as many prompts as possible, then more seeds of each."""
    by_prompt: dict[str, list[Item]] = {}
    for item in dataset.items():
        by_prompt.setdefault(item.prompt, []).append(item)
    prompts = _spread(list(by_prompt), rows)
    seeds = max(rows // len(prompts), 1)
    return [item for prompt in prompts for item in by_prompt[prompt][:seeds]]


def _spread(values: Sequence[T], most: int) -> list[T]:
    if len(values) <= most:
        return list(values)
    return [values[index * len(values) // most] for index in range(most)]


def _prompt_rows(dataset: Dataset, chosen: Sequence[Item], first_number: int, side: int) -> tuple[PromptRows, ...]:
    several_seeds = len({item.seed for item in dataset.items()}) > 1
    numbered = list(enumerate(chosen, start=first_number))
    groups = []
    for prompt in dict.fromkeys(item.prompt for item in chosen):
        own = dataset.own_reference(prompt)
        reference = None if own is None else picture_tile(own.path, f"reference: {prompt}", max_side=side)
        rows = tuple(
            SeedRow(
                number,
                f"seed {item.seed}" if several_seeds else "",
                tuple(picture_tile(path, f"{name}: {prompt}", max_side=side) for name, path in item.pictures.items()),
            )
            for number, item in numbered
            if item.prompt == prompt
        )
        groups.append(PromptRows(prompt, reference, rows))
    return tuple(groups)


def _dataset_blocks(
    comparison: Comparison, dataset: Dataset, chosen: Sequence[Item], prompts: tuple[PromptRows, ...], side: int
) -> list[Block]:
    blocks: list[Block] = []
    if dataset.description:
        blocks.append(Paragraph(f"{dataset.name}: {dataset.description}"))
    own = {dataset.own_reference(prompt.prompt) for prompt in prompts}
    others = [reference for reference in dataset.references if reference not in own]
    shown = _spread(others, max(comparison.protocol.references, 3)) if others else []
    if shown:
        tiles = tuple(
            picture_tile(
                item.path, f"reference of {dataset.name}: {item.caption or item.path.stem}", item.caption, side
            )
            for item in shown
        )
        blocks.append(
            PictureStrips(
                f"{dataset.name}: references.",
                f"{counted(len(shown), 'real picture')} of {len(dataset.references)} of this domain, evenly spaced.",
                (GridRow("what the domain looks like", tiles),),
            )
        )
    total = len(dataset.items())
    taken = "all" if len(chosen) == total else f"{len(chosen)} of {total}, evenly spaced, not picked by eye"
    reading = (
        "Read across a row: the first picture is real, the others were generated"
        if any(prompt.reference for prompt in prompts)
        else "Read across a row: all pictures were generated"
    )
    blocks.append(PromptGrid(f"{dataset.name}.", f"{reading} ({taken}).", comparison.variants, prompts))
    return blocks


def _choice(prompt: PromptRows, row: SeedRow) -> tuple[int, str]:
    text = prompt.prompt if len(prompt.prompt) <= LONGEST_CHOICE else f"{prompt.prompt[: LONGEST_CHOICE - 1]}…"
    return row.number, f"{text}, {row.label}" if row.label else text


def _slider(
    comparison: Comparison, blocks: Sequence[Block], choices: tuple[tuple[str, tuple[tuple[int, str], ...]], ...]
) -> Slider | None:
    """None where a row has a single picture."""
    columns = [(number, name) for number, name in enumerate(comparison.variants, start=1)]
    if any(isinstance(block, PromptGrid) and block.has_references for block in blocks):
        columns.append((0, "reference (real picture)"))
    if len(columns) < 2:
        return None
    names = [name for _, name in columns]
    first, second = comparison.pairs[0] if comparison.pairs else (names[0], names[1])
    return Slider(
        "Slider.",
        "Two pictures on top of each other: drag the divider, or use the arrow keys on the control below the picture.",
        choices,
        tuple(columns),
        columns[names.index(first)][0],
        columns[names.index(second)][0],
    )
