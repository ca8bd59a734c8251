"""What a user should know before a judging begins: where it falls short of what the protocol means."""

from flowgrain.evaluate.comparison import Comparison
from flowgrain.evaluate.judge.config import JudgeConfig
from flowgrain.evaluate.judge.pictures import PictureBook
from flowgrain.evaluate.judge.plan import Question
from flowgrain.evaluate.judge.prompts import REFERENCES


def planning_notes(
    comparison: Comparison, config: JudgeConfig, questions: tuple[Question, ...], book: PictureBook
) -> tuple[str, ...]:
    """One sentence each."""
    about_references = _about_references(comparison, config, questions)
    return (*about_references, *_about_order(config, questions), *_about_size(config, book))


def _about_references(comparison: Comparison, config: JudgeConfig, questions: tuple[Question, ...]) -> list[str]:
    wanted = config.references or 0
    notes = []
    for dataset in comparison.datasets:
        there = len(dataset.references)
        if there < wanted:
            notes.append(f"data set '{dataset.name}' has {there} reference pictures, {wanted} are to be shown")
    first = next((question for question in questions if question.references), None)
    if first is not None and REFERENCES not in first.prompts.question.render(first.values()):
        notes.append("the prompts do not show reference pictures: they lack {{ reference_pictures }}")
    return notes


def _about_order(config: JudgeConfig, questions: tuple[Question, ...]) -> list[str]:
    if config.repeats == 1 and any(len(question.shown) > 1 for question in questions):
        return ["each question is put once: with --repeats 2 a bias for first or last pictures cancels and shows"]
    return []


def _about_size(config: JudgeConfig, book: PictureBook) -> list[str]:
    largest = book.largest_side()
    if largest <= config.pictures.max_side:
        return []
    return [
        f"pictures of up to {largest} pixels are shrunk to {config.pictures.max_side}: detail is judged at that size "
        "(pictures.max_side)"
    ]
