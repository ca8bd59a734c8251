"""A local server that speaks the chat completions protocol, and misbehaves on request.

``behave(call)`` decides what each request gets; everything that arrives is recorded.
"""

import base64
import hashlib
import io
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image


@dataclass
class Say:
    """A chat completion with this text."""

    text: str | None
    refusal: str | None = None
    finish: str = "stop"
    usage: tuple[int, int] | None = (100, 10)


@dataclass
class Fail:
    """An HTTP error."""

    status: int
    message: str = "something is wrong"
    headers: dict = field(default_factory=dict)
    code: str | None = None


@dataclass
class Hang:
    """No answer for so long, then the connection ends."""

    seconds: float


class Reset:
    """The connection ends in the middle of the answer."""


@dataclass
class Raw:
    """These bytes with status 200."""

    body: bytes
    content_type: str = "application/json"


class Call:
    """One request as it arrived."""

    def __init__(self, number, body, headers, seen):
        self.number, self.body, self.headers, self.seen = number, body, headers, seen
        """``seen``: how often this question, whatever the repairs, had arrived before."""

    @property
    def messages(self):
        return self.body["messages"]

    @property
    def question(self):
        """The content parts of the first user message."""
        return next(message["content"] for message in self.messages if message["role"] == "user")

    @property
    def is_repair(self):
        return self.messages[-1]["role"] == "user" and len([m for m in self.messages if m["role"] == "user"]) > 1

    @property
    def text(self):
        return "\n".join(part["text"] for part in self.question if part["type"] == "text")

    @property
    def files(self):
        """The encoded pictures in the order in which they are shown."""
        urls = [part["image_url"]["url"] for part in self.question if part["type"] == "image_url"]
        return [base64.b64decode(url.partition(",")[2]) for url in urls]

    @property
    def pictures(self):
        return [Image.open(io.BytesIO(data)) for data in self.files]

    @property
    def schema(self):
        return self.body.get("response_format")


class FakeEndpoint:
    """``with FakeEndpoint(behave) as endpoint``; listens on 127.0.0.1."""

    def __init__(self, behave):
        self.behave = behave
        self.calls = []
        self.counts = Counter()
        """How often each question arrived."""
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_POST(self):
                endpoint.serve(self)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def serve(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            content = next(message["content"] for message in body["messages"] if message["role"] == "user")
            key = hashlib.sha256(json.dumps(content).encode()).hexdigest()
            call = Call(
                len(self.calls),
                body,
                {name.lower(): value for name, value in handler.headers.items()},
                self.counts[key],
            )
            self.calls.append(call)
            self.counts[key] += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            answer = Fail(404, "no such path") if handler.path != "/v1/chat/completions" else self.behave(call)
        finally:
            with self._lock:
                self.at_once -= 1
        try:
            self._send(handler, answer)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had given up

    def _send(self, handler, answer):
        if isinstance(answer, Hang):
            time.sleep(answer.seconds)
            handler.close_connection = True
            return
        if isinstance(answer, Reset):
            handler.send_response(200)
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [')
            handler.close_connection = True
            return
        status, headers, kind = 200, {}, "application/json"
        if isinstance(answer, Raw):
            data, kind = answer.body, answer.content_type
        elif isinstance(answer, Fail):
            status, headers = answer.status, answer.headers
            data = json.dumps({"error": {"message": answer.message, "code": answer.code, "type": "x"}}).encode()
        else:
            message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
            reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "fake-2026-01-01"}
            reply["choices"] = [{"index": 0, "message": message, "finish_reason": answer.finish}]
            if answer.usage is not None:
                tokens_in, tokens_out = answer.usage
                reply["usage"] = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out, "total_tokens": 0}
            data = json.dumps(reply).encode()
        handler.send_response(status)
        for name, value in {"content-type": kind, "content-length": str(len(data)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)
