"""The web server of a study: the page, the pictures and a JSON interface for participants; nothing to administer it.

A token in a header is the only credential. There are no cookies, so another site's page cannot act for a participant
(no CSRF), and no CORS header, so it cannot read. The process never opens ``key.json``.
"""

import hashlib
import logging
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from flowgrain.config import Config
from flowgrain.errors import ConfigError, MissingExtraError
from flowgrain.evaluate.study import messages
from flowgrain.evaluate.study.conduct import KEPT, Conduct
from flowgrain.evaluate.study.folder import Study
from flowgrain.evaluate.study.plan import MEDIA
from flowgrain.evaluate.study.refusal import Code, Refusal
from flowgrain.evaluate.study.store import Participant, Store

try:
    from fastapi import Depends, FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from sqlalchemy.exc import IntegrityError, InterfaceError, InternalError, OperationalError
    from sqlalchemy.exc import TimeoutError as PoolTimeoutError
    from starlette.exceptions import HTTPException
    from starlette.types import ASGIApp
except ImportError:
    raise MissingExtraError("fastapi", "study", "the human study") from None

from flowgrain.evaluate.study.limits import JsonBody, Prefix, RateLimit, SafeHeaders, bearer

WEB = Path(__file__).parent / "web"
STATIC_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".woff2": "font/woff2",
}
MEDIA_TYPES = {".png": "image/png", ".webp": "image/webp"}
IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}
RETRY_SECONDS = 2
_HTTP_CODES: dict[int, Code] = {404: "not_found", 405: "method_not_allowed", 400: "bad_request"}
_TOKEN = re.compile(r"[A-Za-z0-9_-]{32}")

logger = logging.getLogger("flowgrain.study")


class ServeConfig(Config):
    """How a study is served; nothing here is part of its seal."""

    entry: Literal["open", "links", "external_id"] = Field(
        default="open", description="who may start: anybody, holders of a link, or whom a recruiting service sends"
    )
    id_parameter: str = Field(default="PROLIFIC_PID", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    session_parameter: str = Field(default="SESSION_ID", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    root_path: str = Field(default="", pattern=r"^(/[A-Za-z0-9._~-]+)*$", description="path behind the proxy: /study")
    completion_url: str | None = Field(
        default=None, pattern=r"^https?://[^\s]+$", description="may hold {code} and {external_id}"
    )
    token_rate: float = Field(default=10.0, gt=0, description="requests a second of one participant")
    address_rate: float = Field(default=50.0, gt=0, description="requests a second of one address")
    entries_per_minute: float = Field(default=60.0, gt=0, description="new participants a minute of one address")


def build_app(study: Study, serve: ServeConfig) -> ASGIApp:
    """The ASGI application of an opened study."""
    # no documentation pages: they load scripts from elsewhere, and the interface is no secret but nobody's business
    app = FastAPI(title="study", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.store = study.store
    conduct = Conduct(study.plan, study.config, study.store, serve.completion_url)
    _add_files(app, study, serve)
    _add_entry(app, study, serve, conduct)
    _add_sitting(app, conduct, study.store)
    _add_errors(app)
    limited = RateLimit(JsonBody(app), serve.token_rate, serve.address_rate, serve.entries_per_minute)
    return SafeHeaders(Prefix(limited, serve.root_path))


def authenticate(request: Request) -> Participant:
    """Whose token a request carries; Refusal ``bad_token`` for none, a malformed, unknown or expired one."""
    token = bearer(request.scope)
    if token is None or _TOKEN.fullmatch(token) is None:
        raise Refusal("bad_token")
    store: Store = request.app.state.store
    return store.participant(token)


Who = Annotated[Participant, Depends(authenticate)]


def _add_files(app: FastAPI, study: Study, serve: ServeConfig) -> None:
    """The page, its static files and the pictures: exact names of known files, so a path has nowhere to go."""
    static = {path.name: path for path in sorted((WEB / "static").iterdir()) if path.suffix in STATIC_TYPES}
    version = hashlib.sha256(b"".join(path.read_bytes() for path in static.values())).hexdigest()[:12]
    page = _render(study.config.title, study.config.language, serve.root_path, version)
    pictures = {picture.name: study.folder / MEDIA / picture.name for picture in study.plan.pictures}

    @app.get("/")
    def landing() -> HTMLResponse:
        return HTMLResponse(page)

    @app.get("/static/{name}")
    def static_file(name: str, v: str | None = None) -> Response:
        if name not in static:
            raise Refusal("not_found")
        headers = IMMUTABLE if v == version else {"cache-control": "no-cache"}
        return Response(static[name].read_bytes(), media_type=STATIC_TYPES[static[name].suffix], headers=headers)

    @app.get(f"/{MEDIA}/{{name}}")
    def picture(name: str) -> Response:
        if name not in pictures:
            raise Refusal("not_found")
        return Response(pictures[name].read_bytes(), media_type=MEDIA_TYPES[pictures[name].suffix], headers=IMMUTABLE)


def _add_entry(app: FastAPI, study: Study, serve: ServeConfig, conduct: Conduct) -> None:
    names = messages.ExternalId(parameter=serve.id_parameter, session_parameter=serve.session_parameter)

    @app.get("/api/study")
    def info() -> messages.StudyInfo:
        return messages.StudyInfo(
            id=study.plan.study,
            title=study.config.title,
            entry=serve.entry,
            external_id=names if serve.entry == "external_id" else None,
            closed=study.store.closed(),
            full=study.store.full(),
            consent=conduct.consent_text,
            answer=study.config.answer,
            ties=conduct.ties,
            minutes=conduct.minutes,
            total=conduct.total,
            pictures=study.plan.variants,
            references=any(item.references for item in study.plan.items),
        )

    @app.post("/api/enter", status_code=201)
    def enter(body: messages.Enter) -> dict[str, str]:
        if serve.entry == "open":
            return {"token": study.store.enter()}
        if serve.entry == "external_id" and body.external_id is not None:
            return {"token": study.store.enter_external(body.external_id, body.session_id)}
        raise Refusal("not_open")


def _add_sitting(app: FastAPI, conduct: Conduct, store: Store) -> None:
    @app.get("/api/state")
    def state(who: Who) -> messages.State:
        return conduct.state(who)

    @app.post("/api/consent")
    def consent(who: Who, body: messages.Consent) -> dict[str, bool]:
        conduct.consent(who, body.sha256)
        return {"accepted": True}

    @app.get("/api/items/{position}")
    def item(who: Who, position: int) -> messages.ItemView:
        return conduct.item(who, position)

    @app.post("/api/answer")
    def answer(who: Who, body: messages.Answer) -> messages.Acknowledgement:
        return conduct.answer(who, body)

    @app.get("/api/done")
    def done(who: Who) -> messages.Done:
        return conduct.done(who)

    @app.post("/api/withdraw")
    def withdraw(who: Who, _body: messages.Withdraw) -> dict[str, bool | str]:
        store.withdraw(who.id)
        return {"withdrawn": True, "kept": KEPT}


def _add_errors(app: FastAPI) -> None:
    """Every error has the same shape and repeats nothing of the request."""

    def refused(refusal: Refusal) -> JSONResponse:
        return JSONResponse(refusal.body, refusal.status, refusal.headers)

    @app.exception_handler(Refusal)
    def on_refusal(_request: Request, error: Refusal) -> JSONResponse:
        return refused(error)

    @app.exception_handler(HTTPException)
    def on_http(_request: Request, error: HTTPException) -> JSONResponse:
        return refused(Refusal(_HTTP_CODES.get(error.status_code, "bad_request")))

    @app.exception_handler(RequestValidationError)
    def on_invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        kinds = {(problem["loc"][0], problem["type"]) for problem in error.errors()}
        if any(place == "path" for place, _ in kinds):
            return refused(Refusal("not_found"))
        return refused(Refusal("bad_request" if ("body", "json_invalid") in kinds else "invalid"))

    def on_database(_request: Request, error: Exception) -> JSONResponse:
        # a full disk, a lock held too long, a database that restarts: nothing was acknowledged, so nothing is lost
        logger.error("database: %s", " ".join(str(error).split())[:300])
        return refused(Refusal("try_again", retry_after=RETRY_SECONDS))

    for kind in (OperationalError, InterfaceError, InternalError, IntegrityError, PoolTimeoutError):
        app.add_exception_handler(kind, on_database)

    @app.exception_handler(Exception)
    def on_bug(_request: Request, _error: Exception) -> JSONResponse:
        return refused(Refusal("internal"))  # the server logs the traceback


def _render(title: str, language: str, root: str, version: str) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from jinja2.exceptions import TemplateNotFound

    environment = Environment(loader=FileSystemLoader(WEB / "templates"), autoescape=True, undefined=StrictUndefined)
    try:
        template = environment.get_template("index.html")
        return template.render(title=title, language=language, root=root, version=version)
    except TemplateNotFound as error:
        raise ConfigError(f"{WEB}: {error.name} is missing; install flowgrain again") from None
