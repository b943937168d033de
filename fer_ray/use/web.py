"""The HTTP side of the service: what may be asked, by whom and how much, and what is answered. Needs no Ray.

The endpoints hand images to a function and know nothing of how it finds faces.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import UploadFile
from starlette.types import Message, Receive

import fer_ray
from fer_ray.use.photographs import NO_FACE
from fer_ray.use.recognition import Recognition

MAX_IMAGES = 64  # of one request
MB = 1_000_000
# The page's own script and style, by their hashes, and nothing else: no other site, no inline code that a name of a
# file could smuggle in. Pictures are shown from the browser's memory.
_POLICY = ("default-src 'none'; script-src {script}; style-src {style}; img-src blob: data:; connect-src 'self'; "
           "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
_BEARER = HTTPBearer(auto_error=False, description="The token of FER_RAY_SERVE_TOKEN, if the service has one.")
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store"}


@dataclass(frozen=True)
class Upload:
    """An image of a request."""

    name: str
    """Of its file, or `#N` for the image at position N (from 0) where none is given."""
    content: bytes
    """Of an image file."""


@dataclass(frozen=True)
class Answer:
    """What was found in the images of a request."""

    calibrated: bool
    """Whether the network's probabilities are calibrated."""
    results: list[Recognition]
    """For each image, in their order. One without a face says why in `reason`."""


@dataclass(frozen=True)
class Settings:
    """What the endpoints need to know."""

    page: str
    """The web page, as HTML."""
    calibrated: bool
    """Whether the network's probabilities are calibrated."""
    token_sha256: str
    """Of the token that a request must bring, in hexadecimal; empty: none is needed."""
    max_mb: float
    """Largest request in MB."""


Recognize = Callable[[list[Upload]], Awaitable[list[Recognition]]]


class Unavailable(Exception):
    """The network cannot be asked at the moment; the message says why."""


def app(recognize: Recognize, settings: Settings) -> FastAPI:
    """The endpoints `/`, `/health`, `/openapi.json` and `/predict`, whose images are given to `recognize`.

    The interactive documentation of FastAPI is left out, since it loads its code from another site.
    """
    made = FastAPI(title="fer_ray", version=fer_ray.__version__, docs_url=None, redoc_url=None,
                   description="Facial expressions in photographs.")
    page_headers = _HEADERS | {"Content-Security-Policy": _policy_of(settings.page)}

    def authorized(given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        if settings.token_sha256:
            _require_token(given.credentials if given else "", settings.token_sha256)

    @made.get("/", response_class=HTMLResponse, summary="The web page")
    def page() -> HTMLResponse:
        return HTMLResponse(settings.page, headers=page_headers)

    @made.get("/health", summary="Whether the service answers")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @made.post("/predict", summary="The faces in images, with eight probabilities each",
               dependencies=[Depends(authorized)], openapi_extra={"requestBody": _BODY}, responses=_ERRORS)
    async def predict(request: Request, response: Response) -> Answer:
        response.headers.update(_HEADERS)
        uploads = await read_uploads(request, settings.max_mb)
        try:
            results = await recognize(uploads)
        except Unavailable as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        unusable = [f"{one.image}: {one.reason}" for one in results if one.reason not in (None, NO_FACE)]
        if len(unusable) == len(results):
            raise HTTPException(422, "; ".join(unusable))
        return Answer(settings.calibrated, results)

    return made


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def _require_token(token: str, expected: str) -> None:
    """Raises: HTTPException if it is missing or wrong."""
    if not hmac.compare_digest(digest(token), expected):
        reason = "the token is wrong" if token else "a token is required, as the header Authorization: Bearer TOKEN"
        raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})


def _policy_of(page: str) -> str:
    """The Content-Security-Policy that lets run and apply what stands in this page."""
    hashes = {tag: " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
                            for text in re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL))
              for tag in ("script", "style")}
    return _POLICY.format(**{tag: found or "'none'" for tag, found in hashes.items()})


# --- what a request brings -------------------------------------------------------------------------------


async def read_uploads(request: Request, max_mb: float) -> list[Upload]:
    """The images of a request, `multipart/form-data` or JSON. Raises: HTTPException with the reason."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limited = Request(request.scope, _at_most(max_mb, request.receive))
    if kind == "multipart/form-data":
        uploads = [upload async for upload in _of_form(limited)]
    elif kind == "application/json":
        uploads = _of_json(await limited.body())
    else:
        raise HTTPException(415, f"the content type is {kind or 'missing'}; send multipart/form-data with files, or "
                                 "application/json")
    if not uploads:
        raise HTTPException(422, "no image in the request: send files in fields named images, or JSON such as "
                                 + _EXAMPLE)
    return uploads


def _at_most(max_mb: float, receive: Receive) -> Receive:
    """`receive` that raises an HTTPException once the body is too large, before it is in memory or on disk."""
    read = 0

    async def limited() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > max_mb * MB:
            raise HTTPException(413, f"the request is larger than {max_mb:g} MB")
        return message

    return limited


async def _of_form(request: Request) -> AsyncIterator[Upload]:
    async with request.form(max_files=MAX_IMAGES) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        for number, file in enumerate(files):
            yield Upload(file.filename or f"#{number}", await file.read())


_EXAMPLE = '{"images": [{"name": "a.jpg", "content": "BASE64"}]}'


def _of_json(body: bytes) -> list[Upload]:
    try:
        images = json.loads(body)["images"]
        named = [(str(image.get("name") or f"#{number}"), image["content"]) for number, image in enumerate(images)]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise HTTPException(422, f"the JSON must be of the form {_EXAMPLE}") from None
    if len(named) > MAX_IMAGES:
        raise HTTPException(422, f"{len(named)} images; a request takes at most {MAX_IMAGES}")
    return [Upload(name, _decoded(name, content)) for name, content in named]


def _decoded(name: str, content: Any) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise HTTPException(422, f"{name}: its content is not base64") from None


# --- its description in /openapi.json --------------------------------------------------------------------

_FILES = {"type": "object", "required": ["images"], "properties": {
    "images": {"type": "array", "maxItems": MAX_IMAGES, "items": {"type": "string", "format": "binary"}}}}
_JSON = {"type": "object", "required": ["images"], "properties": {"images": {
    "type": "array", "maxItems": MAX_IMAGES, "items": {"type": "object", "required": ["content"], "properties": {
        "name": {"type": "string"}, "content": {"type": "string", "format": "byte", "description": "base64"}}}}}}
_BODY = {"required": True, "content": {"multipart/form-data": {"schema": _FILES},
                                       "application/json": {"schema": _JSON}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"description": "The token is missing or wrong."},
    408: {"description": "The request took too long."},
    413: {"description": "The request is too large."},
    415: {"description": "The content type is neither of the two."},
    422: {"description": "There is no image in the request, or none that can be used: the reason names the file."},
    503: {"description": "Too many requests wait already, or the network is being started again."}}
