"""One question until its answer holds what was asked for; what does not is sent back, and never guessed at."""

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flowgrain.vlm.budget import Account
from flowgrain.vlm.client import ChatClient, Completion, Message
from flowgrain.vlm.failures import EndpointError, Rejected, Stopped, Unreachable
from flowgrain.vlm.images import text_part, text_tokens

Status = Literal["answered", "refused", "unusable", "rejected", "unreachable", "stopped"]
"""refused: by the model or a filter; unusable: not in the form asked for; rejected: the endpoint takes no such request
(400, 413, 422); unreachable: no answer in all attempts; stopped: by a signal or the budget before the answer."""
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
"""What reasoning models of some local servers put before their answer."""
_OBJECT = re.compile(r"\{\s*\"")
_LIST = re.compile(r"\[\s*(\{\s*\"|\])")
_LONGEST_ANSWER = 100_000


class AnswerError(Exception):
    """An answer is not in the form that was asked for; the message tells the model what is wrong."""


@dataclass(frozen=True)
class Query:
    """A question to a model."""

    key: str
    """Everything that the answer depends on, as a hash."""
    about: Mapping[str, Any]
    """What it is about, for readers of the log."""
    estimated_in: int
    """Input tokens by the rule of :mod:`flowgrain.vlm.images`."""
    messages: Callable[[], Sequence[Message]]
    """Built when the question is asked: pictures are not all held at once."""
    schema: Mapping[str, Any] | None
    """``name``, ``strict`` and ``schema`` of the response_format; None for free text."""
    read: Callable[[str], dict[str, Any]]
    """The checked answer, of JSON values; raises AnswerError."""
    repair: Callable[[str], str]
    """What is wrong with an answer -> what is said to the model."""


@dataclass
class Reply:
    """What became of a question."""

    status: Status = "stopped"
    answer: dict[str, Any] | None = None
    raw: list[str] = field(default_factory=list)
    """What the model said, every time."""
    problem: str = ""
    """Why there is no answer."""
    served_model: str = ""
    request: str = ""
    """SHA-256 of the first messages."""
    account: Account = field(default_factory=Account)
    seconds: float = 0.0


def ask(client: ChatClient, query: Query, repairs: int, reply: Reply) -> None:
    """Put a question, and put it again up to ``repairs`` times where the answer cannot be used; fills ``reply``.

    Raises EndpointError where no question could be answered, and what ``query.messages`` raises; what was spent until
    then is in ``reply``.
    """
    messages = list(query.messages())
    reply.request = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    begun = time.monotonic()
    try:
        _converse(client, query, messages, repairs, reply)
    except Unreachable as error:
        reply.status, reply.problem = "unreachable", str(error)
    except Rejected as error:
        reply.status, reply.problem = "rejected", str(error)
    except (Stopped, EndpointError) as error:
        reply.status, reply.problem = "stopped", str(error)
        if isinstance(error, EndpointError):
            raise
    finally:
        reply.seconds = time.monotonic() - begun


def _converse(client: ChatClient, query: Query, messages: list[Message], repairs: int, reply: Reply) -> None:
    estimated = query.estimated_in
    for left in range(repairs, -1, -1):
        completion = client.complete(messages, query.schema, estimated, reply.account)
        said = client.redact(completion.text or completion.refusal or "")
        reply.raw.append(said)
        reply.served_model = completion.model
        try:
            reply.answer = _read(query, completion)
            reply.status, reply.problem = "answered", ""
            return
        except AnswerError as error:
            reply.status = "refused" if completion.refusal is not None else "unusable"
            reply.problem = str(error)
        if left:
            repair = query.repair(reply.problem)
            messages = _with_repair(messages, said, repair)
            estimated += text_tokens(said) + text_tokens(repair)


def _read(query: Query, completion: Completion) -> dict[str, Any]:
    if completion.refusal is not None:
        raise AnswerError(f"no answer was given ({' '.join(completion.refusal.split())[:200]})")
    if completion.cut_off:
        raise AnswerError("the answer was cut off at its longest allowed length; answer in fewer words")
    return query.read(_THOUGHT.sub("", completion.text))


def _with_repair(messages: list[Message], said: str, repair: str) -> list[Message]:
    """The conversation so far and what is wrong with the answer; where nothing was said, one longer question."""
    if said:
        return [*messages, {"role": "assistant", "content": said}, {"role": "user", "content": repair}]
    last = messages[-1]
    return [*messages[:-1], {**last, "content": [*last["content"], text_part(repair)]}]


def read_object(text: str, required: Mapping[str, str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """The one JSON object of an answer, bare, in a code fence or among prose, with its keys checked.

    ``required`` maps a key to what it must hold, in words for the model. Raises AnswerError for anything else, also
    for several objects: which one would count?
    """
    objects = _objects(text)
    if len(objects) != 1:
        raise AnswerError(f"it holds {len(objects) or 'no'} JSON objects where exactly one was asked for")
    value = objects[0]
    missing = [f"'{key}' ({what})" for key, what in required.items() if key not in value]
    if missing:
        raise AnswerError(f"the JSON object lacks {', '.join(missing)}")
    foreign = [key for key in value if key not in required and key not in optional]
    if foreign:
        raise AnswerError(f"the JSON object holds unknown keys: {', '.join(map(repr, foreign))[:200]}")
    return value


def read_entries(text: str, name: str) -> list[dict[str, Any]]:
    """The objects of the one list of an answer: ``{name: [...]}``, or the bare list that many models write.

    Raises AnswerError for anything else, also for entries that are no objects.
    """
    values = _outermost(text, lists=True)
    named = [value[name] for value in values if isinstance(value, dict) and name in value]
    found = named or [value for value in values if isinstance(value, list)]
    entries = found[0] if len(found) == 1 else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise AnswerError(f'it is not one JSON object {{"{name}": [...]}} that holds a list of objects')
    return entries


def _objects(text: str) -> list[dict[str, Any]]:
    """The outermost JSON objects in a text; raises AnswerError for a broken one, a key twice or a number like NaN."""
    return [value for value in _outermost(text, lists=False) if isinstance(value, dict)]


def _outermost(text: str, lists: bool) -> list[Any]:
    """The outermost JSON objects, and with ``lists`` also lists that are empty or begin with an object."""
    if len(text) > _LONGEST_ANSWER:
        raise AnswerError(f"it is longer than {_LONGEST_ANSWER} characters")
    decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
    found = []
    opening = re.compile(r"[{\[]" if lists else r"\{")
    begun = opening.search(text)
    while begun:
        start = begun.start()
        try:
            if text[start] == "[" and not _LIST.match(text, start):
                raise json.JSONDecodeError("no list of objects", text, start)
            value, end = decoder.raw_decode(text, start)
        except RecursionError:
            raise AnswerError("its JSON object is nested too deeply") from None
        except json.JSONDecodeError as error:
            if _OBJECT.match(text, start) or _LIST.match(text, start):  # what is in it could be taken for the answer
                raise AnswerError(f"its JSON object is broken ({error.msg} at character {error.pos})") from None
            end = start + 1  # a brace of the prose
        else:
            found.append(value)
        begun = opening.search(text, end)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise AnswerError("a key of its JSON object occurs twice")
    return value


def _refuse_constant(name: str) -> float:
    raise AnswerError(f"{name} is no JSON number")
