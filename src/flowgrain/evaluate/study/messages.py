"""The JSON that the page and the server exchange. Unknown keys and wrong types are refused."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Identifier = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Slot = Annotated[str, Field(pattern=r"^[0-9a-f]{10}$")]
MOST_ACTIVE_MS = 86_400_000


class Message(BaseModel):
    """Base of all messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Enter(Message):
    """POST /api/enter."""

    external_id: Identifier | None = None
    session_id: Identifier | None = None


class Consent(Message):
    """POST /api/consent: the hash of the text that was shown."""

    sha256: Sha256


class Answer(Message):
    """POST /api/answer: for each dimension the slots in tiers, best first."""

    item: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    answers: dict[Annotated[str, Field(max_length=40)], list[list[Slot]]]
    active_ms: int = Field(ge=0, le=MOST_ACTIVE_MS)
    client_answer_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]


class Withdraw(Message):
    """POST /api/withdraw."""

    confirm: Literal[True]


class ExternalId(Message):
    """Names of the query parameters in which a recruiting service sends its ids."""

    parameter: str
    session_parameter: str


class ConsentText(Message):
    """What is agreed to."""

    text: str
    sha256: str


class StudyInfo(Message):
    """GET /api/study: what somebody reads before they agree, and before anything about them is stored."""

    id: str
    title: str
    entry: Literal["open", "links", "external_id"]
    external_id: ExternalId | None
    closed: bool
    full: bool
    consent: ConsentText
    answer: Literal["rank", "best"]
    ties: bool
    minutes: int
    total: int
    pictures: int
    references: bool


class DimensionView(Message):
    """One aspect that is asked."""

    name: str
    title: str
    question: str


class PictureView(Message):
    """A picture to look at."""

    url: str
    width: int
    height: int


class SlotView(PictureView):
    """A picture to rank; its place in the list is its place on the page."""

    slot: str


class ItemView(Message):
    """One item as one participant sees it."""

    key: str
    position: int
    practice: bool
    dataset: str
    prompt: str
    references: list[PictureView]
    pictures: list[SlotView]
    previous_answer: dict[str, list[list[str]]] | None
    preload: list[str]


class State(Message):
    """GET /api/state."""

    title: str
    step: Literal["consent", "practice", "items", "done"]
    consent: ConsentText
    answer: Literal["rank", "best"]
    ties: bool
    dimensions: list[DimensionView]
    position: int
    total: int
    answered: int
    minutes: int
    item: ItemView | None


class Acknowledgement(Message):
    """The answer to POST /api/answer: it is on the disk."""

    item: str
    position: int
    revision: int
    client_answer_id: str
    received_at: str


class Done(Message):
    """GET /api/done."""

    completion_code: str
    redirect_url: str | None
