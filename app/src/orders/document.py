"""The OpenAPI document as clients get it: Litestar's, and what that does not make of the handlers."""

import inspect
from typing import Any

from litestar import Litestar, Request
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.routes import HTTPRoute

from orders.customers.schemas import CUSTOMER_PATTERN
from orders.ledger.schemas import ACCOUNT_PATTERN
from orders.ordering.schemas import SKU_PATTERN

# Python's `$` also matches before a last line's end, that of the document's regular expressions does not.
_NO_LINES_END = r"(?!\n)"
_PATTERNS = {
    "sku": SKU_PATTERN,
    "customer_id": CUSTOMER_PATTERN,
    "account": ACCOUNT_PATTERN,
    "If-Match": r'^(\*|(W/)?"[!#-~]*"(, (W/)?"[!#-~]*")*)$',
}
_CREATE = r"^\*$"  # the only If-None-Match of a change
# Litestar leaves out a bound of 0.
_FROM_0_ON = {"last_event_id", "Last-Event-ID"}


class DocumentPlugin(JsonRenderPlugin):
    """Renders the document, which is finished when it is asked for first."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """Return the document as JSON."""
        finish(openapi_schema)
        return super().render(request, openapi_schema)


def finish(document: dict[str, Any]) -> None:
    """Say in a document what is missing there; again changes nothing."""
    for item in document["paths"].values():
        for method, operation in item.items():
            for parameter in operation.get("parameters", ()):
                name = parameter["name"]
                parameter["schema"] = schema = _without_null(parameter["schema"])
                if name in _PATTERNS:
                    schema["pattern"] = _PATTERNS[name]
                elif name == "If-None-Match" and method == "put":
                    schema["pattern"] = _CREATE
                elif name in _FROM_0_ON:
                    schema["minimum"] = 0
            operation["responses"].get("204", {}).pop("content", None)
    _shorten_patterns(document)


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter that is there: where it is a text, `null` is one like any other."""
    choices = [choice for choice in schema.get("oneOf", ()) if choice != {"type": "null"}]
    if choices != [{"type": "string"}]:
        return schema
    return {**{key: value for key, value in schema.items() if key != "oneOf"}, "type": "string"}


def _shorten_patterns(part: object) -> None:
    if isinstance(part, dict):
        if isinstance(pattern := part.get("pattern"), str):
            part["pattern"] = pattern.removesuffix(_NO_LINES_END)
        for value in part.values():
            _shorten_patterns(value)
    elif isinstance(part, list):
        for value in part:
            _shorten_patterns(value)


def name_all_methods(app: Litestar) -> None:
    """Have OPTIONS name all methods of a path: Litestar's handler names those that were there when the path was first known."""
    for route in app.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                first = inspect.getclosurevars(handler.fn).nonlocals.get("self")
                if handler.http_methods == {"OPTIONS"} and isinstance(first, HTTPRoute):
                    first.methods = route.methods
