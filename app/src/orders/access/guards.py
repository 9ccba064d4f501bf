"""What stands before every route: it asks for what the route declares, and a route that declares nothing cannot be."""

from collections.abc import Iterable
from typing import Any

from litestar import Litestar, Request
from litestar.connection import ASGIConnection
from litestar.enums import HttpMethod
from litestar.exceptions import ImproperlyConfiguredException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi.spec import Components, SecurityScheme
from litestar.routes import HTTPRoute

from orders import metrics
from orders.access.schemas import Access, Caller
from orders.access.sessions import Sessions
from orders.access.tokens import Tokens
from orders.errors import CrossSiteError, ForbiddenError

Headers = Iterable[tuple[bytes, bytes]]

_NOBODY = Access(0)
_SCHEME, _COOKIE_SCHEME = "bearerAuth", "session"
SESSION_COOKIE = "__Host-session"
_SESSION_COOKIE = SESSION_COOKIE.encode()
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# For the OpenAPI document: the schemes, and what a route that asks for either says of them.
COMPONENTS = Components(
    security_schemes={
        _SCHEME: SecurityScheme(type="http", scheme="bearer", bearer_format="JWT"),
        _COOKIE_SCHEME: SecurityScheme(
            type="apiKey",
            security_scheme_in="cookie",
            name=SESSION_COOKIE,
            description="A browser's, from `/login`. Changes count from our own pages only (`Origin`, `Sec-Fetch-Site`).",
        ),
    },
)
BEARER: list[dict[str, list[str]]] = [{_SCHEME: []}, {_COOKIE_SCHEME: []}]


class Guard:
    """The application's one guard."""

    def __init__(self, tokens: Tokens, sessions: Sessions | None = None, origin: str = "") -> None:
        self._tokens = tokens
        self._sessions = sessions
        self._origin = origin.encode()

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Let a request pass, and note whose it is.

        Raises:
            UnauthorizedError, SessionEndedError: the route asks for a token or a session, and there is none that counts.
            ForbiddenError: it gives none of the roles that the route asks for.
            CrossSiteError: a session's cookie came with a change that is not from a page of ours.
            UnavailableError: no key of the identity provider is known yet, or the store of sessions does not answer.
        """
        access = _declared(handler)
        if access is Access.PUBLIC:
            return
        scope = connection.scope
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        if not header and self._sessions is not None and (cookie := cookie_of(scope["headers"], _SESSION_COOKIE)):
            if scope.get("method") not in _SAFE_METHODS:
                self._require_our_own_page(scope["headers"])
            caller = await self._sessions.find(cookie)
        else:
            caller = await self._tokens.verify(header)
        if not caller.roles & access:
            raise ForbiddenError(f"This asks for the role {' or '.join(str(role.name).lower() for role in access)}.")
        scope["user"] = caller

    def _require_our_own_page(self, headers: Headers) -> None:
        """Return if a browser says that a page of ours sends this: other sites' pages cannot make it say so."""
        given = dict(headers)
        origin = given.get(b"origin")
        if origin != self._origin if origin is not None else given.get(b"sec-fetch-site") != b"same-origin":
            metrics.CROSS_SITE.inc()
            raise CrossSiteError("With a session, changes are taken from this service's own pages only.")


def cookie_of(headers: Headers, name: bytes) -> bytes:
    """Return a cookie's value; empty where there is none."""
    for header, value in headers:
        if header == b"cookie":
            for part in value.split(b";"):
                found, _, content = part.strip().partition(b"=")
                if found == name:
                    return content
    return b""


def _declared(handler: BaseRouteHandler) -> Access:
    if isinstance(handler, HTTPRouteHandler) and handler.http_methods == {HttpMethod.OPTIONS}:
        return Access.PUBLIC  # Litestar's own answer, which names a route's methods
    access = handler.opt.get("access")
    return access if isinstance(access, Access) else _NOBODY


def require_declarations(app: Litestar) -> None:
    """Return if every route declares what it asks for.

    Raises:
        ImproperlyConfiguredException: naming the route that does not.
    """
    for route in app.routes:
        for handler in route.route_handlers if isinstance(route, HTTPRoute) else [route.route_handler]:
            if _declared(handler) is _NOBODY:
                raise ImproperlyConfiguredException(f"{route.path}: {handler} does not say `access=`.")


def provide_caller(request: Request[Caller, Any, Any]) -> Caller:
    """Return whose request it is. Only where the route asks for a token does anybody know."""
    return request.user
