"""The HTTP side of a service: routes, status codes, and refusals as one sentence of JSON."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.requests import Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from peftcls.data.reading import RowError
from peftcls.serving.adapters import Adapters, load_groups
from peftcls.serving.answer_fields import answer_fields
from peftcls.serving.limits import Limits, RefusedError, shorten
from peftcls.serving.measures import UNKNOWN
from peftcls.serving.page import PAGE, PAGE_HEADERS
from peftcls.serving.request_body import TOO_LARGE, UNPROCESSABLE, adapter_name, parse_body
from peftcls.serving.service import RETRY_SECONDS, UNAVAILABLE, Service

OK = 200
CLIENT_LEFT = 400
UNSUPPORTED = 415
FAILED = 500
TIMED_OUT = 504
JSON_TYPE = "application/json"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Answers are not for caches, and a browser must not guess that one is a page.
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
logger = logging.getLogger("peftcls")
# How OpenAPI describes the body of a request; `parse_body` checks it.
BODY_SCHEMA = {
    "type": "object",
    "properties": {
        "texts": {
            "type": "array",
            "items": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": 2},
                ]
            },
        },
        "rows": {"type": "array", "items": {"type": "object"}},
        "adapter": {"type": "string"},
    },
    "additionalProperties": False,
}
PREDICT_SCHEMA = {
    "requestBody": {"required": True, "content": {JSON_TYPE: {"schema": BODY_SCHEMA}}}
}


def make_app(
    adapters: Adapters,
    *,
    base: str | Path | None = None,
    device: str | None = None,
    limits: Limits | None = None,
) -> FastAPI:
    """Make the web application of `peftcls serve`, to run alone or to mount in your own.

    Folders that share a base are loaded on one, and their rows share batches. The application has
    the routes `/`, `/predict`, `/adapters`, `/health` and `/metrics`.

    Args:
        adapters: a folder or several; or predictors by name; or a `ManyPredictor`. A folder is
            known by its name, without its path. The first one answers where a request names none.
        base: where the base model of the folders is now, if it moved.
        device: where folders compute, as of `load_predictor`; predictors have one already.
        limits: how much the service takes on.

    Raises:
        ValueError: a folder cannot be loaded, or two adapters have the same name.
    """
    service = Service(load_groups(adapters, base=base, device=device), limits or Limits())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.open()
        yield
        # In a thread: the event loop still carries the last answers to their clients.
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="peftcls",
        description="Answers texts with saved adapters.",
        lifespan=lifespan,
        # These two would load scripts from other servers.
        docs_url=None,
        redoc_url=None,
        exception_handlers={HTTPException: _answer_http_error, Exception: _answer_failure},
    )
    app.state.service = service
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.post("/predict", openapi_extra=PREDICT_SCHEMA)
    async def predict(request: Request) -> Response:
        """Answer texts or rows."""
        return await _predict(service, request)

    @app.get("/adapters")
    async def adapters() -> Response:
        """List the adapters, and what they need."""
        described = [_describe(service, name) for name in service.adapters]
        return _json(OK, {"adapters": described, "default": next(iter(service.adapters))})

    @app.get("/health")
    async def health() -> Response:
        """Say whether requests are answered."""
        if service.is_ready:
            return _json(OK, {"status": "ready"})
        return _json(UNAVAILABLE, {"status": "ending"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters and times for Prometheus."""
        return Response(service.measures.text(), headers=HEADERS, media_type=METRICS_TYPE)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        """A page to try texts."""
        return Response(PAGE, headers={**HEADERS, **PAGE_HEADERS}, media_type="text/html")


def _describe(service: Service, name: str) -> dict[str, Any]:
    task = service.adapters[name].task
    return {
        "name": name,
        "task": type(task).__name__,
        "answer": task.answer_kind,
        "columns": task.columns(with_target=False),
        "labels": list(task.labels or ()),
    }


async def _predict(service: Service, request: Request) -> Response:
    """Answer a request, or refuse it with a sentence, and count it."""
    started = time.perf_counter()
    name = UNKNOWN
    try:
        _check_headers(request.headers)
        with service.admitted():
            async with asyncio.timeout(service.limits.timeout_seconds):
                content = await _read_body(request, service.limits.max_body_bytes)
                body = parse_body(content, service.limits)
                name = adapter_name(body, list(service.adapters))
                answers, shortened_rows = await service.answer(name, body)
        kind = service.adapters[name].task.answer_kind
        fields = [answer_fields(answer, kind) for answer in answers]
        found = {"adapter": name, "answers": fields, "shortened_rows": shortened_rows}
        response = _json(OK, found)
    except Exception as error:
        response = _refusal(error, service.limits)
    service.measures.count_request(name, response.status_code, time.perf_counter() - started)
    return response


def _check_headers(headers: Mapping[str, str]) -> None:
    """Refuse a body that is not sent as plain JSON.

    A web page of another site can send texts and forms without asking; it cannot send JSON.
    """
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != JSON_TYPE:
        found = repr(media_type) if media_type else "none"
        raise RefusedError(
            UNSUPPORTED, f"expected the header 'Content-Type: {JSON_TYPE}', found {found}."
        )
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding != "identity":
        raise RefusedError(
            UNSUPPORTED, f"the body is encoded as {encoding!r}; send it uncompressed."
        )


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """Read the body of a request, and stop where it is too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(content)


def _too_large(max_bytes: int) -> RefusedError:
    return RefusedError(
        TOO_LARGE, f"the body is larger than {max_bytes} bytes; send several requests."
    )


def _refusal(error: Exception, limits: Limits) -> Response:
    """The response where a request is not answered; an unknown error is logged, not sent."""
    if isinstance(error, RefusedError):
        headers = {}
        if error.retry_seconds is not None:
            headers["Retry-After"] = str(error.retry_seconds)
        return _json(error.status, {"error": str(error)}, headers)
    if isinstance(error, RowError):
        return _json(UNPROCESSABLE, {"error": shorten(str(error))})
    if isinstance(error, TimeoutError):
        sentence = f"not answered within {limits.timeout_seconds:g} seconds; send fewer rows."
        return _json(TIMED_OUT, {"error": sentence}, {"Retry-After": str(RETRY_SECONDS)})
    if isinstance(error, ClientDisconnect):
        return _json(CLIENT_LEFT, {"error": "the client closed the connection."})
    logger.error("a request failed", exc_info=error)
    return _failure()


def _failure() -> Response:
    return _json(FAILED, {"error": "the service failed to answer; its log says why."})


async def _answer_http_error(_: Request, error: Exception) -> Response:
    """Answer a wrong path or method in the same form as all other refusals."""
    assert isinstance(error, HTTPException)
    return _json(error.status_code, {"error": f"{error.detail}."}, error.headers)


async def _answer_failure(_: Request, __: Exception) -> Response:
    return _failure()


def _json(
    status: int, content: dict[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    return JSONResponse(content, status_code=status, headers={**HEADERS, **(headers or {})})
