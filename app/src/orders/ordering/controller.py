"""HTTP interface of orders: it parses, asks, and answers; it decides nothing else."""

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.spec import OpenAPIMediaType, OpenAPIType, Operation, RequestBody, Schema
from litestar.params import FromPath, HeaderParameter, QueryParameter

from orders.access.guards import BEARER
from orders.access.schemas import Access, Caller
from orders.bodies import parse
from orders.errors import BadRequestError
from orders.ordering.schemas import (
    CURSOR_PATTERN,
    KEY_PATTERN,
    MOST_LINES,
    MOST_PIECES,
    SKU_PATTERN,
    Accepted,
    NewOrder,
    Order,
    OrderPage,
)
from orders.ordering.service import Orders
from orders.problems import problems

MOST_BYTES = 16384
_UNKNOWN_CALLER = "There is no access token, or it does not count."
_KEYS_UNKNOWN = "The identity provider's keys are not known yet"

_DECODER = msgspec.json.Decoder(NewOrder)
_ENCODER = msgspec.json.Encoder()


# The handler decodes the body by itself, so the document is told of it here; the interface's tests hold both together.
_LINE_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "sku": Schema(type=OpenAPIType.STRING, pattern=SKU_PATTERN),
        "quantity": Schema(type=OpenAPIType.INTEGER, minimum=1, maximum=MOST_PIECES),
    },
    required=["sku", "quantity"],
    additional_properties=False,
)
_NEW_ORDER_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "lines": Schema(
            type=OpenAPIType.ARRAY,
            items=_LINE_SCHEMA,
            min_items=1,
            max_items=MOST_LINES,
            description="What is ordered, each product once.",
        )
    },
    required=["lines"],
    additional_properties=False,
    examples=[{"lines": [{"sku": "P-00001", "quantity": 2}]}],
)


@dataclass
class NewOrderOperation(Operation):
    """An operation with the body of a new order."""

    def __post_init__(self) -> None:
        """Describe the body."""
        self.request_body = RequestBody({"application/json": OpenAPIMediaType(_NEW_ORDER_SCHEMA)}, required=True)


def parse_order(content_type: str, body: bytes) -> NewOrder:
    """Return the order that a body holds.

    Raises:
        MediaTypeError: the body is not declared as JSON.
        BadRequestError: naming the field that is wrong.
    """
    order = parse(_DECODER, content_type, body)
    seen: set[str] = set()
    for number, line in enumerate(order.lines):
        if line.sku in seen:
            raise BadRequestError(f"lines[{number}].sku", f"{line.sku} is in the order already")
        seen.add(line.sku)
    return order


class OrderController(Controller):
    """Orders: placed and looked up."""

    path = "/v1/orders"
    tags = ["Orders"]

    @post(
        access=Access.CUSTOMER,
        security=BEARER,
        operation_id="PlaceOrder",
        operation_class=NewOrderOperation,
        status_code=202,
        request_max_body_size=MOST_BYTES,
        responses=problems(
            s400="A field or a header is malformed or missing; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403="The token does not give the role customer.",
            s409="The Idempotency-Key was used with another body.",
            s413="The body is too large.",
            s415="The body is not application/json.",
            s503=f"{_KEYS_UNKNOWN}, or the order could not be queued. Send it again with the same Idempotency-Key.",
        ),
    )
    async def place_order(
        self,
        request: Request[Caller, Any, Any],
        caller: NamedDependency[Caller],
        orders: NamedDependency[Orders],
        idempotency_key: Annotated[
            str,
            HeaderParameter(
                name="Idempotency-Key", pattern=KEY_PATTERN, description="Of the client's making, one an order."
            ),
        ],
    ) -> Response[Accepted]:
        """Place an order of the token's subject: it is queued, and settled or refused soon after.

        The same order again is the same order.
        """
        order = parse_order(request.headers.get("content-type", ""), await request.body())
        identifier = await orders.place(caller.subject, idempotency_key, order)
        return Response(
            Accepted(identifier), headers={"Location": f"/v1/orders/{identifier}", "Cache-Control": "no-store"}
        )

    @get(
        access=Access.CUSTOMER,
        security=BEARER,
        operation_id="ListOrders",
        responses=problems(
            s400="A parameter is malformed; `errors` names it.",
            s401=_UNKNOWN_CALLER,
            s403="The token does not give the role customer.",
            s503=f"{_KEYS_UNKNOWN}, or the database does not answer.",
        ),
    )
    async def list_orders(
        self,
        caller: NamedDependency[Caller],
        orders: NamedDependency[Orders],
        after: Annotated[
            str, QueryParameter(pattern=CURSOR_PATTERN, description="`next` of the page before; empty: the newest.")
        ] = "",
        limit: Annotated[int, QueryParameter(ge=1, le=200)] = 50,
    ) -> Response[OrderPage]:
        """List the orders of the token's subject that are settled or refused, the newest first."""
        content: Any = await orders.page(caller.subject, after=after, limit=limit)
        return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})

    @get(
        "/{order_id:str}",
        access=Access.CUSTOMER | Access.OPERATOR,
        security=BEARER,
        operation_id="GetOrder",
        responses=problems(
            s401=_UNKNOWN_CALLER,
            s403="The token gives neither the role customer nor the role operator.",
            s404="No order has this id, or it is another customer's.",
            s503=f"{_KEYS_UNKNOWN}, or the database does not answer.",
        ),
    )
    async def get_order(
        self, caller: NamedDependency[Caller], orders: NamedDependency[Orders], order_id: FromPath[str]
    ) -> Response[Order]:
        """Return an order: accepted, settled, or refused with the reason; a customer's own, and any to an operator.

        An order that no store knows yet is accepted for whoever holds its id, which nobody can guess.
        """
        content: Any = await orders.find(order_id, None if Access.OPERATOR in caller.roles else caller.subject)
        return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})
