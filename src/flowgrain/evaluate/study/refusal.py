"""What the server says no with: a code, an HTTP status and one sentence for the participant."""

from typing import Literal

Code = Literal[
    "bad_request",
    "bad_token",
    "not_open",
    "full",
    "already_started",
    "not_found",
    "method_not_allowed",
    "timeout",
    "wrong_step",
    "consent_changed",
    "answer_id_reused",
    "closed",
    "too_large",
    "unsupported",
    "invalid",
    "too_many_requests",
    "internal",
    "try_again",
]

_SAID: dict[Code, tuple[int, str]] = {
    "bad_request": (400, "The request could not be read."),
    "bad_token": (401, "This link is not valid, or not any more. Open your personal link again, or start anew."),
    "not_open": (403, "This study is open to invited participants only. Please use your personal link."),
    "full": (403, "This study has enough participants. Thank you for your interest."),
    "already_started": (403, "This participant number has already started. Please use the link that you were given."),
    "not_found": (404, "There is nothing here."),
    "method_not_allowed": (405, "There is nothing here."),
    "timeout": (408, "The request took too long. Please try again."),
    "wrong_step": (409, "This step is not the current one. Please reload the page."),
    "consent_changed": (409, "The text that you agreed to is not this study's. Please reload the page."),
    "answer_id_reused": (409, "Another answer was stored under this name. Please reload the page."),
    "closed": (410, "This study is closed. Thank you."),
    "too_large": (413, "The request is too large."),
    "unsupported": (415, "The request must be JSON."),
    "invalid": (422, "The answer is not complete: every picture needs one place."),
    "too_many_requests": (429, "Too many requests. Please wait a moment."),
    "internal": (500, "Something went wrong here. Please try again later."),
    "try_again": (503, "The server cannot store anything right now. Please try again in a moment."),
}


class Refusal(Exception):
    """A request that is not granted."""

    def __init__(self, code: Code, message: str | None = None, retry_after: int | None = None):
        self.code = code
        self.status, default = _SAID[code]
        self.message = message or default
        self.retry_after = retry_after
        super().__init__(self.message)

    @property
    def body(self) -> dict[str, str]:
        """The JSON of the answer."""
        return {"error": self.code, "message": self.message}

    @property
    def headers(self) -> dict[str, str]:
        """``Retry-After`` where the participant's page is to try again."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
