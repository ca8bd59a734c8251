"""DPG-Bench with other tools: prompts out, pictures and 2 x 2 grids, questions out, answers in.

Answers come from whatever answers questions about pictures: the published script's mPLUG, another vision-language
model, people. A tool reads a JSON line ``{"item", "picture", "file", "question", "text"}`` for every question and gives
``{"item", "picture", "question", "answer"}`` for each. As in the published script, yes is yes and anything else is no.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from flowgrain.errors import DataError
from flowgrain.evaluate.base import ImageLike
from flowgrain.evaluate.comparison import Drawn
from flowgrain.evaluate.encoders.base import open_rgb
from flowgrain.evaluate.external.command import run_json_lines, split_command
from flowgrain.evaluate.external.dpg_bench import DpgItem
from flowgrain.files import atomic_write_text

PICTURES_PER_ITEM = 4
"""What the published script recommends: four pictures of a prompt in one 2 x 2 grid."""


class _Answer(BaseModel):
    """What is read of an answer line; other keys are ignored."""

    model_config = ConfigDict(strict=True)

    item: str
    picture: int
    question: int
    answer: str


def write_prompts(items: Mapping[str, DpgItem], path: Path) -> None:
    """The prompts as ``flowgrain sample`` reads them, one a line, white space collapsed."""
    atomic_write_text(path, "".join(f"{_collapsed(item.prompt)}\n" for item in items.values()))


def pictures_of_items(
    items: Mapping[str, DpgItem], drawn: Sequence[Drawn], count: int = PICTURES_PER_ITEM
) -> dict[str, tuple[Path, ...]]:
    """The first ``count`` pictures of each item by seed, found by its prompt; items without any are left out.

    Raises :class:`DataError` where an item has some pictures but fewer than ``count``, or none has any.
    """
    by_prompt: dict[str, list[Drawn]] = {}
    for picture in drawn:
        by_prompt.setdefault(_collapsed(picture.prompt), []).append(picture)
    found: dict[str, tuple[Path, ...]] = {}
    for name, item in items.items():
        pictures = sorted(by_prompt.get(_collapsed(item.prompt), []), key=lambda picture: picture.seed)
        if not pictures:
            continue
        if len(pictures) < count:
            raise DataError(
                f"item '{name}' has {len(pictures)} pictures, {count} are needed; draw seeds 0 to {count - 1}"
            )
        found[name] = tuple(picture.path for picture in pictures[:count])
    if not found:
        raise DataError("no picture was drawn of a DPG-Bench prompt; draw those that write_prompts wrote")
    return found


def write_grids(pictures: Mapping[str, Sequence[ImageLike]], folder: Path) -> int:
    """Write ``ITEM.png`` for each item as the published script wants it; returns its ``--resolution``.

    Raises :class:`DataError` for an item without four pictures, or pictures that are not squares of one size.
    """
    sides: set[int] = set()
    folder.mkdir(parents=True, exist_ok=True)
    for name, four in pictures.items():
        grid = picture_grid(four, name)
        sides.add(grid.width // 2)
        if len(sides) > 1:
            raise DataError(f"item '{name}': its pictures have another size than those before; draw all in one size")
        grid.save(folder / f"{name}.png")
    if not sides:
        raise DataError(f"{folder}: no pictures to make grids of")
    return sides.pop()


def picture_grid(pictures: Sequence[ImageLike], name: str) -> Image.Image:
    """Four square pictures of one size: two above, two below. ``name`` is for errors."""
    opened = [open_rgb(picture) for picture in pictures]
    sizes = {picture.size for picture in opened}
    width, height = opened[0].size if opened else (0, 0)
    if len(opened) != PICTURES_PER_ITEM or len(sizes) > 1 or width != height:
        shapes = ", ".join(f"{w}x{h}" for w, h in sorted(sizes))
        raise DataError(
            f"item '{name}': a grid is made of {PICTURES_PER_ITEM} squares of one size, got {len(opened)} of {shapes}"
        )
    grid = Image.new("RGB", (2 * width, 2 * width))
    for number, picture in enumerate(opened):
        grid.paste(picture, (number % 2 * width, number // 2 * width))
    return grid


def questions(items: Mapping[str, DpgItem], pictures: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """One JSON object for every picture and question. Raises :class:`DataError` for pictures of unknown items."""
    unknown = [name for name in pictures if name not in items]
    if unknown:
        raise DataError(f"item '{unknown[0]}' is not in the benchmark's table")
    return [
        {"item": name, "picture": picture, "file": str(path.resolve()), "question": q.number, "text": q.text}
        for name, paths in pictures.items()
        for picture, path in enumerate(paths)
        for q in items[name].questions
    ]


def write_questions(path: Path, asked: Sequence[Mapping[str, Any]]) -> None:
    """:func:`questions` as a JSON-lines file."""
    atomic_write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in asked))


def read_answers(path: Path) -> dict[tuple[str, int, int], bool]:
    """The answers of a JSON-lines file. Raises :class:`DataError` with the line for what is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    lines = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if line.strip():
                lines.append((f"{path}:{number}", json.loads(line)))
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON ({error})") from None
    return _parsed(lines)


def answers_of_command(
    command: str, asked: Sequence[dict[str, Any]], timeout: float | int = 24 * 3600
) -> dict[tuple[str, int, int], bool]:
    """Answers of a command that gets the questions on its standard input; errors as of a :class:`CommandScore`."""
    lines = run_json_lines(split_command(command), list(asked), timeout)
    return _parsed([(f"'{command}', answer {number}", line) for number, line in enumerate(lines, start=1)])


def _parsed(lines: Sequence[tuple[str, Any]]) -> dict[tuple[str, int, int], bool]:
    answers: dict[tuple[str, int, int], bool] = {}
    for where, line in lines:
        try:
            given = _Answer.model_validate(line)
        except ValidationError as error:
            first = error.errors()[0]
            raise DataError(f"{where}: {'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg']}") from None
        key = (given.item, given.picture, given.question)
        if key in answers:
            raise DataError(f"{where}: item '{key[0]}', picture {key[1]}, question {key[2]} is answered twice")
        answers[key] = given.answer.strip().rstrip(".").lower() == "yes"
    return answers


def _collapsed(text: str) -> str:
    return " ".join(text.split())
