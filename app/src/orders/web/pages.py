"""The pages that people see: files of this package, read once, and what their browser may do with them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from litestar import Controller, Request, Response, get
from litestar.params import FromPath
from swagger_ui_bundle import swagger_ui_path

from orders.access.schemas import Access
from orders.errors import NotFoundError

_SITE = Path(__file__).parent / "site"
_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing inline, nothing from elsewhere, in nobody's frame.
_POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:", "connect-src 'self'"),
        *("form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"),
    )
)
_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
}
# A page names its files without a version: a minute after a deploy both are of the new one.
_CACHING: Mapping[bool, str] = {True: "no-cache", False: "public, max-age=60"}


class _File(NamedTuple):
    content: bytes
    media_type: str
    headers: Mapping[str, str]


def _read(path: Path) -> _File:
    content = path.read_bytes()
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**_HEADERS, "Cache-Control": _CACHING[path.suffix == ".html"], "ETag": tag}
    return _File(content, _TYPES[path.suffix], headers)


# Swagger UI is the wheel's: pinned with it, and shipped with it.
_PATHS = (*sorted(_SITE.iterdir()), swagger_ui_path / "swagger-ui-bundle.js", swagger_ui_path / "swagger-ui.css")
_FILES: Mapping[str, _File] = {path.name: _read(path) for path in _PATHS}


def _answer(request: Request[Any, Any, Any], file: _File) -> Response[bytes]:
    if file.headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(b"", status_code=304, media_type=file.media_type, headers=dict(file.headers))
    return Response(file.content, media_type=file.media_type, headers=dict(file.headers))


class PageController(Controller):
    """The storefront, the description of the interface, and what belongs to them."""

    include_in_schema = False

    @get("/", access=Access.PUBLIC)
    async def store(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return the storefront."""
        return _answer(request, _FILES["index.html"])

    @get("/docs", access=Access.PUBLIC)
    async def description(self, request: Request[Any, Any, Any]) -> Response[bytes]:
        """Return the interactive description of the interface."""
        return _answer(request, _FILES["docs.html"])

    @get("/static/{name:str}", access=Access.PUBLIC)
    async def file(self, request: Request[Any, Any, Any], name: FromPath[str]) -> Response[bytes]:
        """Return a file that a page names.

        Raises:
            NotFoundError: there is none of this name.
        """
        file = _FILES.get(name)
        if file is None:
            raise NotFoundError(f"There is no file {name[:64]!r}.")
        return _answer(request, file)
