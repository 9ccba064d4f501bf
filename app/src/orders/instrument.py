"""What every request gets: an identifier, for the answer and the log, and its time in the metrics."""

import os
import re
from time import perf_counter
from typing import Any

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import Message, Receive, Scope, Send
from prometheus_client import Histogram

from orders import metrics
from orders.logs import REQUEST_ID

_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Instrument:
    """Wraps the whole application: one function call a request, not a middleware a concern."""

    def __init__(self, app: Litestar) -> None:
        self.app = app
        self._children: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != ScopeType.HTTP:
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        status = 500
        answered = 0.0
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given if _REQUEST_ID.fullmatch(given) else os.urandom(16).hex().encode()
        REQUEST_ID.set(request_id.decode())

        async def send_with_id(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = perf_counter()
                message["headers"] = [*message["headers"], (b"x-request-id", request_id), _NO_SNIFFING]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            # A stream is answered when it begins.
            is_stream = scope.get("path_template", "").endswith("/events")
            self._observe(scope, status, (answered if is_stream and answered else perf_counter()) - started)

    def _observe(self, scope: Any, status: int, seconds: float) -> None:  # noqa: ANN401
        # By route template: a label for each path would be a label for each client's fancy.
        key = (scope.get("path_template") or "none", scope["method"] if status != 405 else "other", status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metrics.REQUESTS.labels(*key)
        child.observe(seconds)
