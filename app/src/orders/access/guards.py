"""What stands before every route: it asks for what the route declares, and a route that declares nothing cannot be."""

from typing import Any

from litestar import Litestar, Request
from litestar.connection import ASGIConnection
from litestar.enums import HttpMethod
from litestar.exceptions import ImproperlyConfiguredException
from litestar.handlers import BaseRouteHandler, HTTPRouteHandler
from litestar.openapi.spec import Components, SecurityScheme
from litestar.routes import HTTPRoute

from orders.access.schemas import Access, Caller
from orders.access.tokens import Tokens
from orders.errors import ForbiddenError

_NOBODY = Access(0)
_SCHEME = "bearerAuth"

# For the OpenAPI document: the scheme, and what a route that asks for a token says of it.
COMPONENTS = Components(
    security_schemes={_SCHEME: SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")},
)
BEARER: list[dict[str, list[str]]] = [{_SCHEME: []}]


class Guard:
    """The application's one guard."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def __call__(self, connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
        """Let a request pass, and note whose it is.

        Raises:
            UnauthorizedError: the route asks for a token, and there is none that counts.
            ForbiddenError: the token gives none of the roles that the route asks for.
            UnavailableError: no key of the identity provider is known yet.
        """
        access = _declared(handler)
        if access is Access.PUBLIC:
            return
        header = next((value for name, value in connection.scope["headers"] if name == b"authorization"), b"")
        caller = await self._tokens.verify(header)
        if not caller.roles & access:
            raise ForbiddenError(f"This asks for the role {' or '.join(str(role.name).lower() for role in access)}.")
        connection.scope["user"] = caller


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
