"""What can go wrong with a request, sorted by what helps: ask again, leave the question out, or stop."""

import email.utils
import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowgrain.errors import FlowgrainError, MissingExtraError
from flowgrain.vlm.config import EndpointConfig


class EndpointError(FlowgrainError):
    """The endpoint cannot be used as it is: wrong key, unknown model, no credit, or nothing but failures."""


class BudgetError(FlowgrainError):
    """Asking stopped at a limit that the user has set; what was answered is kept."""


class Unreachable(Exception):
    """The endpoint gave no answer in all attempts; the question may be asked again in another session."""


class Rejected(Exception):
    """The endpoint does not take this request; asking it again changes nothing."""


class Stopped(Exception):
    """Asked to stop, or out of budget, before the answer was there."""


@dataclass(frozen=True)
class Trouble:
    """An attempt that failed and may succeed later."""

    reason: str
    """Short, for the log: ``429``, ``timeout``."""
    may_be_billed: bool
    """Whether the endpoint may have worked on the request before it was lost."""
    retry_after: float | None = None
    """Seconds that the endpoint asks to wait."""
    reached: bool = True
    """Whether there was a connection at all."""


class BadBody(Exception):
    """The endpoint said 200 and sent something that is no chat completion."""


def require_openai(extra: str = "judge") -> Any:
    """The openai module. Raises MissingExtraError, which names ``extra``, where it is not installed."""
    try:
        import openai
    except ImportError:
        raise MissingExtraError("openai", extra, "asking a model") from None
    return openai


def diagnose(error: Exception, endpoint: EndpointConfig, key_name: str | None, served: bool) -> Trouble:
    """What an error of a request means; ``served``: whether the endpoint has answered this client before.

    Returns trouble that may pass; raises Rejected for a request that the endpoint does not take, EndpointError where
    no other request would fare better, and any error that is not the endpoint's as it is.
    """
    openai = require_openai()
    if isinstance(error, openai.APITimeoutError):
        reached = type(error.__cause__).__name__ != "ConnectTimeout"
        return Trouble("timeout", may_be_billed=reached, reached=reached)
    if isinstance(error, openai.APIStatusError):
        return _diagnose_status(error, endpoint, key_name, served)
    if isinstance(error, openai.APIConnectionError):
        # the http library's class, by name: which library it is depends on openai's version
        cause = type(error.__cause__).__name__
        if not served and (fault := _unknown_host(error)) is not None:
            raise EndpointError(f"{endpoint.base_url}: its host cannot be found ({fault}); check the address")
        reached = cause != "ConnectError"
        return Trouble(f"connection lost ({cause})", may_be_billed=reached, reached=reached)
    if isinstance(error, BadBody | openai.APIError | ValueError):
        return Trouble(f"malformed reply ({_one_line(str(error))})", may_be_billed=True)
    raise error


def _diagnose_status(error: Any, endpoint: EndpointConfig, key_name: str | None, served: bool) -> Trouble:
    status: int = error.status_code
    said, url = f"{status}: {_one_line(error.message)}", endpoint.base_url
    if status == 401 or (status == 403 and not served):  # a key that worked makes a 403 the fault of one request
        key = f"the key in {key_name}" if key_name else "a request without a key (name its variable in api_key_env)"
        raise EndpointError(f"{url} refuses {key} ({said})")
    if status in (404, 405):
        raise EndpointError(f"{url} has no chat completions of model '{endpoint.model}' ({said}); check both names")
    if status == 402 or (status == 429 and error.code == "insufficient_quota"):
        raise EndpointError(f"{url}: no credit left ({said}); what was answered is kept, go on when there is some")
    if status in (408, 409, 425, 429) or status >= 500:
        return Trouble(str(status), may_be_billed=False, retry_after=retry_after(error.response.headers, time.time()))
    raise Rejected(said)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that ``Retry-After`` (seconds or an HTTP date) or ``retry-after-ms`` asks to wait, None without one."""
    value = headers.get("retry-after-ms")
    scale = 1000.0
    if value is None:
        value, scale = headers.get("retry-after"), 1.0
    if value is None:
        return None
    try:
        seconds = float(value) / scale
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _unknown_host(error: BaseException) -> str | None:
    """What the resolver says where it was the host's name that failed, None for any other fault of a connection."""
    cause: BaseException | None = error
    for _ in range(8):  # the http library wraps the resolver's error several times
        if cause is None:
            return None
        if isinstance(cause, socket.gaierror):
            return _one_line(cause.strerror or str(cause))
        cause = cause.__cause__ or cause.__context__
    return None


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}..."
