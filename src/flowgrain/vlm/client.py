"""A chat completion from any OpenAI-compatible endpoint, asked until it answers or a bound is reached."""

import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ValidationError

from flowgrain.errors import ConfigError
from flowgrain.vlm.budget import Account, Budget, Usage
from flowgrain.vlm.config import OPENAI_KEY, OPENAI_URL, EndpointConfig
from flowgrain.vlm.failures import (
    BadBody,
    EndpointError,
    Rejected,
    Stopped,
    Trouble,
    Unreachable,
    diagnose,
    require_openai,
)
from flowgrain.vlm.images import text_tokens

Message = dict[str, Any]
_NO_KEY = "no-key"
"""Sent where an endpoint needs no key: the protocol's clients cannot send none."""
_SHORTEST_SECRET = 8
"""Keys shorter than this (the ``x`` or ``EMPTY`` of a local server) are no secrets; hiding them would garble text."""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class Completion(BaseModel):
    """What flowgrain reads of a chat completion."""

    choices: list[_Choice]
    model: str = ""
    usage: _Usage | None = None

    @property
    def text(self) -> str:
        """What the model said."""
        return self.choices[0].message.content or ""

    @property
    def refusal(self) -> str | None:
        """Why the model or a filter declined to answer, None where it did not."""
        if self.choices[0].message.refusal:
            return self.choices[0].message.refusal
        return "stopped by a content filter" if self.choices[0].finish_reason == "content_filter" else None

    @property
    def cut_off(self) -> bool:
        """Whether the limit of tokens ended the answer."""
        return self.choices[0].finish_reason == "length"


class ChatClient:
    """Sends requests; shared by all workers of a session.

    ``stop`` ends waiting between attempts. The key is read once, goes into the request's header and nowhere else: it
    is cut out of everything that the endpoint says.
    """

    def __init__(self, config: EndpointConfig, budget: Budget, stop: threading.Event):
        self.config = config
        self.budget = budget
        self._stop = stop
        self._key_name, self._key = _read_key(config)
        self._client = require_openai().OpenAI(
            api_key=self._key, base_url=config.base_url, timeout=config.timeout, max_retries=0
        )
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._served = self._reached = False
        self._takes_schema = {"auto": None, "always": True, "never": False}[config.structured]

    @property
    def reached(self) -> bool:
        """Whether this client has ever had a connection to the endpoint."""
        return self._reached

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def complete(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None, estimated_in: int, account: Account
    ) -> Completion:
        """One completion, as JSON of ``schema`` where the endpoint knows how; ``account`` counts what it takes.

        Raises Unreachable, Rejected, Stopped or OutOfBudget; EndpointError where nothing else could be asked either.
        """
        with self._lock:
            known = self._takes_schema
        body = self._body(messages)
        if schema is None or known is False:
            return self._persist(body, estimated_in, account)
        structured = body | {"response_format": {"type": "json_schema", "json_schema": dict(schema)}}
        try:
            completion = self._persist(structured, estimated_in, account)
        except Rejected:
            if known:
                raise
            completion = self._persist(body, estimated_in, account)
            self._learn(False)
            return completion
        self._learn(True)
        return completion

    def redact(self, text: str) -> str:
        """``text`` without the key."""
        return text.replace(self._key, "***") if len(self._key) >= _SHORTEST_SECRET else text

    def _learn(self, takes_schema: bool) -> None:
        with self._lock:
            if self._takes_schema is None:
                self._takes_schema = takes_schema

    def _body(self, messages: Sequence[Message]) -> dict[str, Any]:
        config = self.config
        body: dict[str, Any] = {"model": config.model, "messages": list(messages)}
        body[config.token_limit_name] = config.max_answer_tokens
        if config.temperature is not None:
            body["temperature"] = config.temperature
        return body | config.parameters

    def _persist(self, body: dict[str, Any], estimated_in: int, account: Account) -> Completion:
        """Send until there is an answer; every attempt is reserved and settled by itself."""
        for attempt in range(1, self.config.attempts + 1):
            self._wait_for_turn()
            reserved = self.budget.reserve(estimated_in, self.config.max_answer_tokens)
            usage = None
            try:
                completion = self._post(body)
                self._served = self._reached = True
                usage = _usage(completion, estimated_in)
                self.budget.observe(estimated_in, usage)
                return completion
            except Exception as error:  # sorted by diagnose, which raises again what is not the endpoint's
                trouble = self._diagnose(error)
                account.troubles.append(trouble.reason)
                usage = self.budget.expected_usage(estimated_in) if trouble.may_be_billed else None
            finally:
                account.requests += 1
                cost = self.budget.settle(reserved, usage)
                account.add(usage or Usage(0, 0), cost)
            if attempt < self.config.attempts:
                self._back_off(attempt, trouble)
        raise Unreachable(f"no answer in {self.config.attempts} attempts, the last: {account.troubles[-1]}")

    def _post(self, body: dict[str, Any]) -> Completion:
        reply = self._client.post("/chat/completions", cast_to=object, body=body)
        try:
            completion = Completion.model_validate(reply)
        except ValidationError:
            error = reply.get("error") if isinstance(reply, dict) else reply
            raise BadBody(f"no chat completion: {str(error or reply)[:200]}") from None
        if not completion.choices:
            raise BadBody("a completion without choices")
        return completion

    def _diagnose(self, error: Exception) -> Trouble:
        try:
            trouble = diagnose(error, self.config, self._key_name, self._served)
        except (EndpointError, Rejected) as known:
            self._reached = True
            raise type(known)(self.redact(str(known))) from None
        self._reached |= trouble.reached
        return replace(trouble, reason=self.redact(trouble.reason))

    def _back_off(self, attempt: int, trouble: Trouble) -> None:
        """Wait exponentially longer with jitter; a Retry-After holds every worker of the session."""
        config = self.config
        asked = trouble.retry_after
        if asked is not None and asked > config.longest_wait:
            raise EndpointError(
                f"{config.base_url} asks to wait {asked:.0f} s, longest_wait is {config.longest_wait:g} s; what was "
                "answered is kept, go on later"
            )
        delay = min(config.longest_wait, config.first_wait * 2.0 ** min(attempt - 1, 30)) * random.uniform(0.5, 1.0)
        if asked is None:
            self._sleep(delay)
        else:
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + max(asked, delay))

    def _wait_for_turn(self) -> None:
        with self._lock:
            delay = self._not_before - time.monotonic()
        self._sleep(delay * random.uniform(1.0, 1.1))  # not all workers at the same instant

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(max(0.0, seconds)):
            raise Stopped("asked to stop")


def _usage(completion: Completion, estimated_in: int) -> Usage:
    if completion.usage is not None:
        return Usage(completion.usage.prompt_tokens, completion.usage.completion_tokens)
    return Usage(estimated_in, text_tokens(completion.text), reported=False)


def _read_key(config: EndpointConfig) -> tuple[str | None, str]:
    """(name of the variable, key); raises ConfigError where a variable that is needed is not set or holds no key."""
    name = config.api_key_env or (OPENAI_KEY if config.base_url == OPENAI_URL else None)
    if name is None:
        return None, _NO_KEY
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {name} is not set: put the key of {config.base_url} there")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(f"the environment variable {name} holds no key: a key is one word of ASCII characters")
    return name, key
