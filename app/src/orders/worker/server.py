"""The worker's own small HTTP server: /livez, /readyz and /metrics."""

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus

import msgspec
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder

from orders.errors import MEDIA_TYPE, Health, Problem

_SECONDS = 2.0
_ACCEPT = re.compile(rb"\r\naccept: *([^\r]*)", re.IGNORECASE)


async def start_server(port: int, why_not_ready: Callable[[], str]) -> asyncio.Server:
    """Serve on the event loop, so that an answer also shows that the loop runs."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_SECONDS):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(_response(request, why_not_ready))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    return await asyncio.start_server(answer, "0.0.0.0", port)  # noqa: S104  (the container's own network)


def _response(request: bytes, why_not_ready: Callable[[], str]) -> bytes:
    method, path, *_ = request.split(b" ", 2)
    status, media_type, content = HTTPStatus.OK, "application/json", msgspec.json.encode(Health())
    problem: Problem | None = None
    if method not in {b"GET", b"HEAD"}:
        problem = Problem(405, "Method Not Allowed")
    elif path == b"/readyz":
        if reason := why_not_ready():
            problem = Problem(503, "Service Unavailable", detail=reason)
    elif path == b"/metrics":
        accept = _ACCEPT.search(request)
        encode, media_type = choose_encoder(accept[1].decode("latin-1") if accept else "")
        content = encode(REGISTRY)
    elif path != b"/livez":
        problem = Problem(404, "Not Found")
    if problem:
        status, media_type, content = HTTPStatus(problem.status), MEDIA_TYPE, msgspec.json.encode(problem)
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {media_type}\r\nContent-Length: {len(content)}\r\n"
    )
    return head.encode() + b"Connection: close\r\n\r\n" + (b"" if method == b"HEAD" else content)
