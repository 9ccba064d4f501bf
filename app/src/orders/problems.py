"""The one table that turns what goes wrong into application/problem+json."""

import logging
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from psycopg import OperationalError
from psycopg.errors import ReadOnlySqlTransaction
from psycopg_pool import PoolTimeout

from orders.errors import (
    MEDIA_TYPE,
    BadRequestError,
    CrossSiteError,
    FieldError,
    ForbiddenError,
    KeyReusedError,
    MediaTypeError,
    NotFoundError,
    OutdatedError,
    Problem,
    SessionEndedError,
    StockError,
    TransitionError,
    UnauthorizedError,
    UnavailableError,
    UnconditionalError,
    WebhookError,
)
from orders.logs import REQUEST_ID
from orders.tracecontext import TRACE

_LOG = logging.getLogger(__name__)
RETRY_AFTER_SECONDS = 1
ERROR_TYPE = "orders_error_type"
_MISSING = re.compile(r"Missing required \w+ parameter '([^']+)'")


def _from_http(error: HTTPException) -> Problem:
    title = HTTPStatus(error.status_code).phrase
    if not isinstance(error, ValidationException):
        return Problem(error.status_code, title, detail=error.detail if error.detail != title else "")
    found = error.extra if isinstance(error.extra, list) else []
    errors = [_field_error(item) for item in found]
    if missing := _MISSING.match(error.detail):
        errors.append(FieldError(missing[1], "is missing"))
    return Problem(400, title, detail="The request is malformed.", errors=errors)


def _field_error(item: Mapping[str, Any]) -> FieldError:
    name = str(item.get("key", ""))
    # Litestar has the name of our function's parameter, the client the header's.
    field = name.replace("_", "-").title() if item.get("source") == "header" else name
    return FieldError(field, str(item.get("message", "")))


# What is not in this table is a defect: 500, with no detail of ours in the answer.
EXCEPTION_TO_PROBLEM: Mapping[type[Exception], Callable[[Any], Problem]] = {
    NotFoundError: lambda error: Problem(404, "Not Found", detail=str(error)),
    BadRequestError: lambda error: Problem(
        400, "Bad Request", detail="The request is malformed.", errors=[FieldError(error.field, error.detail)]
    ),
    UnauthorizedError: lambda error: Problem(401, "Unauthorized", detail=error.reason or "An access token is needed."),
    SessionEndedError: lambda _: Problem(401, "Unauthorized", detail="The session has ended: log in again."),
    ForbiddenError: lambda error: Problem(403, "Forbidden", detail=str(error)),
    CrossSiteError: lambda error: Problem(403, "Forbidden", detail=str(error)),
    MediaTypeError: lambda error: Problem(415, "Unsupported Media Type", detail=str(error)),
    KeyReusedError: lambda error: Problem(409, "Conflict", detail=str(error)),
    TransitionError: lambda error: Problem(409, "Conflict", detail=str(error)),
    StockError: lambda error: Problem(409, "Conflict", detail=str(error)),
    WebhookError: lambda error: Problem(409, "Conflict", detail=str(error)),
    OutdatedError: lambda error: Problem(412, "Precondition Failed", detail=str(error)),
    UnconditionalError: lambda error: Problem(428, "Precondition Required", detail=str(error)),
    UnavailableError: lambda error: Problem(503, "Service Unavailable", detail=str(error)),
    PoolTimeout: lambda _: Problem(503, "Service Unavailable", detail="The database does not answer."),
    OperationalError: lambda _: Problem(503, "Service Unavailable", detail="The database does not answer."),
    # A primary that has just become a replica.
    ReadOnlySqlTransaction: lambda _: Problem(503, "Service Unavailable", detail="The database takes no changes now."),
    HTTPException: _from_http,
}


def problem_response(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Answer with the problem that an exception is; log it where it is a defect of ours."""
    found = next((EXCEPTION_TO_PROBLEM[kind] for kind in type(error).__mro__ if kind in EXCEPTION_TO_PROBLEM), None)
    problem = found(error) if found else Problem(500, "Internal Server Error")
    if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    if problem.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        request.scope["state"][ERROR_TYPE] = type(error).__qualname__  # for the request's span
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    if problem.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    elif isinstance(error, UnauthorizedError | SessionEndedError | ForbiddenError):
        headers["WWW-Authenticate"] = _challenge(error)
    trace = TRACE.get()
    told = msgspec.structs.replace(problem, request_id=REQUEST_ID.get(), trace_id=trace.trace_id if trace else "")
    content = msgspec.json.encode(told)
    return Response(content, status_code=problem.status, media_type=MEDIA_TYPE, headers=headers)


def _challenge(error: UnauthorizedError | SessionEndedError | ForbiddenError) -> str:
    """Return what RFC 6750 has a client told of its token."""
    if isinstance(error, ForbiddenError):
        return 'Bearer error="insufficient_scope"'
    if isinstance(error, SessionEndedError):
        return "Bearer"
    return f'Bearer error="invalid_token", error_description="{error.reason}"' if error.reason else "Bearer"


def problems(**described: str) -> dict[int, ResponseSpec]:
    """Describe a route's errors for the OpenAPI document: `problems(s404="No such thing.")`."""
    return {
        int(status.removeprefix("s")): ResponseSpec(
            data_container=Problem, media_type=MEDIA_TYPE, description=description, generate_examples=False
        )
        for status, description in described.items()
    }
