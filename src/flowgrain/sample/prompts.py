"""Prompt files: one prompt a line, lines that start with # are comments."""

from pathlib import Path

from flowgrain.errors import DataError


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file in order, repeated ones once: a picture depends on (prompt, seed) alone.

    Raises DataError for a missing, undecodable or empty file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a text file with one prompt a line") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a text file with one prompt a line") from None
    lines = (line.strip() for line in text.splitlines())
    prompts = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not prompts:
        raise DataError(f"{path}: holds no prompt; write one prompt a line ('#' starts a comment)")
    return prompts
