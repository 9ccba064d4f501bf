"""Answers that are made once and sent often, and routes that many ask."""

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from litestar import Response
from litestar.connection import ASGIConnection
from litestar.handlers import HTTPRouteHandler
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

T = TypeVar("T")


class _Made(ASGIResponse):
    """The bytes of an answer."""

    def __init__(self, content: bytes, status_code: int, headers: Mapping[str, str]) -> None:
        super().__init__(body=content, status_code=status_code, headers=dict(headers))
        self._encoded = self.encode_headers()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. The message is of this request alone, since whoever passes it on may add to it."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self._encoded})
        await send({"type": "http.response.body", "body": self.body, "more_body": False})


class Ready(Response[T], Generic[T]):
    """A JSON answer that costs nothing when it is sent: no encoding, no headers to put together."""

    def __init__(self, content: bytes, *, status_code: int, headers: Mapping[str, str]) -> None:
        super().__init__(content, status_code=status_code)  # type: ignore[arg-type]  # T is what the bytes hold, as JSON
        self._made = _Made(content, status_code, headers)

    def to_asgi_response(self, *_arguments: Any, **_named: Any) -> ASGIResponse:  # noqa: ANN401
        """Return it as it is."""
        return self._made


class Frequent(HTTPRouteHandler):
    """A route of Litestar's whose guards get the handler itself: to copy it takes a quarter of a ready answer's time."""

    async def authorize_connection(self, connection: ASGIConnection[Any, Any, Any, Any]) -> None:
        """Let the guards look at a request, as Litestar has it."""
        for guard in self.resolve_guards():
            await guard(connection, self)  # type: ignore[misc]
