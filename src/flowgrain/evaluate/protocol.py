"""What is drawn, shown and asked when variants are compared: one preset shared by sample, judge, study and report.

``granularity`` is the protocol of Semantic Granularity Alignment (section 4.3): 8 prompts of the domain, at least 5
seeds, {baseline, granularity} x {1.0, 1.5 N1}, the four pictures of one prompt and seed ranked from best to worst.
``urae`` is that of URAE (sections 4.2, 4.3 and Appendix B): 20 prompts, three aspects, for each the best is chosen.
``checkpoints`` draws every checkpoint of each run and answers which one is best.
"""

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from flowgrain.config import Config

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]


class Dimension(Config):
    """One aspect that pictures are compared on."""

    name: Slug = Field(description="key in logs and tables, for example geometry")
    title: str = Field(description="what people read")
    question: str = Field(description="what judges and participants are asked, in one or two sentences")


OVERALL = Dimension(
    name="overall",
    title="Overall quality",
    question="Which picture renders the prompt best in the style of the references, all in all?",
)


class ProtocolConfig(Config):
    """A protocol. ``{preset: NAME}`` or the name alone fills what is not given."""

    preset: Literal["granularity", "urae", "checkpoints", "custom"] = Field(default="custom")
    prompts: int = Field(default=1, ge=1, description="fewest prompts of a data set; fewer give a warning")
    seeds: int = Field(default=1, ge=1, description="pictures drawn for each prompt")
    budgets: tuple[float, ...] | None = Field(
        default=(1.0,), description="checkpoints to draw, multiples of N1, the closest one taken; null: all of a run"
    )
    answer: Literal["rank", "best"] = Field(
        default="rank", description="what a question asks of its pictures: all in order, or the best one"
    )
    judge_dimensions: tuple[Dimension, ...] = Field(default=(OVERALL,), min_length=1)
    study_dimensions: tuple[Dimension, ...] = Field(default=(OVERALL,), min_length=1)
    references: int = Field(default=3, ge=0, le=8, description="reference pictures shown beside the variants")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        if isinstance(values, str):
            values = {"preset": values}
        if isinstance(values, dict) and values.get("preset") in PRESETS:
            return {**PRESETS[values["preset"]], **values}
        return values


# Section 4.3.1 names the three dimensions; their wording is ours, the paper's system prompt is not published
_GRANULARITY_DIMENSIONS = (
    Dimension(
        name="geometry",
        title="Geometric and symbolic accuracy",
        question="Are shapes, proportions, parts and symbols those of the prompt, in the way the references draw them?",
    ),
    Dimension(
        name="rendering",
        title="Rendering quality",
        question="Are lines, materials, light and texture rendered as cleanly and in the same manner as in the "
        "references?",
    ),
    Dimension(
        name="coherence",
        title="Overall aesthetic coherence",
        question="Does the picture work as a whole: composition, colour and style consistent with the references?",
    ),
)
_URAE_DIMENSIONS = (
    Dimension(name="overall", title="Overall quality", question="Which picture has the best overall quality?"),
    Dimension(name="alignment", title="Prompt alignment", question="Which picture follows the prompt most closely?"),
    Dimension(
        name="aesthetics",
        title="Visual aesthetics",
        question="Which picture looks best: clarity, richness of detail, artistic quality?",
    ),
)

PRESETS: dict[str, dict[str, Any]] = {
    "granularity": {
        "prompts": 8,
        "seeds": 5,
        "budgets": (1.0, 1.5),
        "judge_dimensions": _GRANULARITY_DIMENSIONS,
    },
    "urae": {
        "prompts": 20,
        "answer": "best",
        "judge_dimensions": _URAE_DIMENSIONS,
        "study_dimensions": _URAE_DIMENSIONS,
        "references": 0,
    },
    "checkpoints": {"prompts": 8, "seeds": 5, "budgets": None},
}


def urae_prompts() -> Path:
    """The file of URAE's 20 user-study prompts (Appendix B.2; its numbers 5 and 6 are one prompt, kept twice)."""
    return Path(str(files("flowgrain.evaluate") / "prompts" / "urae-user-study.txt"))
