"""The prompts: files that a user may edit, rendered for each question, part of every answer's identity.

A folder of prompts holds ``MODE-DIMENSION.md`` or ``MODE.md`` (mode: rank, pairwise, score), and may hold
``system.md`` and ``repair.md``. They are Jinja2 templates; ``pictures`` and ``reference_pictures`` stand where the
pictures go. What a folder lacks of modes and repair is taken from the packaged default.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from pydantic import Field

from flowgrain.config import Config, Layered, build_config
from flowgrain.errors import ConfigError
from flowgrain.evaluate.judge.config import Mode
from flowgrain.evaluate.judge.modes import MODES, AnswerForm
from flowgrain.evaluate.protocol import Dimension
from flowgrain.files import atomic_directory, atomic_write_text

SETS = ("default", "urae")
PICTURES, REFERENCES = "\ue000", "\ue001"
"""Private-use characters that stand for the pictures in a rendered prompt; taken out of captions."""
_SAMPLE: dict[str, object] = {
    "prompt": "a prompt",
    "dataset": "a data set",
    "description": "a description",
    "dimension": "a-dimension",
    "title": "a title",
    "question": "a question",
    "count": 2,
    "labels": "A and B",
    "references": 1,
}
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


class PromptHeader(Config):
    """The settings between the ``---`` lines at the start of a prompt."""

    answer: AnswerForm = Field(default="json", description="json: a JSON object is asked for; text: free text is read")


@dataclass(frozen=True)
class Prompt:
    """One template, read and checked."""

    name: str
    source: str
    answer: AnswerForm

    def render(self, values: Mapping[str, object]) -> str:
        """The text for these values; markers stand where pictures go."""
        clean = {key: _without_markers(value) for key, value in values.items()}
        return (
            _ENVIRONMENT.from_string(self.source)
            .render(clean, pictures=PICTURES, reference_pictures=REFERENCES)
            .strip()
        )


@dataclass(frozen=True)
class QuestionPrompts:
    """All that is said around one kind of question."""

    system: str
    question: Prompt
    repair: str

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that change with any of the texts."""
        text = "\0".join((self.system, self.question.answer, self.question.source, self.repair))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def repaired(self, problem: str) -> str:
        """What is said to a model whose answer cannot be used."""
        return _ENVIRONMENT.from_string(self.repair).render(problem=problem).strip()


class PromptFolder:
    """A packaged set by name, or a user's folder."""

    def __init__(self, place: Path | Literal["default", "urae"]):
        default = packaged("default")
        self._folder = packaged(str(place)) if place in SETS else Path(place)
        self._texts = _read_folder(self._folder)
        self._fallback = {default / f"{name}.md": text for name, text in _read_folder(default).items()}

    def of(self, mode: Mode, dimension: Dimension) -> QuestionPrompts:
        """The prompts of a question; raises ConfigError where one is malformed."""
        path, source = self._find(f"{mode}-{dimension.name}", mode)
        question = _prompt(path, source, mode)
        path, repair = self._find("repair")
        _try(path, repair, {"problem": "a problem"})
        return QuestionPrompts(self._texts.get("system", "").strip(), question, repair)

    def _find(self, *names: str) -> tuple[Path, str]:
        """(path, text) of the first of ``names`` that there is, here or in the packaged default."""
        texts = {self._folder / f"{name}.md": text for name, text in self._texts.items()}
        paths = [folder / f"{name}.md" for folder in (self._folder, packaged("default")) for name in names]
        return next((path, known[path]) for path in paths for known in (texts, self._fallback) if path in known)


def packaged(name: str) -> Path:
    """Folder of a packaged set."""
    return Path(str(files("flowgrain.evaluate.judge") / "prompts" / name))


def write_prompts(folder: Path) -> list[Path]:
    """Copy the packaged sets for editing; raises ConfigError rather than overwrite a file."""
    texts = {folder / name / path.name: path for name in SETS for path in sorted(packaged(name).glob("*.md"))}
    there = next((path for path in texts if path.exists()), None)
    if there is not None:
        raise ConfigError(f"{there} is there already: choose another folder, or delete it")
    for path, source in texts.items():
        atomic_write_text(path, source.read_text(encoding="utf-8"))
    return list(texts)


def record_prompts(folder: Path, prompts: Mapping[tuple[Mode, str], QuestionPrompts]) -> None:
    """Write the prompts of (mode, dimension) as a folder that gives the same ones; it is replaced whole."""
    with atomic_directory(folder) as target:
        for (mode, dimension), texts in prompts.items():
            question = f"---\nanswer: {texts.question.answer}\n---\n{texts.question.source}"
            atomic_write_text(target / f"{mode}-{dimension}.md", question)
            atomic_write_text(target / "repair.md", texts.repair)
            if texts.system:
                atomic_write_text(target / "system.md", texts.system)


def _read_folder(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder of prompts; 'flowgrain judge --write-prompts DIR' makes one")
    texts: dict[str, str] = {}
    for path in sorted(folder.glob("*.md")):
        if path.stem not in ("system", "repair") and path.stem.partition("-")[0] not in MODES:
            raise ConfigError(
                f"{path}: no prompt has this name; names are MODE.md, MODE-DIMENSION.md (mode: {', '.join(MODES)}), "
                "system.md and repair.md"
            )
        try:
            texts[path.stem] = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not texts:
        raise ConfigError(f"{folder}: holds no prompt; 'flowgrain judge --write-prompts DIR' writes the packaged ones")
    return texts


def _prompt(path: Path, text: str, mode: Mode) -> Prompt:
    """A template with its header taken off; rendered once, so that a mistake shows before the first question."""
    values: dict[str, Any] = {}
    if text.startswith("---\n"):
        head, found, text = text.removeprefix("---\n").partition("\n---\n")
        if not found:
            raise ConfigError(f"{path}: its header is not closed: a second line '---' is missing")
        for line in filter(str.strip, head.splitlines()):
            key, colon, value = line.partition(":")
            if not colon:
                raise ConfigError(f"{path}: header line '{line}': expected key: value")
            values[key.strip()] = value.strip()
    header = build_config(PromptHeader, Layered(values, dict.fromkeys(values, str(path))))
    if header.answer not in MODES[mode].forms:
        raise ConfigError(
            f"{path}: answer {header.answer} cannot be read for {mode}; use {', '.join(MODES[mode].forms)}"
        )
    rendered = _try(path, text, {**_SAMPLE, "pictures": PICTURES, "reference_pictures": REFERENCES})
    for marker, name, fewest in ((PICTURES, "pictures", 1), (REFERENCES, "reference_pictures", 0)):
        if not fewest <= rendered.count(marker) <= 1:
            raise ConfigError(f"{path}: holds {{{{ {name} }}}} {rendered.count(marker)} times, it must be there once")
    return Prompt(path.name, text, header.answer)


def _try(path: Path, text: str, values: Mapping[str, object]) -> str:
    try:
        return _ENVIRONMENT.from_string(text).render(values)
    except Exception as error:  # a template runs expressions of its own: it can raise almost anything
        known = ", ".join(sorted(values))
        raise ConfigError(f"{path}: not a template ({error}); it may use {known}") from None


def _without_markers(value: object) -> object:
    return value.replace(PICTURES, "").replace(REFERENCES, "") if isinstance(value, str) else value
