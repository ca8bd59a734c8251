"""Where a model is asked, what that may cost, and how persistently."""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from flowgrain.config import Config

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_KEY = "OPENAI_API_KEY"
_OWN_PARAMETERS = frozenset(
    {"model", "messages", "response_format", "stream", "n", "temperature", "max_tokens", "max_completion_tokens"}
)


class EndpointConfig(Config):
    """A model behind an OpenAI-compatible ``/chat/completions``."""

    model: str = Field(min_length=1, description="name of the model as the endpoint knows it")
    base_url: str = Field(default=OPENAI_URL, description="address up to and including /v1")
    api_key_env: str | None = Field(
        default=None,
        description="environment variable that holds the key; null: OPENAI_API_KEY for OpenAI's own address, no key "
        "for any other, so that a key never reaches an endpoint that it was not meant for",
    )
    timeout: float = Field(default=300.0, gt=0, description="seconds without a byte after which a request is given up")
    attempts: int = Field(default=8, ge=1, le=100, description="requests for one answer while the endpoint fails")
    first_wait: float = Field(default=1.0, ge=0, description="seconds before the second attempt; doubles each time")
    longest_wait: float = Field(default=120.0, ge=0, description="longest wait in seconds, also where Retry-After asks")
    max_answer_tokens: int = Field(default=2000, ge=1, description="most tokens of an answer, reasoning included")
    token_limit_name: Literal["max_completion_tokens", "max_tokens"] = Field(
        default="max_completion_tokens", description="parameter that carries the limit; older servers know max_tokens"
    )
    temperature: float | None = Field(default=None, ge=0, le=2, description="null: not sent, the model's own")
    structured: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="whether a JSON schema is sent as response_format; auto: until the endpoint refuses it",
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="further parameters of the request as they are, for example reasoning_effort"
    )

    @field_validator("base_url")
    @classmethod
    def _plain_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:  # a port that is no number, a bracket left open
            wrong, parts = True, urlsplit("")
        if wrong:
            raise ValueError("must be an address that starts with http:// or https://")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("must hold no user, password or query: name the key's variable in api_key_env")
        return value.rstrip("/")

    @field_validator("parameters")
    @classmethod
    def _not_our_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        own = sorted(_OWN_PARAMETERS & value.keys())
        if own:
            raise ValueError(f"may not hold {', '.join(own)}: set by flowgrain, see the settings of the endpoint")
        return value

    def identity(self) -> dict[str, Any]:
        """What changes an answer: the model and how it is sampled, not where it is or how long it is waited for."""
        return {"model": self.model, "temperature": self.temperature, "parameters": self.parameters}


class BudgetConfig(Config):
    """What asking costs and may cost."""

    price_in: float | None = Field(default=None, ge=0, description="price of a million input tokens, in any currency")
    price_out: float | None = Field(default=None, ge=0, description="price of a million output tokens")
    max_cost: float | None = Field(
        default=None, gt=0, description="asking stops before a question that could exceed this, all sessions together"
    )
    expected_answer_tokens: int = Field(
        default=150, ge=1, description="length of an answer that the forecast assumes until answers are measured"
    )

    @model_validator(mode="after")
    def _complete(self) -> "BudgetConfig":
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("price_in and price_out go together: give both, or none")
        if self.max_cost is not None and self.price_in is None:
            raise ValueError("max_cost needs price_in and price_out: without prices no cost is known")
        return self


class AskingConfig(Config):
    """How questions are put."""

    concurrency: int = Field(default=4, ge=1, le=256, description="questions in flight at once")
    repairs: int = Field(
        default=2, ge=0, le=10, description="times that a refusal or an unusable answer is sent back with what is wrong"
    )
    give_up_after: int = Field(
        default=10, ge=1, description="questions in a row without a usable answer after which asking stops"
    )
    max_questions: int | None = Field(default=None, ge=1, description="questions asked in one session; null: all")
