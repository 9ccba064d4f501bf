"""What every request gets: identifiers, for the answer and the log, a span if its trace is sampled, and its time in the metrics."""

import re
import time
from contextlib import nullcontext
from random import getrandbits
from time import perf_counter
from typing import Any

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import Message, Receive, Scope, Send
from opentelemetry.trace import SpanKind
from prometheus_client import Histogram

from orders import metrics
from orders.logs import REQUEST_ID
from orders.problems import ERROR_TYPE
from orders.tracecontext import TRACE, begin, below
from orders.tracing import Recording, Tracer

_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
# Asked all the time, by the platform: their traces would be most of all.
_PLATFORM = frozenset({"/livez", "/readyz", "/metrics"})
_NO_SPAN = nullcontext()


class Instrument:
    """Wraps the whole application: one function call a request, not a middleware a concern."""

    def __init__(self, app: Litestar, tracer: Tracer) -> None:
        self.app = app
        self._tracer = tracer
        self._children: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != ScopeType.HTTP:
            await self.app(scope, receive, send)
            return
        started = perf_counter()
        status = 500
        answered = 0.0
        request_id, traceparent = b"", b""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                request_id = value
            elif name == b"traceparent":
                traceparent = value
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = b"%032x" % getrandbits(128)
        REQUEST_ID.set(request_id.decode())
        for_platform = scope["path"] in _PLATFORM
        trace = below(traceparent.decode("latin-1")) if traceparent else None
        if trace is None:
            trace = begin(0.0 if for_platform else self._tracer.ratio)
        TRACE.set(trace)
        headers = (
            (b"x-request-id", request_id),
            (b"trace-id", trace.trace_id.encode()),
            (b"traceresponse", trace.traceparent.encode()),
            _NO_SNIFFING,
        )

        async def send_with_ids(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                answered = perf_counter()
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        recording = self._tracer.open([trace], scope["method"], SpanKind.SERVER) if trace.sampled else None
        try:
            with recording.current() if recording else _NO_SPAN:
                await self.app(scope, receive, send_with_ids)
        finally:
            # A stream is answered when it begins.
            is_stream = scope.get("path_template", "").endswith("/events")
            seconds = (answered if is_stream and answered else perf_counter()) - started
            self._observe(scope, status, seconds, {"trace_id": trace.trace_id} if recording else None)
            # Errors are told of, whatever the ratio is.
            if recording is None and status >= 500 and not for_platform:
                recording = self._tracer.open([trace], scope["method"], SpanKind.SERVER, started=_ago(seconds))
            if recording:
                self._end(recording, scope, status, request_id, _ago(perf_counter() - started - seconds))

    def _observe(self, scope: Any, status: int, seconds: float, exemplar: dict[str, str] | None) -> None:  # noqa: ANN401
        # By route template: a label for each path would be a label for each client's fancy.
        key = (scope.get("path_template") or "none", scope["method"] if status != 405 else "other", status)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metrics.REQUESTS.labels(*key)
        child.observe(seconds, exemplar)

    @staticmethod
    def _end(recording: Recording, scope: Any, status: int, request_id: bytes, at: int) -> None:  # noqa: ANN401
        route = scope.get("path_template")
        recording.note(
            {
                "http.request.method": scope["method"],
                "http.response.status_code": status,
                # The one that the edge's and our own log lines have; the path itself may name a customer.
                "http.request.header.x-request-id": [request_id.decode()],
                **({"http.route": route} if route else {}),
            }
        )
        if route:
            recording.rename(f"{scope['method']} {route}")
        if status >= 500:
            recording.fail(scope.get("state", {}).get(ERROR_TYPE) or str(status))
        recording.end(at)


def _ago(seconds: float) -> int:
    return time.time_ns() - int(seconds * 1e9)
