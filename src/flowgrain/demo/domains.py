"""The real style domains that the package carries."""

import difflib
import json
from dataclasses import dataclass
from pathlib import Path

from flowgrain.errors import ConfigError
from flowgrain.sample.prompts import read_prompts

FOLDER = Path(__file__).parent.parent / "assets" / "domains"


@dataclass(frozen=True)
class Domain:
    """One style: training and held-out pictures with captions, and prompts for what is held out."""

    name: str
    title: str
    trigger: str
    credit: str
    folder: Path

    @property
    def train(self) -> Path:
        """Folder of training pictures."""
        return self.folder / "train"

    @property
    def holdout(self) -> Path:
        """Folder of pictures that no arm trains on."""
        return self.folder / "holdout"

    @property
    def shown_prompts(self) -> list[str]:
        """Whole-image prompts that the report shows first."""
        return read_prompts(self.folder / "prompts.txt")

    @property
    def close_up_prompts(self) -> list[str]:
        """Prompts that ask for a close-up."""
        return read_prompts(self.folder / "prompts_closeup.txt")


def domain_names() -> list[str]:
    """Names of the embedded domains."""
    return sorted(path.parent.name for path in FOLDER.glob("*/domain.json"))


def load_domain(name: str) -> Domain:
    """An embedded domain; raises ConfigError with the nearest name."""
    names = domain_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are: {', '.join(names)}"
        raise ConfigError(f"no domain '{name}'; {hint}")
    about = json.loads((FOLDER / name / "domain.json").read_text(encoding="utf-8"))
    credit = f"{about['title']} by {about['author']}, {about['licence']}"
    return Domain(name, about["title"], about["trigger"], credit, FOLDER / name)
